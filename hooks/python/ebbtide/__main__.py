"""Ebbtide's command line: `python -m ebbtide COMMAND`."""

import argparse

from . import _bench_command, _doctor, _paths, _plan_command, _trace_command


class Parser(argparse.ArgumentParser):
    """What is wrong in one line, and exit code 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def main(arguments=None):
    parser = Parser(prog="python -m ebbtide", description="Ebbtide's command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    cmake_prefix = commands.add_parser("cmake-prefix", help="print what to put in CMAKE_PREFIX_PATH to find_package(Ebbtide)")
    cmake_prefix.set_defaults(run=lambda parser, arguments: print(_paths.cmake_prefix()))
    _bench_command.add_to(commands)
    _doctor.add_to(commands)
    _plan_command.add_to(commands)
    _trace_command.add_to(commands)
    arguments = parser.parse_args(arguments)
    arguments.run(commands.choices[arguments.command], arguments)


if __name__ == "__main__":
    main()
