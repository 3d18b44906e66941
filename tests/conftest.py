"""What all Python tests share."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The source tree."""
    return ROOT


@pytest.fixture(scope="session")
def build_dir() -> Path:
    """The build tree under test: build/, or what EBBTIDE_BUILD_DIR says."""
    build = Path(os.environ.get("EBBTIDE_BUILD_DIR", ROOT / "build")).absolute()
    if not (build / "CMakeCache.txt").exists():
        pytest.fail(f"{build} is no build tree: run `bash setup.sh`, or set EBBTIDE_BUILD_DIR")
    return build


@pytest.fixture(scope="session")
def long_run() -> None:
    """For tests of minutes: skips unless `tests/run.sh --long`."""
    if os.environ.get("EBBTIDE_LONG") != "1":
        pytest.skip("takes minutes: only with --long (EBBTIDE_LONG=1)")


@pytest.fixture(scope="session")
def compile_environment() -> dict[str, str]:
    """The environment for builds inside tests, with a compiler cache where there is one."""
    environment = dict(os.environ, CMAKE_BUILD_PARALLEL_LEVEL="2", CMAKE_GENERATOR="Ninja")
    if shutil.which("ccache"):
        environment |= {"CMAKE_C_COMPILER_LAUNCHER": "ccache", "CMAKE_CXX_COMPILER_LAUNCHER": "ccache", "CCACHE_BASEDIR": str(ROOT)}
    return environment


@pytest.fixture(scope="session")
def run():
    """Runs a command and returns its stdout; a failure shows all that it printed."""

    def run(*command, **options) -> str:
        result = subprocess.run([str(part) for part in command], text=True, capture_output=True, **options)
        assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    return run
