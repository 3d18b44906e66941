"""Contenders that train the same model side by side, a step each in turn.

Each is a process of its own. As many as memory has room for are there at once, each group with a plain one of its own, whose step in
the same round is what theirs are compared with: the machine's drift meets both alike. The order of a round is drawn anew each time.
Where one model fills the device they are there one after the other instead, and plain's second process tells how far the machine drifts.
"""

import random
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import cli
import contenders
import machine
import peers
from contender import Contender, Died
from contenders import Entry
from memory_limit import MemoryLimit
from subjects import SUBJECTS, Sizes
from swap_space import swap_space

PROCESS_BYTES = 700 << 20  # of one with torch loaded
ROOM = {"cpu": 0.8, "cuda": 0.92}  # of the free memory that the contenders together may take


@dataclass
class Conditions:
    """What all contenders of a model share."""

    model: str
    sizes: Sizes
    device: str
    spill: str
    warmup: int
    steps: int
    seed: int = 0
    together: int | None = None
    alone: bool = False  # one after the other
    swap: bool = False
    shrunk: bool = False  # to sizes that say nothing of speed
    limits: dict[str, int] = field(default_factory=dict)  # of a contender's memory, bytes
    label: str = ""  # where the model's name does not tell it from another

    def __post_init__(self):
        self.label = self.label or self.model
    deterministic: bool = False
    peers: Path = peers.FOLDER

    def command(self, entry: Entry, budget: int | None, device_share: float | None = None, batch: int | None = None) -> list[str]:
        options = {"model": self.model, "contender": entry.name, "device": self.device, "spill": self.spill, "seed": self.seed, "peers": self.peers}
        options |= {size: getattr(self.sizes, size) for size in ("layers", "width", "tokens", "batch")}
        options |= {"batch": batch} if batch else {}
        options |= {"budget": budget} if budget is not None else {}
        options |= {"device-share": device_share} if device_share else {}
        flags = ["--deterministic"] if self.deterministic else []
        return [sys.executable, str(machine.ROOT / "bench/compare_contender.py"), *flags] + [f"--{name}={value}" for name, value in options.items()]

    @property
    def tokens(self) -> int:
        """A step's, or its images."""
        return self.sizes.batch * (1 if SUBJECTS[self.model].images else self.sizes.tokens)


@dataclass
class Result:
    """What a contender did. `exit`: ok, unavailable, failed or killed, and then the reason."""

    entry: Entry
    exit: str = "ok"
    reason: str = ""
    steps: list[dict] = field(default_factory=list)
    over_plain: list[float] = field(default_factory=list)  # of each timed step
    end: dict = field(default_factory=dict)
    budget_bytes: int | None = None
    limit_bytes: int | None = None
    bitwise_equal: bool | None = None

    def stop(self, exit: str, reason: str) -> None:
        self.exit, self.reason = exit, reason

    def seconds(self, warmup: int) -> float | None:
        timed = self.steps[warmup:]
        return statistics.median(step["seconds"] for step in timed) if timed else None

    @property
    def memory_bytes(self) -> int | None:
        """What the steps needed: a GPU's at their peak; else what the process grew by."""
        if not self.end:
            return None
        if self.end["peak_device_bytes"] is not None:
            return self.end["peak_device_bytes"]
        return self.end["peak_rss_bytes"] - self.end["rss_at_start_bytes"]


@dataclass
class Outcome:
    conditions: Conditions
    saved_bytes: int = 0
    results: dict[str, Result] = field(default_factory=dict)
    trace: dict | None = None


