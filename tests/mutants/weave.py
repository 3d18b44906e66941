"""Copies transfer/ and store/ with every mutant woven in.

Usage: weave.py SOURCE_TREE OUTPUT_FOLDER. Writes OUTPUT_FOLDER/ebbtide/{transfer,store}/* and OUTPUT_FOLDER/mutants.inc, a line a mutant.
Files whose text stays the same are not touched. A mutant that no longer matches is left out of the sources and marked in mutants.inc, so that
the build goes on; its test then fails, and says why.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mutants import MUTANTS, OBSERVED

ROOMS = ("transfer", "store")


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def without_comments(text: str) -> str:
    """So that no comment is taken for the code that it speaks of."""
    return re.sub(r"//.*", "", text)


def sources(source: Path) -> dict[str, str]:
    """The files of the rooms, without their comments."""
    files = [file for room in ROOMS for file in (source / room).iterdir() if file.suffix in (".h", ".cpp")]
    return {f"{file.parent.name}/{file.name}": without_comments(file.read_text()) for file in files}


def edit(texts: dict[str, str], file: str, edits: tuple[tuple[str, str], ...]) -> str | None:
    """Makes the edits in one file; where one of them does not match exactly once, none, and says so."""
    if file not in texts:
        return f"there is no {file}"
    text = texts[file]
    for old, new in edits:
        count = text.count(old)
        if count != 1:
            return f"{file} holds {'no' if count == 0 else count} '{old}'"
        text = text.replace(old, new)
    texts[file] = text
    return None


def weave(source: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The woven files, and for each mutant or observation that does not match, what is wrong."""
    texts = sources(source)
    wrong = {}
    for mutant in MUTANTS:
        if failure := edit(texts, mutant.file, mutant.edits):
            wrong[mutant.name] = failure
    for file, old, new in OBSERVED:
        if failure := edit(texts, file, ((old, new.replace("{text}", old)),)):
            wrong[f"observed: {old}"] = failure
    for file, text in texts.items():
        text = text.replace("std::mutex", "mutants::Mutex").replace("std::condition_variable", "mutants::Condition")
        head = f'#line 1 "{source / file}"\n'
        if "mutants::" in text:
            head = '#include "tests/mutants/left_out.h"\n' + head
        texts[file] = head + text if file.endswith(".cpp") else "#pragma once\n" + head + text.replace("#pragma once", "", 1)
    return texts, wrong


def main(source: Path, output: Path) -> None:
    texts, wrong = weave(source)
    for file, text in texts.items():
        write(output / "ebbtide" / file, text)
    for room in ROOMS:
        for file in (output / "ebbtide" / room).iterdir():
            if f"{room}/{file.name}" not in texts:
                file.unlink()
    quoted = lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    rows = [(m.name, m.file, m.why, m.program, wrong.get(m.name, "")) for m in MUTANTS]
    rows += [(name, "", "", "", failure) for name, failure in wrong.items() if name.startswith("observed")]
    write(output / "mutants.inc", "".join("{" + ", ".join(map(quoted, row)) + "},\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
