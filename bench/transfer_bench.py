"""The part `transfer`: what moving a tensor costs the host, and how near the copy lanes come to a bare loop of copies.

The figures are transfer_bench.cpp's. The host's are taken over a driver that does nothing; those of the link only where there is a GPU.
"""

from collections.abc import Iterator

from program import rows_of
from row import Row


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    yield from rows_of("transfer", options)
