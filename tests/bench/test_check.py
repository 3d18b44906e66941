"""check.sh: what is worse, and what is only noise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import check  # noqa: E402


def row(name, value, unit="x", goal="", part="gpt"):
    return {"part": part, "name": name, "value": value, "unit": unit, "goal": goal, "met": None}


def verdicts(old, new, **more):
    both = [{"rows": rows, "by_name": {(r["part"], r["name"]): r for r in rows}, "noise": noise} for rows, noise in zip((old, new), more.get("noise", ({}, {})))]
    return {finding.name: finding.verdict for finding in check.compare(*both) if finding.verdict}


@pytest.mark.parametrize(
    "old, new, unit, goal, verdict",
    [
        (1.00, 1.07, "x", "", ""),
        (1.00, 1.10, "x", "", "WORSE"),
        (1.10, 1.00, "x", "", "better"),
        (1.00, 0.90, "x", ">= 0.98", "WORSE"),
        (0.37, 0.30, "", ">= 0.37", "WORSE"),
        (0.02, 0.04, "", "<= 0.02", "WORSE"),
        (0.002, 0.004, "", "<= 0.02", ""),
        (0.20, 0.90, "", "", ""),  # a share without a goal is not judged
        (True, False, "", "true", "WORSE"),
        (False, True, "", "true", "better"),
        (5.0, 9.0, "s", "", ""),  # a time
        (100, 900, "B", "<= 200", ""),
    ],
)
def test_a_row(old, new, unit, goal, verdict):
    assert verdicts([row("a", old, unit, goal)], [row("a", new, unit, goal)]).get("a", "") == verdict


def test_rows_that_are_gone_or_new():
    assert verdicts([row("a", 1.0), row("b", 5.0, "s")], [row("c", 1.0)]) == {"a": "GONE", "b": "GONE", "c": "new"}
    assert verdicts([row("a", 1.0)], [row("a", None)]) == {"a": "GONE"}


def test_rounds_that_vary_more_are_let_vary_more():
    key = ("gpt", "a.over_plain")
    assert verdicts([row(key[1], 1.0)], [row(key[1], 1.2)], noise=({key: 0.15}, {key: 0.15})) == {}
    each = [1.0, 1.1, 1.2, 1.3]
    models = [{"model": "gpt", "contenders": [{"name": "a", "over_plain_each": each}, {"name": "b", "over_plain_each": [1.0]}]}]
    assert check.noise({"models": models}) == {key: pytest.approx(2 * 0.25 / 2 / 1.15)}


def test_the_command(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps({"machine": "m", "commit": "c", "torch": "t", "rows": [row("a", 1.0)]}))
    new.write_text(json.dumps({"machine": "m", "commit": "d", "torch": "t", "rows": [row("a", 1.5)]}))

    def run(*arguments):
        return subprocess.run(["bash", BENCH / "check.sh", *arguments], capture_output=True, text=True)

    same = run(old, old)
    assert same.returncode == 0 and "no regression in 1 rows" in same.stdout
    worse = run(old, new)
    assert worse.returncode == 1 and "WORSE" in worse.stdout and "1 of 1 rows are worse or gone" in worse.stdout
    assert run(old, new, "--tolerance=60%").returncode == 0
    refused = run(old, tmp_path / "none.json")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    new.write_text("[]")
    assert run(old, new).returncode == 2
