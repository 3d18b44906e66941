"""Trains one GPT on one text five ways and compares them: plain, torch's checkpoint, Ebbtide, and plain and Ebbtide in C++.

Each contender is a process of its own. They take turns, one step each, so that only one computes at a time and the machine's drift
meets all alike. `bash bench/demo.sh` sets everything up first and passes its options on.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

import cli
import demo_result
import machine
import text
import train_gpt
from bars import Bars, bars
from contender import Contender, Died
from demo_result import Run
from memory_limit import MemoryLimit

CPP_PROGRAM = machine.ROOT / "build/bench/train_gpt"
# Neighbours here run next to each other, which is what their ratio asks for.
ORDER = ("plain", "ebbtide", "checkpoint", "plain_cpp", "ebbtide_cpp")


def parse_arguments():
    parser = cli.Parser(prog="demo", description=__doc__.splitlines()[0])
    train_gpt.add_training_options(parser)
    parser.add_argument(
        "--budget",
        type=cli.size_or_share,
        default="10%",
        help="activations that may stay in memory: a size, or a share of what plain saves (10%%)",
    )
    parser.add_argument(
        "--spill", metavar="DIR", default=tempfile.gettempdir(), help="folder on a disk for what leaves memory (%(default)s)"
    )
    parser.add_argument(
        "--memory", type=cli.size, metavar="SIZE", help="repeat plain and Ebbtide under this memory limit, like 1900M (root)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the bytes held over the time of a step")
    arguments = parser.parse_args()
    train_gpt.check_training_options(arguments)
    if arguments.steps < 2:
        raise cli.BadInput("--steps 1: at least 2 are needed, the first warms up")
    text.load_text(arguments.data, arguments.tokens)
    check_spill_folder(arguments.spill)
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path and not Path(path).absolute().parent.is_dir():
            raise cli.BadInput(f"{option} {path}: its folder does not exist")
    if not CPP_PROGRAM.exists():
        raise cli.BadInput(f"{CPP_PROGRAM} is missing: `bash setup.sh` builds it")
    if arguments.memory:
        with MemoryLimit(arguments.memory):
            pass  # what would fail after minutes fails now
    return arguments


def check_spill_folder(folder: str) -> None:
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise cli.BadInput(f"--spill {folder}: no folder that can be written to")
    if subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout.strip() in ("tmpfs", "ramfs"):
        print(
            f"warning: --spill {folder} is RAM, so what is spilled there stays in memory; name a folder on a disk", file=sys.stderr
        )


def check_space(folder: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise cli.BadInput(
            f"--spill {folder}: {cli.format_bytes(free)} free, and about {cli.format_bytes(needed)} are needed there"
        )


class Demo:
    """Starts the contenders, lets them take turns and collects what they measured."""

    def __init__(self, arguments, progress: Bars):
        self._arguments = arguments
        self._progress = progress
        self.budget_bytes = 0
        self.runs: dict[str, Run] = {}
        self.reports: dict[str, str] = {}
        self.messages: dict[str, str] = {}
        self.timelines: dict[str, list] = {}

    def compete(self) -> None:
        """All five, a step each in turn."""
        with ExitStack() as stack:
            self._progress.say("counting what plain saves in a step")
            contenders = {"plain": stack.enter_context(Contender("plain", self._command("plain")))}
            contenders["plain"].wait_ready()
            self._take_budget(contenders["plain"].ask("observe"))
            self._progress.say(f"{cli.format_bytes(self._saved_bytes)}; starting the others")
            for name in ORDER[1:]:
                contenders[name] = stack.enter_context(Contender(name, self._command(name)))
            for name in ORDER[1:]:
                contenders[name].wait_ready()
            self.runs = {name: Run(name) for name in ORDER}
            for name in ("plain", "plain_cpp"):  # the same model saves the same
                self.runs[name].saved_bytes = self.runs[name].kept_bytes = self._saved_bytes
                self.runs[name].offloaded_bytes = self.runs[name].spilled_bytes = self.runs[name].recomputed_bytes = 0
            self._account_checkpoint(contenders["checkpoint"].ask("observe"))
            for _ in range(self._arguments.steps):
                for name in ORDER:
                    self._step(contenders[name], self.runs[name])
            if self._arguments.plot:
                self.timelines["ebbtide"] = contenders["ebbtide"].ask("observe")["timeline"]
            for name in ORDER:
                self._finish(contenders[name], self.runs[name])
        for name, reference in (("checkpoint", "plain"), ("ebbtide", "plain"), ("ebbtide_cpp", "plain_cpp")):
            self.runs[name].compare(self.runs[reference])

    def repeat_under_limit(self) -> None:
        """Plain and Ebbtide, one after the other, each in a fresh group of --memory bytes."""
        for name in ("plain", "ebbtide"):
            run = self.runs[f"{name}_capped"] = Run(f"{name}_capped")
            with MemoryLimit(self._arguments.memory) as limit, Contender(run.name, limit.wrap(self._command(name))) as contender:
                try:
                    contender.wait_ready()
                    for _ in range(self._arguments.steps):
                        self._step(contender, run)
                    self._finish(contender, run)
                except Died:
                    if limit.killed_processes() == 0:
                        raise
                    run.exit = "killed"
                    self._progress.killed(run.name)
            if name == "plain":
                run.saved_bytes = self._saved_bytes
            run.compare(self.runs["plain"])

    def _take_budget(self, observed: dict) -> None:
        self._saved_bytes = observed["saved_bytes"]
        self.timelines["plain"] = observed["timeline"]
        budget = self._arguments.budget
        self.budget_bytes = int(self._saved_bytes * budget) if isinstance(budget, float) else budget
        # Two contenders spill, and each holds its file until it ends.
        check_space(self._arguments.spill, 2 * max(0, self._saved_bytes - self.budget_bytes))

    def _account_checkpoint(self, observed: dict) -> None:
        run = self.runs["checkpoint"]
        run.saved_bytes, run.kept_bytes = self._saved_bytes, observed["saved_bytes"]
        run.offloaded_bytes, run.spilled_bytes, run.recomputed_bytes = 0, 0, self._saved_bytes - observed["saved_bytes"]

    def _step(self, contender: Contender, run: Run) -> None:
        self._progress.begin(run.name)
        run.add_step(contender.ask("step"))
        self._progress.advance(run.name, run.step_s[-1])

    def _finish(self, contender: Contender, run: Run) -> None:
        end = contender.finish()
        run.peak_rss_bytes = end["peak_rss_bytes"]
        run.peak_device_bytes = end["peak_device_bytes"]
        if end["report"]:
            self.reports[run.name] = end["report"]
        if contender.messages():
            self.messages[run.name] = contender.messages()

    def _command(self, name: str) -> list[str]:
        mode, _, language = name.partition("_")
        program = [str(CPP_PROGRAM)] if language == "cpp" else [sys.executable, str(machine.ROOT / "bench/train_gpt.py")]
        options = {option: getattr(self._arguments, option) for option in ("device", "layers", "width", "tokens", "batch", "data", "seed")}
        options["mode"] = mode
        if mode == "ebbtide":
            options |= {"budget": self.budget_bytes, "spill": self._arguments.spill}
        return program + ["--turns"] + [f"--{option}={value}" for option, value in options.items()]


def model_name(arguments) -> str:
    precision = ", bfloat16 autocast on a GPU" if arguments.device == "cuda" else ""
    return f"GPT of {arguments.layers} layers, width {arguments.width}, {arguments.batch} x {arguments.tokens} tokens{precision}"


def print_results(demo: Demo, arguments) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    title = f"{model_name(arguments)}; budget {cli.format_bytes(demo.budget_bytes)}"
    if arguments.memory:
        title += f"; capped: {cli.format_bytes(arguments.memory)}"
    console.print(demo_result.table(demo.runs, title))
    for name, report in demo.reports.items():
        if name in ("ebbtide", "ebbtide_capped"):
            console.rule(f"report of {name}", align="left")
            console.print(report, markup=False, highlight=False)
    for name, messages in demo.messages.items():
        console.rule(f"messages of {name}", align="left")
        console.print(messages, markup=False, highlight=False)


def main() -> int:
    arguments = parse_arguments()
    with bars(arguments.steps) as progress:
        demo = Demo(arguments, progress)
        try:
            demo.compete()
            if arguments.memory:
                demo.repeat_under_limit()
        except Died as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
    print_results(demo, arguments)
    if arguments.json:
        runs = [run.to_json() for run in demo.runs.values()]
        result = machine.provenance() | {"runs": runs, "ratios": demo_result.ratios(demo.runs)}
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        import plot

        title = f"{model_name(arguments)}: forward and backward"
        plot.draw(arguments.plot, demo.timelines["plain"], demo.timelines["ebbtide"], demo.budget_bytes, title)
    outgrown = arguments.memory and demo.runs["ebbtide_capped"].exit != "ok"
    failed = outgrown or any(run.bitwise_equal is False for run in demo.runs.values())
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run("demo", main)
