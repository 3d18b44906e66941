"""The picture of a step: bytes of saved activations over time, plain against Ebbtide."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

MIB = 1024 * 1024


def draw(path: str, plain: list, ebbtide: list, budget_bytes: int, title: str) -> None:
    """`plain`: (seconds, bytes held) at each change; `ebbtide`: samples (seconds, bytes in memory, bytes on disk)."""
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    plain_s, plain_held = zip(*plain, strict=True)
    ebbtide_s, ebbtide_held, ebbtide_spilled = zip(*ebbtide, strict=True)
    axes.fill_between(
        plain_s, [held / MIB for held in plain_held], step="post", color="#b0b7bf", label="plain, in memory", linewidth=0
    )
    axes.plot(
        ebbtide_s, [held / MIB for held in ebbtide_spilled], color="#0b2f52", linestyle="--", zorder=3, linewidth=1, label="Ebbtide, on disk"
    )
    axes.fill_between(
        ebbtide_s,
        [held / MIB for held in ebbtide_held],
        color="#1f6fb4",
        label="Ebbtide, in memory (tensors and staging)",
        linewidth=0,
    )
    axes.axhline(budget_bytes / MIB, color="#c23b22", linewidth=1, zorder=3, label="device budget")
    axes.set(xlabel="seconds since the step began", ylabel="MiB of saved activations", title=title, xlim=(0, None), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)
