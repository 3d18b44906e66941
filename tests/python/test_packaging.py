"""The wheel, and the check of torch at import."""

import os
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="session")
def site(root, run, compile_environment, tmp_path_factory):
    """What `pip install . --no-build-isolation` would install, in a folder of its own."""
    wheels = tmp_path_factory.mktemp("wheels")
    environment = compile_environment | {"CC": "cc", "CXX": "c++"}  # as CMake chooses: so the compiler cache knows the files already
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", wheels, root, env=environment)
    (wheel,) = wheels.glob("ebbtide-*.whl")
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def python(code, path, **options):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, path)))
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=environment, **options)


def test_wheel_holds_package_library_headers_and_cmake_files(site, root):
    package = site / "ebbtide"
    assert {file.name for file in (root / "hooks/python/ebbtide").glob("*.py")} | {"_build.py"} == {file.name for file in package.glob("*.py")}
    assert len(list(package.glob("_ebbtide*.so"))) == 1
    assert [file.name.split(".so")[0] for file in sorted(package.glob("lib/*.so*"))] == ["libebbtide", "libebbtide_core"], "each once, no copies for links"
    for file in ("include/ebbtide/ebbtide.h", "include/ebbtide/core.h", "include/ebbtide/store/store.h", "lib/cmake/Ebbtide/EbbtideConfig.cmake"):
        assert (package / file).is_file()
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"ebbtide"}


def test_wheel_works(site, tmp_path):
    result = python(
        "import torch, ebbtide\n"
        "x = torch.ones(64, 1024, requires_grad=True)\n"
        f"with ebbtide.Store(device_budget=0, spill_to={str(tmp_path)!r}) as store:\n"
        "    y = (x * 3).sin().sum()\n"
        "y.backward()\n"
        "assert torch.equal(x.grad, 3 * torch.full_like(x, 3).cos())\n"
        "print(ebbtide.__file__)",
        [site],
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(site))


def test_cmake_prefix_of_a_wheel_serves_find_package(site, root, run, compile_environment, tmp_path):
    environment = compile_environment | {"PYTHONPATH": str(site)}
    prefix = run(sys.executable, "-m", "ebbtide", "cmake-prefix", env=environment, cwd=tmp_path).strip()
    assert prefix == str(site / "ebbtide")
    for project in ("find_package", "find_package_core"):
        run("cmake", "-S", root / "tests/consumers" / project, "-B", tmp_path / project, f"-DCMAKE_PREFIX_PATH={prefix}",
            f"-DPython_EXECUTABLE={sys.executable}", env=environment)  # fmt: skip
    run("cmake", "--build", tmp_path / "find_package_core", env=environment)
    run(tmp_path / "find_package_core" / "core")


def test_cmake_prefix_of_a_build_tree(build_dir, run, tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(build_dir / "python"))
    assert run(sys.executable, "-m", "ebbtide", "cmake-prefix", env=environment, cwd=tmp_path).strip() == str(build_dir)


def test_another_torch_is_refused_before_the_library_is_loaded(build_dir, tmp_path):
    (tmp_path / "torch.py").write_text("__version__ = '1.0.2+cpu'\n")
    result = python(
        "import sys\n"
        "try:\n    import ebbtide\n"
        "except ImportError as error:\n    print(error)\n"
        "assert 'libebbtide' not in open('/proc/self/maps').read()\n"
        "assert 'ebbtide._ebbtide' not in sys.modules",
        [tmp_path, build_dir / "python"],
    )
    assert result.returncode == 0, result.stderr
    assert "1.0.2+cpu" in result.stdout and "was built with torch" in result.stdout
    assert "pip install . --no-build-isolation" in result.stdout, "it says what to do"


def test_a_missing_torch_is_named(build_dir):
    result = python(
        "import sys\nsys.modules['torch'] = None\ntry:\n    import ebbtide\nexcept ImportError as error:\n    print(error)",
        [build_dir / "python"],
    )
    assert "ebbtide needs torch" in result.stdout and "pip install" in result.stdout


@pytest.mark.parametrize("version, found", [("2.11.0", "2.11"), ("2.12.0a0+git123", "2.12"), ("3.0", "3.0")])
def test_major_minor(version, found):
    from ebbtide._check_torch import _major_minor

    assert _major_minor(version) == found
