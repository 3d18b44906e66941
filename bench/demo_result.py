"""What the demo found: one Run a contender, their ratios, and both as JSON and as a table for people."""

import statistics
from dataclasses import asdict, dataclass, field

from rich.table import Table

from cli import format_bytes

RATIOS = {
    "ebbtide_over_plain": ("ebbtide", "plain"),
    "ebbtide_cpp_over_plain_cpp": ("ebbtide_cpp", "plain_cpp"),
    "checkpoint_over_plain": ("checkpoint", "plain"),
    "ebbtide_over_checkpoint": ("ebbtide", "checkpoint"),
}
# The table's columns of bytes, those of which some contender has any.
COLUMNS = {
    "peak_rss": "peak RSS",
    "peak_device": "peak device",
    "saved": "saved",
    "kept": "kept",
    "offloaded": "offloaded",
    "spilled": "spilled",
    "recomputed": "recomputed",
}


@dataclass
class Run:
    """Bytes are those of one step (the last); None is what was not measured, as the peak of a killed process."""

    name: str
    exit: str = "ok"
    step_s: list[float] = field(default_factory=list)
    peak_rss_bytes: int | None = None
    peak_device_bytes: int | None = None
    saved_bytes: int | None = None
    kept_bytes: int | None = None
    offloaded_bytes: int | None = None
    spilled_bytes: int | None = None
    recomputed_bytes: int | None = None
    bitwise_equal: bool | None = None
    digests: list[str] = field(default_factory=list)

    def add_step(self, answer: dict) -> None:
        self.step_s.append(answer["seconds"])
        self.digests.append(answer["digest"])
        for name, count in answer["bytes"].items():
            setattr(self, f"{name}_bytes", count)

    def compare(self, reference: "Run") -> None:
        """Whether loss and gradients of every step were the reference's; unknown before the first step."""
        if self.digests:
            self.bitwise_equal = self.digests == reference.digests[: len(self.digests)]

    @property
    def step_s_median(self) -> float | None:
        """Seconds; the first step warms up and is left out."""
        return statistics.median(self.step_s[1:]) if len(self.step_s) > 1 else None

    def to_json(self) -> dict:
        fields = asdict(self)
        del fields["digests"]
        fields["step_s_median"] = self.step_s_median
        return fields


def ratio(run: Run, reference: Run) -> float:
    """The median of one's step time over the other's, step by step: they took turns, so a slow minute of the machine met both."""
    return statistics.median(mine / other for mine, other in zip(run.step_s[1:], reference.step_s[1:], strict=True))


def ratios(runs: dict[str, Run]) -> dict[str, float]:
    return {name: ratio(runs[mine], runs[other]) for name, (mine, other) in RATIOS.items()}


def table(runs: dict[str, Run], title: str) -> Table:
    result = Table(
        title=title, caption="medians of all steps but the first, which warms up; peaks over all steps; bytes of one step"
    )
    # Offloading and a device's memory are there on a GPU only.
    columns = [name for name in COLUMNS if any(getattr(run, f"{name}_bytes") for run in runs.values())]
    for header in ("", "step", "x plain", *(COLUMNS[name] for name in columns), "bitwise"):
        result.add_column(header, justify="left" if header in ("", "bitwise") else "right")
    for run in runs.values():
        reference = runs["plain_cpp" if run.name.endswith("_cpp") else "plain"]
        capped = run.name.endswith("_capped")
        counts = (getattr(run, f"{name}_bytes") for name in columns)
        result.add_row(
            run.name,
            "killed" if run.exit == "killed" else f"{run.step_s_median:.3f} s",
            "" if capped else f"{ratio(run, reference):.3f}",  # ran alone, so no step of plain's stood beside it
            *("" if count is None else format_bytes(count) for count in counts),
            "reference" if run is reference else {True: "equal", False: "DIFFERENT", None: ""}[run.bitwise_equal],
            style="red" if run.bitwise_equal is False else None,
        )
    return result
