"""`python -m ebbtide cmake-prefix`: where CMake finds the C++ library of this package."""

import argparse

from . import _paths


def main():
    parser = argparse.ArgumentParser(prog="python -m ebbtide", description="Ebbtide's command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("cmake-prefix", help="print what to put in CMAKE_PREFIX_PATH to find_package(Ebbtide)")
    parser.parse_args()
    print(_paths.cmake_prefix())


if __name__ == "__main__":
    main()
