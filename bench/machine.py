"""What stands on top of every result: the machine, the commit and torch."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from cli import format_bytes

ROOT = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, str]:
    return {"machine": _machine(), "commit": _commit(), "torch": importlib.metadata.version("torch")}


def _machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{model}, {len(os.sched_getaffinity(0))} CPUs, {format_bytes(memory)}, Linux {platform.release()}{_gpus()}"


def _gpus() -> str:
    """As the driver's own tool names them, with the driver's version; nothing where there is none."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return ""
    return "".join(f"; {' driver '.join(part.strip() for part in line.split(','))}" for line in asked.stdout.splitlines())


def _commit() -> str:
    """The commit, with "-dirty" where tracked files differ from it; "unknown" outside a checkout."""
    described = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], capture_output=True, text=True
    )
    return described.stdout.strip() or "unknown"
