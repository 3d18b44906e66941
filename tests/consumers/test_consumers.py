"""Projects of users, built against Ebbtide in each way that CMake offers."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def prefix(build_dir, run, tmp_path_factory):
    """`cmake --install` of the build under test."""
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build_dir, "--prefix", prefix)
    return prefix


def without_torch(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which no python on the PATH has torch."""
    clean = {key: value for key, value in environment.items() if key not in {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH"}}
    return clean | {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONNOUSERSITE": "1"}


def configure(source, build, run, environment, *options):
    run("cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", *options, env=environment)


def test_installed_headers_and_files(prefix, root):
    for room in ("pinned_pool", "nvme", "transfer", "store", "hooks"):
        installed = {file.name for file in (prefix / "include" / "ebbtide" / room).iterdir()}
        assert installed == {file.name for file in (root / room).glob("*.h")}
    for umbrella in ("core.h", "ebbtide.h"):
        assert (prefix / "include/ebbtide" / umbrella).is_file()
    assert not (prefix / "python").exists() and not list(prefix.rglob("*.py"))


def test_a_whole_program_by_find_package(prefix, run, compile_environment, tmp_path):
    """Nothing but the prefix and an interpreter that has torch is named: no CUDA toolkit, no GPU, no TORCH_CUDA_ARCH_LIST."""
    environment = {key: value for key, value in compile_environment.items() if key != "TORCH_CUDA_ARCH_LIST"}
    configure(HERE / "find_package", tmp_path / "build", run, environment, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DPython_EXECUTABLE={sys.executable}")
    run("cmake", "--build", tmp_path / "build", env=environment)
    (tmp_path / "spill").mkdir()
    report = run(tmp_path / "build" / "train", tmp_path / "spill")
    assert "device_budget" in report, report  # the nearest name, in the ConfigError that it prints last


def test_folders_of_one_project_may_each_find_it(prefix, run, compile_environment, tmp_path):
    """Variables are each folder's own, the target is the project's."""
    (tmp_path / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.24)\nproject(p LANGUAGES CXX)\nadd_subdirectory(a)\nadd_subdirectory(b)\n")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "CMakeLists.txt").write_text(
            "find_package(Ebbtide REQUIRED COMPONENTS ebbtide)\nget_target_property(libraries Ebbtide::ebbtide INTERFACE_LINK_LIBRARIES)\n"
        )
    configure(tmp_path, tmp_path / "build", run, compile_environment, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DPython_EXECUTABLE={sys.executable}")


def test_the_build_tree_is_a_prefix_too(build_dir, run, compile_environment, tmp_path):
    configure(HERE / "find_package", tmp_path, run, compile_environment, f"-DCMAKE_PREFIX_PATH={build_dir}", f"-DPython_EXECUTABLE={sys.executable}")


def test_core_alone_needs_no_torch(prefix, run, compile_environment, tmp_path):
    environment = without_torch(compile_environment)
    configure(HERE / "find_package_core", tmp_path, run, environment, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path, env=environment)
    assert run(tmp_path / "core").strip() == str(64 << 20)


def find_package(prefix, tmp_path, environment, arguments, *options):
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.24)\nproject(p LANGUAGES CXX)\nfind_package(Ebbtide {arguments})\n"
        'if(TARGET Ebbtide::core)\n message(STATUS "has core")\nendif()\nif(TARGET Ebbtide::ebbtide)\n message(STATUS "has ebbtide")\nendif()\n'
    )
    result = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}", *options], text=True, capture_output=True, env=environment
    )
    # CMake breaks the lines of its messages where it likes.
    return result.returncode, " ".join((result.stdout + result.stderr).split())


def test_without_torch_find_package_gives_core_and_says_why(prefix, compile_environment, tmp_path):
    code, output = find_package(prefix, tmp_path, without_torch(compile_environment), "REQUIRED")
    assert code == 0 and "has core" in output and "has ebbtide" not in output
    assert "no torch found" in output


def test_ebbtide_demanded_without_torch_fails_and_says_what_to_do(prefix, compile_environment, tmp_path):
    code, output = find_package(prefix, tmp_path, without_torch(compile_environment), "REQUIRED COMPONENTS ebbtide")
    assert code != 0 and "no torch found" in output and "EBBTIDE_TORCH_ROOT" in output


@pytest.mark.parametrize("version, said", [("2.99.0", "built with torch"), ("2.3.1", "or newer")])
def test_another_torch_is_refused(prefix, compile_environment, tmp_path, version, said):
    other = tmp_path / "torch"
    header = other / "include/torch/headeronly/version.h"
    header.parent.mkdir(parents=True)
    header.write_text("".join(f"#define TORCH_VERSION_{part} {n}\n" for part, n in zip(("MAJOR", "MINOR", "PATCH"), version.split("."))))
    (other / "lib").mkdir()
    for name in ("torch", "torch_cpu", "c10"):
        (other / "lib" / f"lib{name}.so").touch()
    code, output = find_package(prefix, tmp_path, compile_environment, "REQUIRED COMPONENTS ebbtide", f"-DEBBTIDE_TORCH_ROOT={other}")
    assert code != 0 and said in output and version in output


@pytest.mark.parametrize("way", ["add_subdirectory", "FetchContent"])
def test_built_as_part_of_another_project(way, root, build_dir, run, compile_environment):
    """In the build folder, so that the next run compiles only what has changed."""
    build = build_dir / "consumer"
    configure(HERE / "from_source", build, run, without_torch(compile_environment), f"-DEBBTIDE_SOURCE={root}", f"-DWAY={way}")
    run("cmake", "--build", build, env=compile_environment)
    assert run(build / "core").strip() == str(64 << 20)
    assert not (build / "ebbtide" / "tests").exists(), "a project that only uses Ebbtide must not build its tests"
