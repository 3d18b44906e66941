"""What is tested on pretend accelerators, in processes of their own: torch takes a device for the whole of one."""

import sys

import pytest

SUBJECTS = ("peak_eager", "peak_checkpoint", "peak_region", "peak_compiled", "parameters", "peak_goal", "planned", "double_backward")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_on_pretend_accelerators(root, run, subject):
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", root / "tests" / "python" / "sim" / f"{subject}.py", cwd=root)
