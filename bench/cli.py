"""What the benchmarks' command lines share: one line and exit code 2 for bad input, sizes read and written."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import NoReturn

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}iB": 1024**_power, f"{_letter}B": 1000**_power}


class BadInput(Exception):
    """What the user asked for cannot be done; its text is the one line that they read."""


class Parser(argparse.ArgumentParser):
    """argparse without the usage text in front of an error, and without abbreviations that a later option would break."""

    def __init__(self, **keywords):
        super().__init__(allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def run(program: str, main: Callable[[], int]) -> NoReturn:
    """Exits with what `main` returns; bad input is one line on stderr and exit code 2."""
    try:
        code = main()
    except BadInput as error:
        print(f"{program}: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def size(text: str) -> int:
    """Bytes in "1900M", "2GiB", "1.5TB" or "4096"; K, M, G and T alone are powers of 1024, as in cgroup files."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text)
    if not match or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write it like 512MiB, 2GiB or 1900M")
    return int(float(match[1]) * _UNITS[match[2]])


def size_or_share(text: str) -> int | float:
    """A size in bytes, or, for "10%", the share 0.1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text)
    if match and float(match[1]) <= 100:
        return float(match[1]) / 100
    try:
        return size(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no budget: write it like 10%, 512MiB or 2GiB") from None


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def format_bytes(count: int | float) -> str:
    """For people: "1.46 GiB", "64 KiB", "17 B"."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.3g} {unit}" if count < 1000 * 1024**power else f"{count / 1024**power:.0f} {unit}"
    return f"{count:.0f} B"
