"""larger_than_gpu.sh: its ranks, with a tiny model and without a limit."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import larger_than_gpu  # noqa: E402


def test_two_ranks_train_the_same_with_ebbtide(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "build/python"))
    arguments = Namespace(device="cpu", steps=2, spill=str(tmp_path), layers=2, width=128, tokens=64, batch=4)
    plain = larger_than_gpu.run(arguments, "plain", None, None)
    stored = larger_than_gpu.run(arguments, "Ebbtide", None, 100_000)
    assert plain.exit == stored.exit == "ok"
    assert len(plain.losses) == 2 and plain.losses[0] != plain.losses[1]  # each has its own part of the text
    assert stored.losses == plain.losses
    assert stored.spilled_bytes > 0 and plain.saved_bytes > 2 * 100_000 and plain.peak_bytes > 0


def test_a_rank_that_fails_ends_the_wait_for_the_other():
    waiting = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    failing = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    try:
        assert larger_than_gpu.wait_for_all([waiting, failing]) == [None, 3]
    finally:
        waiting.kill()
        waiting.wait()
        waiting.stdin.close()
