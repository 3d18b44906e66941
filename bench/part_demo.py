"""The part `demo`: the main job with fewer steps, its figures as rows."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import machine
from row import Row

# Slower than plain by this much is what the project allows itself at a budget of 10% of the saved bytes.
SLOWEST = 1.10
MEMORY_LIMIT = "1900M"


def rows(options: list[str]) -> Iterator[Row]:
    """`options` go to demo.py, after this part's own. Without root nothing is run under a memory limit, which is said."""
    limited = os.geteuid() == 0
    if not limited:
        print(f"demo: no root, so nothing is run under {MEMORY_LIMIT}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "demo.json"
        command = [sys.executable, machine.ROOT / "bench/demo.py", "--steps=3", "--json", result]
        if limited:
            command.append(f"--memory={MEMORY_LIMIT}")
        code = subprocess.run([*command, *options], stdout=sys.stderr).returncode
        if not result.exists():
            raise RuntimeError(f"demo.py ended with exit code {code}")
        demo = json.loads(result.read_text())

    for name, value in demo["ratios"].items():
        if name.startswith("ebbtide") and "over_plain" in name:
            yield Row.at_most("demo", name, value, "x", SLOWEST)
        else:
            yield Row("demo", name, value, "x")
    for run in demo["runs"]:
        name = run["name"]
        if run["step_s_median"] is not None:
            yield Row("demo", f"{name}.step_s_median", run["step_s_median"], "s")
        for field in ("peak_rss_bytes", "peak_device_bytes", "saved_bytes", "kept_bytes", "offloaded_bytes", "spilled_bytes", "recomputed_bytes"):
            if run[field] is not None:
                yield Row("demo", f"{name}.{field}", run[field], "B")
        if name not in ("plain", "plain_cpp", "plain_capped"):
            yield Row.must_hold("demo", f"{name}.bitwise_equal", run["bitwise_equal"])
        if name == "plain_capped":
            yield Row.must_hold("demo", "plain_capped.killed", run["exit"] == "killed")
        elif name == "ebbtide_capped":
            yield Row.must_hold("demo", "ebbtide_capped.finished", run["exit"] == "ok")
