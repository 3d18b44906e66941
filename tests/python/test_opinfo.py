"""Every operator of torch that has a gradient, forward and backward (every_op.py): a tenth of them, another with each commit; all of them with --long."""

import os
import subprocess
import sys


def number_of_the_commit(root):
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    return int(head.stdout.strip() or "0", 16) if head.returncode == 0 else 0


def test_gives_the_bits_of_plain(root, run):
    options = ["--share=10", f"--number={number_of_the_commit(root) % 10}", "--samples=2", "--seconds=40"]
    if os.environ.get("EBBTIDE_LONG") == "1":
        options = []
    said = run(sys.executable, root / "tests/python/every_op.py", *options)
    print(said)
    counts = dict(line.split(": ", 1) for line in said.splitlines() if line.count(": ") == 1)
    assert int(counts["spilled"]) > 0 and int(counts["recomputed"]) > 0
    assert int(counts["samples compared"]) > 0
