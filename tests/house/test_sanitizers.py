"""The part without torch passes its tests under the sanitizers."""

import pytest


@pytest.mark.parametrize("preset", ["asan", "tsan"])
def test_core_under_sanitizer(root, run, long_run, compile_environment, preset):
    run("cmake", "--preset", preset, cwd=root, env=compile_environment)
    run("cmake", "--build", "--preset", preset, cwd=root, env=compile_environment)
    run("ctest", "--preset", preset, "--parallel", "2", cwd=root)
