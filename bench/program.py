"""Parts whose figures come from a program of this folder: a line of JSON a row."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import cli
import machine
from row import Row


def rows_of(part: str, options: list[str], arguments: Iterable[Path] = ()) -> Iterator[Row]:
    """Of build/bench/<part>_bench with these arguments. `options` are the part's: none are known."""
    if options:
        raise cli.BadInput(f"the part {part} takes no options: {options[0]}")
    program = machine.ROOT / f"build/bench/{part}_bench"
    if not program.exists():
        raise cli.BadInput(f"{program} is missing: `bash setup.sh` builds it")
    ran = subprocess.run([program, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    for line in ran.stdout.splitlines():
        yield Row(**json.loads(line))
