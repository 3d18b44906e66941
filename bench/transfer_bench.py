"""The part `transfer`: what moving a tensor costs the host, and how near the copy lanes come to a bare loop of copies.

The figures are transfer_bench.cpp's. The host's are taken over a driver that does nothing; those of the link only where there is a GPU.
"""

import json
import subprocess
from collections.abc import Iterator

import cli
import machine
from row import Row

PROGRAM = machine.ROOT / "build/bench/transfer_bench"


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    if options:
        raise cli.BadInput(f"the part transfer takes no options: {options[0]}")
    if not PROGRAM.exists():
        raise cli.BadInput(f"{PROGRAM} is missing: `bash setup.sh` builds it")
    ran = subprocess.run([PROGRAM], stdout=subprocess.PIPE, text=True, check=True)
    for line in ran.stdout.splitlines():
        yield Row(**json.loads(line))
