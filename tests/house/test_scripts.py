"""The scripts themselves: syntax, options, and the counting at the end of run.sh."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("script", ["setup.sh", "tests/run.sh", ".ci/run", "bench/demo.sh", "bench/run.sh", "bench/compare.sh", "bench/check.sh", "bench/larger_than_gpu.sh"])
def test_scripts_parse(root, run, script):
    run("bash", "-n", root / script)


@pytest.mark.parametrize("script", ["setup.sh", "tests/run.sh"])
def test_an_unknown_option_is_named(root, script):
    result = subprocess.run(["bash", root / script, "--fro"], text=True, capture_output=True)
    assert result.returncode != 0
    assert "--fro" in result.stderr


CTEST = """<testsuite><testcase name="Slab.Maps" classname="Slab.Maps" status="run"/>
<testcase name="Uring.Reads" classname="Uring.Reads" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>
<system-out>[ RUN      ] Uring.Reads
/somewhere/uring_queue_test.cpp:12: Skipped
io_uring is forbidden here

[  SKIPPED ] Uring.Reads (0 ms)</system-out></testcase></testsuite>"""
PYTEST = """<testsuites><testsuite><testcase classname="a" name="b"/><testcase classname="a" name="c">{}</testcase></testsuite></testsuites>"""


@pytest.mark.parametrize(
    "status, third, last_line, code",
    [
        ("0", "", "3 passed, 0 failed, 1 skipped", 0),
        ("0", '<failure message="no"/>', "2 passed, 1 failed, 1 skipped", 1),
        ("0", '<error message="no"/>', "2 passed, 1 failed, 1 skipped", 1),
        ("0", '<skipped message="no GPU"/>', "2 passed, 0 failed, 2 skipped", 0),
        ("1", "", "3 passed, 0 failed, 1 skipped", 1),  # a run that failed in another way than by a test
    ],
)
def test_summary_counts(root, tmp_path, status, third, last_line, code):
    (tmp_path / "ctest.xml").write_text(CTEST)
    (tmp_path / "pytest.xml").write_text(PYTEST.format(third))
    result = subprocess.run(
        [sys.executable, root / "tests/summary.py", status, tmp_path / "ctest.xml", tmp_path / "pytest.xml"], text=True, capture_output=True
    )
    assert result.returncode == code
    assert result.stdout.splitlines()[-1] == last_line
    assert "Uring.Reads: io_uring is forbidden here" in result.stdout


def test_summary_of_a_run_that_broke_off_fails(root, tmp_path):
    result = subprocess.run([sys.executable, root / "tests/summary.py", "0", tmp_path / "none.xml"], text=True, capture_output=True)
    assert result.returncode == 1
