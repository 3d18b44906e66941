"""The part `planner`: how long planning takes, and how near plans come to the least time possible, in the simulator.

The figures are planner_bench.cpp's.
"""

import json
import subprocess
from collections.abc import Iterator

import cli
import machine
from row import Row

PROGRAM = machine.ROOT / "build/bench/planner_bench"


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    if options:
        raise cli.BadInput(f"the part planner takes no options: {options[0]}")
    if not PROGRAM.exists():
        raise cli.BadInput(f"{PROGRAM} is missing: `bash setup.sh` builds it")
    ran = subprocess.run([PROGRAM], stdout=subprocess.PIPE, text=True, check=True)
    for line in ran.stdout.splitlines():
        yield Row(**json.loads(line))
