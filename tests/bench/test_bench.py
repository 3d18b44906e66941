"""The benchmarks' own parts, and the demo from end to end with a tiny model."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

import cli  # noqa: E402
import demo_result  # noqa: E402
from contender import Contender  # noqa: E402
from memory_limit import MemoryLimit  # noqa: E402
from saved_bytes import SavedBytes  # noqa: E402
from text import load_text  # noqa: E402

TINY = ["--layers=1", "--width=64", "--tokens=32", "--batch=2"]
TRAIN_GPT = {"python": [sys.executable, BENCH / "train_gpt.py"], "cpp": [ROOT / "build/bench/train_gpt"]}


def run(command, **keywords):
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'build/python'}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, **keywords)


@pytest.mark.parametrize("text, count", [("4096", 4096), ("1900M", 1900 << 20), ("2GiB", 2 << 30), ("1.5TB", 1_500_000_000_000)])
def test_size(text, count):
    assert cli.size(text) == count


@pytest.mark.parametrize("text", ["", "ten", "-1", "1e3", "5 parsecs", "MiB", "120%"])
def test_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cli.size_or_share(text)


def test_share():
    assert cli.size_or_share("10%") == pytest.approx(0.1)


def test_text_is_read_once_in_order_of_names(tmp_path):
    (tmp_path / "b").write_bytes(b"world")
    (tmp_path / "a").write_bytes(b"hello ")
    (tmp_path / "c").symlink_to("b")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "d").write_bytes(b"!")
    assert load_text(str(tmp_path), tokens=4) == b"hello world!"


def test_saved_bytes_counts_a_storage_once_and_no_parameter():
    layer = torch.nn.Linear(8, 8, bias=False)
    x = torch.ones(4, 8)
    count = SavedBytes(layer.parameters())
    with count.hooks():
        hidden = layer(x)  # saves x
        loss = (hidden * hidden.view(4, 8)).sum()  # saves hidden and a view of it
    assert count.peak == x.untyped_storage().nbytes() + hidden.untyped_storage().nbytes()
    loss.backward()
    assert count.timeline[-1][1] == 0


def test_ratio_is_of_neighbours_and_without_the_first_step():
    plain = demo_result.Run("plain", step_s=[9.0, 1.0, 2.0, 4.0])
    ebbtide = demo_result.Run("ebbtide", step_s=[1.0, 1.1, 2.2, 4.4])
    assert demo_result.ratio(ebbtide, plain) == pytest.approx(1.1)


def test_one_different_gradient_is_seen():
    plain = demo_result.Run("plain", digests=["a", "b", "c"])
    other = demo_result.Run("ebbtide", digests=["a", "x", "c"])
    killed = demo_result.Run("plain_capped", digests=["a"])
    dead_at_once = demo_result.Run("plain_capped")
    for run_ in (other, killed, dead_at_once):
        run_.compare(plain)
    assert (other.bitwise_equal, killed.bitwise_equal, dead_at_once.bitwise_equal) == (False, True, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
def test_memory_limit_on_cgroup_v2_is_made_where_memory_is_handed_out(tmp_path):
    """Of v2 the files alone, in an ordinary folder: what is read and what is written where."""
    process, root = tmp_path / "process", tmp_path / "cgroup"
    here = root / "user.slice/session.scope"
    here.mkdir(parents=True)
    process.mkdir()
    (process / "cgroup").write_text("0::/user.slice/session.scope\n")
    (process / "mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {root} cgroup2 rw,nosuid 0 0\n")
    (root / "cgroup.controllers").write_text("cpu io memory pids\n")
    (here / "cgroup.subtree_control").write_text("\n")
    (root / "user.slice/cgroup.subtree_control").write_text("memory pids\n")
    limit = MemoryLimit(64 << 20, process)
    with limit:
        (group,) = (root / "user.slice").glob("ebbtide-demo-*")
        assert (group / "memory.max").read_text() == str(64 << 20)
        (group / "memory.events").write_text("low 0\noom 2\noom_kill 2\n")
        assert limit.killed_processes() == 2
        assert str(group / "cgroup.procs") in limit.wrap(["true"])
        for file in group.iterdir():
            file.unlink()  # the kernel's own files go with their group
    assert not group.exists()
    (root / "user.slice/cgroup.subtree_control").write_text("pids\n")
    with pytest.raises(cli.BadInput, match="no control group above this process hands out memory"):
        MemoryLimit(64 << 20, process)


def test_memory_limit_kills_what_outgrows_it_and_leaves_no_group():
    try:
        limit = MemoryLimit(64 << 20)
        with limit:
            small = subprocess.run(limit.wrap([sys.executable, "-c", "pass"]))
            assert (small.returncode, limit.killed_processes()) == (0, 0)
            large = subprocess.run(limit.wrap([sys.executable, "-c", "b'x' * (256 << 20)"]))
            assert large.returncode == -signal.SIGKILL
            assert limit.killed_processes() == 1
    except cli.BadInput as reason:
        pytest.skip(str(reason))
    assert not limit._group.exists()


@pytest.mark.parametrize("language", TRAIN_GPT)
@pytest.mark.parametrize(
    "options, word",
    [
        (["--data=/no/such/folder"], "no such file or folder"),
        (["--data={empty}"], "0 bytes of text"),
        (["--width=100"], "multiple of 64"),
        (["--steps=none"], "--steps"),
        (["--mode=ebbtide", "--budget=some", *TINY], "'some'"),
        (["--mode=ebbtide", "--spill=/no/such/folder", *TINY], "/no/such/folder"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_train_gpt_refuses_bad_input_in_one_line(language, options, word, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    refused = run(TRAIN_GPT[language] + [option.format(empty=empty) for option in options])
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.count("\n") == 1 and word in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    "options, word",
    [
        (["--data=/no/such/folder"], "no such file or folder"),
        (["--budget=ten"], "'ten'"),
        (["--memory=lots"], "'lots'"),
        (["--spill=/no/such/folder"], "--spill"),
        (["--json=/no/such/folder/x.json"], "--json"),
        (["--steps=1"], "--steps"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_demo_refuses_bad_input_in_one_line(options, word):
    refused = run([sys.executable, BENCH / "demo.py", *options])
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.count("\n") == 1 and word in refused.stderr


def test_demo_end_to_end(tmp_path):
    figures, picture = tmp_path / "demo.json", tmp_path / "step.png"
    options = ["--steps=3", f"--json={figures}", f"--plot={picture}", f"--spill={tmp_path}"]
    model = ["--layers=2", "--width=128", "--tokens=128", "--batch=4"]  # records above the 64 KiB under which tensors stay
    ran = run([sys.executable, BENCH / "demo.py", *options, *model])
    assert ran.returncode == 0, ran.stderr
    result = json.loads(figures.read_text())
    assert set(result) == {"machine", "commit", "torch", "runs", "ratios"}
    runs = {entry["name"]: entry for entry in result["runs"]}
    assert set(runs) == {"plain", "checkpoint", "ebbtide", "plain_cpp", "ebbtide_cpp"}
    for entry in runs.values():
        assert entry["exit"] == "ok" and len(entry["step_s"]) == 3 and entry["peak_rss_bytes"] > 0
    for name in ("checkpoint", "ebbtide", "ebbtide_cpp"):
        assert runs[name]["bitwise_equal"] is True
    for name in ("ebbtide", "ebbtide_cpp"):
        assert runs[name]["kept_bytes"] < runs["plain"]["saved_bytes"] / 2
        assert runs[name]["spilled_bytes"] + runs[name]["recomputed_bytes"] > 0
    assert all(value > 0 for value in result["ratios"].values()) and len(result["ratios"]) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")


WAYS = ("full", "selective", "offload", "ebbtide", "regions")
SMALL = ["--layers=3", "--width=128", "--tokens=128", "--batch=4"]  # records above the 64 KiB under which tensors stay


def steps_of(language, mode, *options, observed=False):
    """What three steps answer, Ebbtide's report, and with `observed` what a step saves in Python's eyes."""
    with Contender(mode, [*map(str, TRAIN_GPT[language]), "--turns", f"--mode={mode}", *SMALL, *options], PYTHONPATH=str(ROOT / "build/python")) as program:
        program.wait_ready()
        saved = program.ask("observe")["saved_bytes"] if observed else None
        steps = [program.ask("step") for _ in range(3)]
        report = program.finish()["report"]
    return steps, report, saved


@pytest.fixture(scope="module", params=TRAIN_GPT)
def plain_steps(request):
    steps, _, saved = steps_of(request.param, "plain", observed=request.param == "python")
    return request.param, steps, saved


@pytest.mark.parametrize("way", WAYS)
def test_each_way_by_one_argument(plain_steps, way):
    language, plain, saved = plain_steps
    steps, report, saved_here = steps_of(language, way, observed=language == "python" and way == "full")
    assert [step["digest"] for step in steps] == [step["digest"] for step in plain]
    became = steps[0]["bytes"]  # of later ones a plan decides
    if way == "full":
        assert not became and report is None  # no store
        if language == "python":
            assert saved_here < saved / 2
    elif way == "selective":
        assert became["kept"] > became["recomputed"] > 0 and became["spilled"] == 0
    elif way == "offload":
        assert became["spilled"] > became["saved"] / 2 and became["recomputed"] == 0
    else:
        assert became["recomputed"] > 0
    if report is not None:
        assert bool(re.search("^ +region", report, re.MULTILINE)) == (way in ("selective", "regions"))
    if language == "cpp":
        again = steps[0]["block_runs"] - plain[0]["block_runs"]
        assert (again > 0) == (way in ("full", "selective", "regions"))


def test_run_names_its_parts():
    refused = run([sys.executable, BENCH / "run.py", "no-such-part"])
    assert refused.returncode == 2 and "demo, hooks, nvme, planner, policy" in refused.stderr and refused.stderr.count("\n") == 1


def test_policy_end_to_end(tmp_path):
    figures, picture = tmp_path / "policy.json", tmp_path / "policy.png"
    model = ["--layers=2", "--width=128", "--tokens=128", "--batch=4"]
    ran = run([sys.executable, BENCH / "run.py", "policy", f"--json={figures}", "--", "--steps=4", f"--plot={picture}", f"--spill={tmp_path}", *model])
    assert ran.returncode == 0, ran.stderr
    rows = {row["name"]: row for row in json.loads(figures.read_text())["rows"]}
    for share in (5, 10, 20, 30, 50):
        assert rows[f"ebbtide_{share}.bitwise_equal"]["value"] is True
        assert rows[f"ebbtide_{share}.over_plain"]["value"] > 0
        assert rows[f"ebbtide_{share}.predicted_off"]["value"] >= 0  # a plan was followed
        assert 0 < rows[f"ebbtide_{share}.peak"]["value"] < rows["plain.saved"]["value"]
    assert rows["regions.bitwise_equal"]["value"] is True and rows["regions.over_checkpoint"]["value"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_interval_of_a_ratio():
    import nvme_bench

    ratio, low, high = nvme_bench.interval([1.0, 1.1, 0.9, 1.0, 1.05], [2.0, 2.2, 1.8, 2.0, 2.1])
    assert ratio == pytest.approx(2) and low <= 2 <= high  # their time over ours: we are twice as fast
    (row,) = nvme_bench.ratio_rows("x", [1.0] * 5, [0.9] * 5, 0.98)
    assert row.value == pytest.approx(0.9) and row.met is False
    (row,) = nvme_bench.ratio_rows("x", [1.0] * 6, [0.9] * 4 + [1.1] * 2, 0.98)
    assert row.met is True  # the interval reaches it


def test_nvme_says_why_a_peer_is_not_beside_it(tmp_path, monkeypatch):
    import nvme_bench
    import peers
    import ways

    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ways.Unavailable, match="not installed: -- --peers does"):
        nvme_bench.import_peer("no-such-peer", "no_such_peer")
    module = tmp_path / "broken-peer/broken_peer.py"
    (tmp_path / "broken-peer/broken_peer-1.2.dist-info").mkdir(parents=True)
    (tmp_path / "broken-peer/broken_peer-1.2.dist-info/METADATA").write_text("Name: broken-peer\nVersion: 1.2\n")
    module.write_text("import what_it_needs\n")
    with pytest.raises(ways.Unavailable, match="No module named 'what_it_needs'"):
        nvme_bench.import_peer("broken-peer", "broken_peer")
    module.write_text("answer = 42\n")
    assert nvme_bench.import_peer("broken-peer", "broken_peer").answer == 42


@pytest.mark.parametrize("option, word", [("--folder=/no/such/folder", "/no/such/folder"), ("--size=1MiB", "256 MiB"), ("--rounds=0", "'0'")])
def test_nvme_refuses_bad_input_in_one_line(option, word):
    refused = run([sys.executable, BENCH / "run.py", "nvme", "--", option])
    assert refused.returncode == 2 and word in refused.stderr and refused.stderr.count("\n") == 1