class Competition:
    """`say` gets a line of progress each."""

    def __init__(self, conditions: Conditions, entries: list[Entry], say: Callable[[str], None], trace_of: str | None = None):
        self._at, self._entries, self._say, self._trace_of = conditions, entries, say, trace_of
        self.outcome = Outcome(conditions)
        self._order = random.Random(conditions.seed)
        self._plain = next(entry for entry in entries if entry.name == "plain")

    def run(self) -> Outcome:
        """Errors: Died where plain itself does; BadInput."""
        self._measure_plain()
        others = [entry for entry in self._entries if entry is not self._plain]
        if self._at.alone:
            for entry in (self._plain, *sorted(others, key=lambda entry: entry.name == "plain_again")):
                self._run_alone(entry)
            others = []
        for group in _split(others, self._at.together or self._room()) if others else ():
            self._run_group(group)
        self._compare_bits()
        results = self.outcome.results
        self.outcome.results = {entry.name: results[entry.name] for entry in self._entries}
        return self.outcome

    def _measure_plain(self) -> None:
        """What plain saves, which the budgets are shares of. On a GPU two of them also tell whether equal runs give equal bits there."""
        with ExitStack() as stack:
            both = [self._start(stack, self._plain) for _ in range(2 if self._at.device == "cuda" and not self._at.deterministic else 1)]
            self._facts = [contender.wait_ready() for contender in both][0]
            self.outcome.saved_bytes = both[0].ask("observe")["saved_bytes"]
            if len(both) == 2:
                digests = [[contender.ask("step")["digest"] for _ in range(2)] for contender in both]
                self._at.deterministic = digests[0] != digests[1]
        self._say(f"{self._at.label}: {self._at.sizes}; plain saves {cli.format_bytes(self.outcome.saved_bytes)}")
        if self._at.deterministic:
            self._say(f"{self._at.label}: two plain runs differ, so all use deterministic algorithms")

    def _room(self) -> int:
        """How many fit beside each other: each keeps weights and optimizer, and one at a time has gradients and activations."""
        facts = self._facts
        states = 2 * facts["trained_bytes"] if SUBJECTS[self._at.model].adamw else 0
        if self._at.device == "cuda":
            import torch

            free, each = torch.cuda.mem_get_info()[0], PROCESS_BYTES + facts["weights_bytes"] + states
        else:
            free, each = _available_bytes(), max(PROCESS_BYTES, facts["rss_bytes"]) + states
        room = ROOM[self._at.device] * free - 1.5 * self.outcome.saved_bytes - facts["trained_bytes"]
        return max(1, int(room // each) - 1)

    def _run_group(self, group: list[Entry]) -> None:
        results = self.outcome.results
        with ExitStack() as stack:
            running = {"plain": self._start(stack, self._plain)}
            for entry in group:
                result = results[entry.name] = Result(entry)
                try:
                    running[entry.name] = self._start_under(stack, entry, result)
                except cli.BadInput as reason:
                    result.stop("unavailable", str(reason))
            plain = Result(self._plain)
            self._each_ready(running, results)
            for number in range(self._at.warmup + self._at.steps):
                self._say(f"{self._at.label}: {', '.join(running)}: step {number + 1} of {self._at.warmup + self._at.steps}")
                for name in self._order.sample(list(running), len(running)):
                    self._ask(running, name, results.get(name) if name != "plain" else plain, "step")
                if number >= self._at.warmup:
                    for name in running:
                        result = plain if name == "plain" else results[name]
                        result.over_plain.append(result.steps[-1]["seconds"] / plain.steps[-1]["seconds"])
            if self._trace_of in running:
                self.outcome.trace = running[self._trace_of].ask("trace")
            for name in list(running):
                self._ask(running, name, plain if name == "plain" else results[name], "finish")
            if "plain" not in results:
                results["plain"] = plain
                self.outcome.results = results = {"plain": plain} | results
            elif [s["digest"] for s in plain.steps] != [s["digest"] for s in results["plain"].steps]:
                results["plain"].bitwise_equal = False

    def _run_alone(self, entry: Entry) -> None:
        results = self.outcome.results
        result = results[entry.name] = Result(entry)
        self._say(f"{self._at.label}: {entry.name}")
        with ExitStack() as stack:
            try:
                running = {entry.name: self._start_under(stack, entry, result)}
            except cli.BadInput as reason:
                return result.stop("unavailable", str(reason))
            self._each_ready(running, results)
            for _ in range(self._at.warmup + self._at.steps):
                if running:
                    self._ask(running, entry.name, result, "step")
            if running and self._trace_of == entry.name:
                self.outcome.trace = running[entry.name].ask("trace")
            if running:
                self._ask(running, entry.name, result, "finish")
        timed = zip(result.steps[self._at.warmup :], results["plain"].steps[self._at.warmup :])
        result.over_plain = [mine["seconds"] / plain["seconds"] for mine, plain in timed]

    def _ask(self, running: dict[str, Contender], name: str, result: Result, word: str) -> None:
        try:
            if word == "finish":
                result.end = running[name].finish()
            else:
                result.steps.append(running[name].ask(word))
        except (Died, cli.BadInput) as error:
            if name == "plain":
                raise
            killed = isinstance(error, Died) and error.code == -9
            result.stop("killed" if killed else "failed", "for want of memory" if killed else _last_line(str(error)))
            del running[name]

    def _each_ready(self, running: dict[str, Contender], results: dict[str, Result]) -> None:
        for name in list(running):
            try:
                ready = running[name].wait_ready()
            except (Died, cli.BadInput) as error:
                if name == "plain":
                    raise
                ready = {"ready": False, "reason": _last_line(str(error))}
            if not ready["ready"]:
                results[name].stop("unavailable", ready["reason"])
                del running[name]

    def _start_under(self, stack: ExitStack, entry: Entry, result: Result) -> Contender:
        result.budget_bytes = self.budget(entry)
        if entry.name in self._at.limits:
            result.limit_bytes = self._at.limits[entry.name]
            limit = stack.enter_context(MemoryLimit(result.limit_bytes))
            return self._start(stack, entry, result.budget_bytes, limit.wrap)
        if not entry.swaps:
            return self._start(stack, entry, result.budget_bytes)
        if not self._at.swap:
            raise cli.BadInput("asked for with --swap")
        if self._at.device != "cpu":
            raise cli.BadInput("a GPU's memory is not swapped")
        facts, saved = self._facts, self.outcome.saved_bytes
        states = 2 * facts["trained_bytes"] if SUBJECTS[self._at.model].adamw else 0
        # What Ebbtide's process takes at 10%: the tensors that stay, 5/4 of that for those that come back, and what ops work with.
        result.limit_bytes = facts["anonymous_bytes"] + facts["trained_bytes"] + states + saved * 9 // 40 + (64 << 20)
        stack.enter_context(swap_space(2 * saved + (1 << 30), self._at.spill))
        limit = stack.enter_context(MemoryLimit(result.limit_bytes, swap=True))
        return self._start(stack, entry, wrap=limit.wrap)

    def budget(self, entry: Entry) -> int | None:
        if entry.share is None or entry.share == contenders.AUTOMATIC:
            return None
        return int(entry.share * self.outcome.saved_bytes)

    def _start(self, stack: ExitStack, entry: Entry, budget: int | None = None, wrap: Callable = lambda command: command) -> Contender:
        return stack.enter_context(Contender(entry.name, wrap(self._at.command(entry, budget)), TMPDIR=self._at.spill))

    def _compare_bits(self) -> None:
        results = self.outcome.results
        for result in results.values():
            reference = results.get(result.entry.reference)
            if reference and reference.steps and result.steps and result is not results["plain"]:
                mine, theirs = ([step["digest"] for step in each.steps] for each in (result, reference))
                result.bitwise_equal = mine == theirs[: len(mine)] if result is not reference else None


def layers_that_fit(conditions: Conditions, entry: Entry) -> int:
    """How many a GPU holds of the model trained by `entry` (plain), from what one and two of them take."""
    import torch

    peaks = []
    for layers in (1, 2):
        command = replace(conditions, sizes=replace(conditions.sizes, layers=layers)).command(entry, None)
        with Contender(entry.name, command, TMPDIR=conditions.spill) as contender:
            contender.wait_ready()
            contender.ask("step")
            peaks.append(contender.finish()["peak_device_bytes"])
    each = peaks[1] - peaks[0]
    free = ROOM["cuda"] * torch.cuda.mem_get_info()[0]
    return max(1, int((free - (peaks[0] - each)) // each))


def _split(entries: list[Entry], room: int) -> Iterator[list[Entry]]:
    groups = -(-len(entries) // room)
    for number in range(groups):
        yield entries[number::groups]


def _available_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:300]
