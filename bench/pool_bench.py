"""The part `pool`: what the pool of host memory takes and costs, beside other ways to pool, on recorded training steps.

The figures are pool_bench.cpp's; the steps were recorded by record_pool_traces.py.
"""

import json
import subprocess
from collections.abc import Iterator

import cli
import machine
from row import Row

PROGRAM = machine.ROOT / "build/bench/pool_bench"
TRACES = machine.ROOT / "bench/traces"


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    if options:
        raise cli.BadInput(f"the part pool takes no options: {options[0]}")
    if not PROGRAM.exists():
        raise cli.BadInput(f"{PROGRAM} is missing: `bash setup.sh` builds it")
    ran = subprocess.run([PROGRAM, *sorted(TRACES.glob("*.txt"))], stdout=subprocess.PIPE, text=True, check=True)
    for line in ran.stdout.splitlines():
        yield Row(**json.loads(line))
