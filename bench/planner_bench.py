"""The part `planner`: how long planning takes, and how near plans come to the least time possible, in the simulator.

The figures are planner_bench.cpp's.
"""

from collections.abc import Iterator

from program import rows_of
from row import Row


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    yield from rows_of("planner", options)
