"""Real text as bytes, for the GPT of the benchmarks."""

from pathlib import Path

from cli import BadInput

DEFAULT_TEXT = "/usr/share/common-licenses"


def load_text(path: str, tokens: int) -> bytes:
    """The bytes of a file, or of all files under a folder in the order of their names, each file once however many links name it.

    Errors: BadInput where there is nothing to read or less than one sequence of `tokens` and its successor.
    """
    root = Path(path)
    if not root.exists():
        raise BadInput(f"--data {path}: no such file or folder")
    names = sorted(root.rglob("*")) if root.is_dir() else [root]
    files = dict.fromkeys(name.resolve() for name in names if name.is_file())
    try:
        text = b"".join(file.read_bytes() for file in files)
    except OSError as error:
        raise BadInput(f"--data {path}: {error.strerror}: {error.filename}") from None
    if len(text) < tokens + 1:
        raise BadInput(f"--data {path}: {len(text)} bytes of text, and one sequence of --tokens {tokens} needs {tokens + 1}")
    return text
