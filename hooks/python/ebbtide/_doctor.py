"""What this machine offers, what would be used, and what is held back: `ebbtide.doctor()` and `python -m ebbtide doctor`."""

import json
import os

from . import _ebbtide
from ._errors import ConfigError
from ._progress import progress_of_folders, progress_of_links


class Diagnosis(dict):
    """What was found, by name: bytes, and bytes a second. `str()` of it is one screen of text."""

    def __init__(self, text, found):
        super().__init__(found)
        self._text = text

    def __str__(self):
        return self._text


def doctor(spill_to=None):
    """Looks at this machine, and measures each accelerator's link and each folder for about a second. Not beside a training.

    Args:
        spill_to: a folder, or several. Default: what EBBTIDE_SPILL_TO names.

    Returns:
        A dict that prints as text: `memory` (every bound on host memory), `numa_nodes`, `huge_pages`, `memlock_bytes`, `devices` with their `link`, `folders`
        with `write` and `read`, the automatic budgets, and `advice`, a list of sentences.
    """
    folders = [] if spill_to is None else [spill_to] if isinstance(spill_to, (str, os.PathLike)) else spill_to
    text, found = _ebbtide.doctor([os.fspath(folder) for folder in folders])
    return Diagnosis(text, json.loads(found))


def add_to(commands):
    parser = commands.add_parser(
        "doctor",
        help="look at this machine: what would be used, and what is held back",
        description="Says what this machine offers and what would be used, and measures links and folders for about a second each.",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="*", help="to spill to; without: what EBBTIDE_SPILL_TO names")
    parser.add_argument("--json", action="store_true", help="for programs: bytes, and bytes a second")
    parser.set_defaults(run=_run)


def _run(parser, arguments):
    progress_of_links()
    progress_of_folders(arguments.folders or filter(None, os.environ.get("EBBTIDE_SPILL_TO", "").split(":")))
    try:
        found = doctor(arguments.folders)
    except ConfigError as error:
        parser.error(str(error))
    print(json.dumps(found) if arguments.json else str(found), end="\n" if arguments.json else "")
