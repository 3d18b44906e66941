"""The pictures of compare.sh: tokens a second against peak memory, and what is done during one step."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

GIB, MIB = 1 << 30, 1 << 20
EBBTIDE = "#0b5fa5"
# Colours that colour-blind readers tell apart (Okabe and Ito's), and a mark each.
LOOKS = {
    "plain": ("#202020", "D"),
    "Ebbtide": (EBBTIDE, "o"),
    "Ebbtide, regions": (EBBTIDE, "*"),
    "checkpoint": ("#d55e00", "s"),
    "checkpoint, op list": ("#e69f00", "^"),
    "save_on_cpu": ("#009e73", "v"),
    "checkpoint + save_on_cpu": ("#009e73", "P"),
    "torchtune": ("#cc79a7", "X"),
    "TRL": ("#cc79a7", "<"),
    "transformers": ("#56b4e9", ">"),
    "TrainStream": ("#8c6d31", "h"),
    "axolotl": ("#8c6d31", "d"),
    "swap": ("#909090", "p"),
    "compiled": ("#202020", "x"),
    "compiled, memory budget": ("#d55e00", "x"),
    "Ebbtide, compiled": (EBBTIDE, "x"),
    "fused ops": ("#202020", "+"),
    "Ebbtide, fused ops": (EBBTIDE, "+"),
}


def draw(path: Path, model: dict) -> None:
    """`model` is an entry of the result's `models`. Contenders that were not measured have no point."""
    from comparison import title

    measured = [c for c in model["contenders"] if c["exit"] == "ok" and c["tokens_per_s"] and c["name"] != "plain_again"]
    plain = next(c for c in measured if c["name"] == "plain")
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for family, (colour, mark) in LOOKS.items():
        points = sorted(((c["memory_bytes"] / GIB, c["tokens_per_s"], c) for c in measured if c["family"] == family), key=lambda point: point[:2])
        if not points:
            continue
        across, up, which = zip(*points, strict=True)
        filled = {} if mark in "x+" else {"markeredgecolor": "white", "markeredgewidth": 0.7}
        line = "-" if family == "Ebbtide" else ":" if len(points) > 1 else ""
        axes.plot(across, up, linestyle=line, marker=mark, markersize=11 if mark == "*" else 8, color=colour, label=family, zorder=4 if family == "Ebbtide" else 3, **filled)
        if family == "Ebbtide":
            for x, y, contender in points:
                share = contender["label"].removeprefix("Ebbtide ")
                axes.annotate(share, (x, y), textcoords="offset points", xytext=(7, -12), ha="left", color=colour, fontsize=8)
    axes.axhline(plain["tokens_per_s"], color="#c8c8c8", linewidth=0.8, zorder=1)
    axes.set(title=title(model), ylabel=f"{model['counted']} a second")
    axes.set_xlabel("peak of the device's memory, GiB" if model["device"] == "cuda" else "what the process grew by at its peak, GiB")
    least, most = axes.get_xlim()
    axes.set_xlim(least if least > most / 2 else 0, most + (most - least) / 12)  # what all need would leave the curves no room
    axes.set_ylim(0.8 * min(c["tokens_per_s"] for c in measured), 1.05 * max(c["tokens_per_s"] for c in measured))
    over = axes.secondary_yaxis("right", functions=(lambda y: 100 * y / plain["tokens_per_s"], lambda y: y * plain["tokens_per_s"] / 100))
    over.set_ylabel("% of plain's")
    axes.spines["top"].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_step(path: Path, trace: dict, model: dict) -> None:
    """The time line of one step: what the callers' threads and the transfers did, and the bytes in each tier."""
    from comparison import title

    events = trace["traceEvents"]
    lanes = {name: [] for name in ("forward", "backward", "run again", "waiting")}
    begun, counters = {}, []
    for event in events:
        if event["ph"] == "X" and event["name"] in ("redo", "wait"):
            lanes["run again" if event["name"] == "redo" else "waiting"].append((event["ts"] / 1e6, event["dur"] / 1e6))
        elif event["ph"] == "b":
            begun[event["name"], event["id"]] = event["ts"]
        elif event["ph"] == "e":
            start = begun.pop((event["name"], event["id"]), event["ts"])
            lanes.setdefault(event["name"], []).append((start / 1e6, (event["ts"] - start) / 1e6))
        elif event["ph"] == "C" and event["name"] == "bytes":
            counters.append((event["ts"] / 1e6, event["args"]))
    colours = {"forward": "#303030", "backward": "#707880", "run again": "#e69f00", "waiting": "#d55e00"}
    lanes = {name: spans for name, spans in lanes.items() if spans}
    if not lanes:
        return  # nothing was saved that a store looks at
    figure, (tracks, sizes) = pyplot.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained", height_ratios=(len(lanes), 4))
    for place, (name, spans) in enumerate(lanes.items()):
        tracks.broken_barh(spans, (len(lanes) - place - 0.9, 0.8), color=colours.get(name, EBBTIDE), linewidth=0)
    tracks.set_yticks([len(lanes) - place - 0.5 for place in range(len(lanes))], list(lanes))
    tracks.tick_params(axis="y", length=0)
    tracks.set(title=f"One step with Ebbtide; {title(model)}", ylim=(0, len(lanes)))
    for tier, colour, style in (("device", EBBTIDE, "-"), ("host", "#56b4e9", "-"), ("spill", "#0b2f52", "--")):
        held = [sample.get(tier, 0) / MIB for _, sample in counters]
        if any(held):
            word = {"device": "in memory, where computed", "host": "in host memory", "spill": "on disk"}[tier]
            sizes.plot([when for when, _ in counters], held, drawstyle="steps-post", color=colour, linestyle=style, linewidth=1.2, label=word)
    clock = ", as the program asks for it: the GPU comes later" if model["device"] == "cuda" else ""
    sizes.set(xlabel=f"seconds since the step began{clock}", ylabel="MiB of activations", xlim=(0, None), ylim=(0, None))
    if sizes.lines:
        sizes.legend(frameon=False, fontsize=9)
    for axes in (tracks, sizes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
