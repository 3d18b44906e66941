"""Where the C++ side of this package lies."""

from pathlib import Path


def cmake_prefix() -> str:
    """The folder for CMAKE_PREFIX_PATH with which find_package(Ebbtide) finds the headers and library of this very package.

    In an installed package that is the package's own folder; in a build tree (PYTHONPATH=build/python) the build folder.
    """
    package = Path(__file__).parent.absolute()  # not resolve(): in a build tree this file is a link into the sources
    for prefix, config in ((package, "lib/cmake/Ebbtide"), (package.parent.parent, "cmake")):
        if (prefix / config / "EbbtideConfig.cmake").is_file():
            return str(prefix)
    raise FileNotFoundError(f"{package} has no CMake files: this copy of ebbtide was not installed by pip; run `pip install .` in its source folder")
