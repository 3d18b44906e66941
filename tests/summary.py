"""The last lines of run.sh: how far sweeps came, each skip with its reason, and the totals of the JUnit files given.

Usage: summary.py STATUS FILE...; exits 1 if STATUS is not 0, a file is missing (its run broke off) or a test failed.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def skip_reason(case: ElementTree.Element) -> str:
    """pytest's message, or what GoogleTest printed after `FILE:LINE: Skipped`."""
    printed = re.search(r"^\S+:\d+: Skipped\n(.*)$", case.findtext("system-out") or "", re.MULTILINE)
    return printed[1] if printed else case.find("skipped").get("message", "").strip()


def main(status: str, files: list[str]) -> int:
    passed, failed, skipped, sweeps = 0, 0, [], []
    broken = status != "0"
    for file in files:
        if not Path(file).exists():
            print(f"no {file}: that run broke off")
            broken = True
            continue
        for case in ElementTree.parse(file).iter("testcase"):
            sweeps += re.findall(r"^sweep: .*$", case.findtext("system-out") or "", re.MULTILINE)
            if case.find("failure") is not None or case.find("error") is not None:
                failed += 1
            elif case.find("skipped") is not None:
                skipped.append(f"{case.get('classname')}::{case.get('name')}: {skip_reason(case)}")
            else:
                passed += 1
    for line in sweeps:
        print(line)
    for line in skipped:
        print("skipped", line)
    print(f"{passed} passed, {failed} failed, {len(skipped)} skipped")
    return int(broken or failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
