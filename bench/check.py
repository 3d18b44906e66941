"""Compares two results of run.sh or compare.sh, OLD and NEW: their ratios, since times of other days and machines say nothing.

A ratio is a row without a unit of its own: unit "x" (a time over another beside it), or none (a share, a bool). Times, rates and bytes are left
alone. Which way is better a row's goal tells ("<= 1.05", ">= 0.98", "true"); without one, an "x" is a time over another, so less is better, and
a share is not judged.

How much worse is worse: two runs of the demo's model in bench/results have 1.24 and 1.25 for checkpoint, and, where a virtual disk takes part,
1.04 and 1.08 for Ebbtide at 10%. Twice that is let pass, 8%, or what OLD's and NEW's own rounds show where they are known (compare.sh's
`over_plain_each`): twice the quartiles' distance over the square root of their number, the two added in squares, if that is more. Differences
of less than 0.01 pass too: a share of 0.002 may double. What was true and is false is a regression, and so is a row that is gone.
"""

import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import cli

TOLERANCE = 0.08
SMALL = 0.01


@dataclass
class Finding:
    """`verdict`: "" where nothing is to be said, "better", "WORSE", "GONE" or "new"."""

    part: str
    name: str
    old: float | bool | None
    new: float | bool | None
    tolerance: float | None = None
    verdict: str = ""

    @property
    def regression(self) -> bool:
        return self.verdict in ("WORSE", "GONE")


def load(path: str) -> dict:
    try:
        result = json.loads(Path(path).read_text())
        rows = {(row["part"], row["name"]): row for row in result["rows"]}
    except OSError as error:
        raise cli.BadInput(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise cli.BadInput(f"{path}: no result of run.sh or compare.sh (there are no rows in it)") from None
    return result | {"by_name": rows, "noise": noise(result)}


def noise(result: dict) -> dict[tuple[str, str], float]:
    """Of compare.sh's ratios: what their median may be off by, as a share."""
    found = {}
    for model in result.get("models", []):
        for contender in model["contenders"]:
            each = contender.get("over_plain_each") or []
            if len(each) >= 3:
                low, middle, high = statistics.quantiles(each, n=4)
                found[model["model"], f"{contender['name']}.over_plain"] = 2 * (high - low) / math.sqrt(len(each)) / middle
    return found


def is_ratio(row: dict) -> bool:
    return row["value"] is not None and (row["unit"] == "x" or row["unit"] == "")


def less_is_better(row: dict) -> bool | None:
    """None where a row has no better."""
    if row["goal"].startswith("<="):
        return True
    if row["goal"].startswith(">="):
        return False
    return True if row["unit"] == "x" else None


def compare(old: dict, new: dict, tolerance: float = TOLERANCE) -> list[Finding]:
    findings = []
    for key, before in old["by_name"].items():
        after = new["by_name"].get(key)
        if not is_ratio(before):
            if after is None:
                findings.append(Finding(*key, before["value"], None, verdict="GONE"))
            continue
        if after is None or after["value"] is None:
            findings.append(Finding(*key, before["value"], None, verdict="GONE"))
        else:
            allowed = max(tolerance, math.hypot(old["noise"].get(key, 0), new["noise"].get(key, 0)))
            findings.append(_judge(key, before, after, allowed))
    for key in new["by_name"].keys() - old["by_name"].keys():
        if is_ratio(new["by_name"][key]):
            findings.append(Finding(*key, None, new["by_name"][key]["value"], verdict="new"))
    return findings


def _judge(key: tuple[str, str], before: dict, after: dict, tolerance: float) -> Finding:
    old, new = before["value"], after["value"]
    finding = Finding(*key, old, new, tolerance)
    if isinstance(old, bool) or isinstance(new, bool):
        finding.tolerance = None
        finding.verdict = "" if old == new or before["goal"] == after["goal"] == "" else "better" if new else "WORSE"
        return finding
    lower = less_is_better(before)
    if lower is None or abs(new - old) < SMALL:
        return finding
    change = (new - old) / abs(old) if old else math.copysign(math.inf, new - old)
    if not lower:
        change = -change
    finding.verdict = "WORSE" if change > tolerance else "better" if change < -tolerance else ""
    return finding


def text(findings: list[Finding], everything: bool) -> str:
    shown = [finding for finding in findings if everything or finding.verdict]
    value = lambda v: "" if v is None else str(v).lower() if isinstance(v, bool) else f"{v:.4g}"  # noqa: E731
    lines = [("part", "name", "old", "new", "may be off by", "")]
    lines += [(f.part, f.name, value(f.old), value(f.new), "" if f.tolerance is None else f"{f.tolerance:.0%}", f.verdict) for f in shown]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def percent(word: str) -> float:
    return cli.size_or_share(word if word.endswith("%") else word + "%")


def main() -> int:
    parser = cli.Parser(prog="check", description=__doc__.splitlines()[0])
    parser.add_argument("old", metavar="OLD", help="a result to compare with")
    parser.add_argument("new", metavar="NEW", help="the result that is looked at")
    parser.add_argument("--tolerance", type=percent, default=TOLERANCE, metavar="PER_CENT", help="how much worse a ratio may be (8%%)")
    parser.add_argument("--all", action="store_true", help="print what is as it was, too")
    arguments = parser.parse_args()
    old, new = load(arguments.old), load(arguments.new)
    findings = compare(old, new, arguments.tolerance)
    for word, result in (("old", old), ("new", new)):
        print(f"{word}: {result.get('machine', 'an unknown machine')}; commit {result.get('commit', 'unknown')}; torch {result.get('torch', 'unknown')}")
    print(text(findings, arguments.all))
    regressions = sum(finding.regression for finding in findings)
    judged = sum(finding.verdict != "new" for finding in findings)
    print(f"{regressions} of {judged} rows are worse or gone" if regressions else f"no regression in {judged} rows")
    return 1 if regressions else 0


if __name__ == "__main__":
    cli.run("check", main)
