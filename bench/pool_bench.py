"""The part `pool`: what the pool of host memory takes and costs, beside other ways to pool, on recorded training steps.

The figures are pool_bench.cpp's; the steps were recorded by record_pool_traces.py.
"""

from collections.abc import Iterator

import machine
from program import rows_of
from row import Row


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    yield from rows_of("pool", options, sorted((machine.ROOT / "bench/traces").glob("*.txt")))
