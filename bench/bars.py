"""Progress of the contenders: a bar each on a terminal, a line a step elsewhere; on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bars:
    """Made by `bars`. A bar appears when its contender begins."""

    def __init__(self, progress: Progress, console: Console, steps: int):
        self._progress, self._console, self._steps = progress, console, steps
        self._bars = {}
        self._done = {}

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False)

    def begin(self, name: str) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=self._steps, step="")
            self._done[name] = 0

    def advance(self, name: str, seconds: float) -> None:
        self._done[name] += 1
        self._progress.update(self._bars[name], advance=1, step=f"{seconds:.2f} s")
        if not self._console.is_terminal:
            self.say(f"{name} step {self._done[name]}/{self._steps} {seconds:.2f} s")

    def killed(self, name: str) -> None:
        self.begin(name)
        self._progress.update(self._bars[name], step="killed")
        if not self._console.is_terminal:
            self.say(f"{name} killed")


@contextmanager
def bars(steps: int) -> Iterator[Bars]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[step]:>9}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress, console, steps)
