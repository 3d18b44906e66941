"""Swap space for as long as a contender needs it."""

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from cli import BadInput, format_bytes


@contextmanager
def swap_space(size: int, folder: str):
    """A swap file of `size` bytes in `folder`, beside what swap there is. Gone at the end. Errors: BadInput where it cannot be had."""
    if os.geteuid() != 0:
        raise BadInput("--swap needs root, to make swap space")
    handle, name = tempfile.mkstemp(prefix="ebbtide-swap-", dir=folder)
    try:
        try:
            os.fchmod(handle, 0o600)
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            raise BadInput(f"--swap: no {format_bytes(size)} in {folder}: {error.strerror}") from None
        finally:
            os.close(handle)
        for command in (["mkswap", name], ["swapon", name]):
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                raise BadInput(f"--swap: {command[0]}: {ran.stderr.strip()}")
        try:
            yield
        finally:
            subprocess.run(["swapoff", name], check=True)
    finally:
        Path(name).unlink()
