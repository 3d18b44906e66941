"""Runs benchmarks and prints and writes their figures. `bash bench/run.sh` sets everything up first and passes its options on.

A part is a module with `rows(options)`, which yields `Row`s; a new one takes a file and a line in PARTS. Options after -- go to the
part, which must then be the only one.
"""

import importlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

import cli
import machine
from row import Row

PARTS = {
    "demo": "part_demo",
    "hooks": "hooks_bench",
    "nvme": "nvme_bench",
    "planner": "planner_bench",
    "policy": "policy_bench",
    "pool": "pool_bench",
    "recipes": "recipes_bench",
    "transfer": "transfer_bench",
}
# What takes as long as all others together: run when it is named.
BY_NAME = ("policy",)


def parse_arguments(words: list[str]):
    parser = cli.Parser(
        prog="run", description=__doc__.splitlines()[0], epilog="Options after -- go to the part: run.sh demo -- --layers 4"
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; when none is named, all but {' and '.join(BY_NAME)}, in under 10 minutes"
    )
    parser.add_argument("--json", metavar="FILE", help="write all rows")
    split = words.index("--") if "--" in words else len(words)
    arguments, options = parser.parse_args(words[:split]), words[split + 1 :]
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: there are {', '.join(PARTS)}")
    if options and len(arguments.parts) != 1:
        parser.error("options after -- need exactly one PART")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: its folder does not exist")
    return arguments, options


def table(rows: list[Row], top: dict[str, str]) -> Table:
    result = Table(title=f"{top['machine']}; commit {top['commit']}; torch {top['torch']}")
    for header in ("part", "name", "value", "unit", "goal", "met"):
        result.add_column(header, justify="right" if header == "value" else "left")
    for row in rows:
        value, unit = format_value(row), "" if row.unit == "B" else row.unit
        met = {True: "yes", False: "NO", None: ""}[row.met]
        result.add_row(row.part, row.name, value, unit, row.goal, met, style="red" if row.met is False else None)
    return result


def format_value(row: Row) -> str:
    match row.value:
        case None:
            return "not measured"
        case bool():
            return str(row.value).lower()
        case int() if row.unit == "B":
            return cli.format_bytes(row.value)
        case _:
            return f"{row.value:.4g}"


def main() -> int:
    arguments, options = parse_arguments(sys.argv[1:])
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for part in arguments.parts or [part for part in PARTS if part not in BY_NAME]:
        start = time.monotonic()
        rows.extend(importlib.import_module(PARTS[part]).rows(options))
        seconds[part] = round(time.monotonic() - start, 1)
        print(f"{part}: took {seconds[part]:.0f} s", file=sys.stderr)
    top = machine.provenance()
    Console(width=None if sys.stdout.isatty() else 140).print(table(rows, top))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(top | {"part_s": seconds, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    cli.run("run", main)
