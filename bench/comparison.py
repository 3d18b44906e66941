"""What compare.sh found, as figures: rows to hold against goals and against another run's, an entry a contender with all that was measured, a table for people."""

import statistics
from collections.abc import Iterator

from cli import format_bytes
from competition import Outcome, Result
from row import Row
from subjects import SUBJECTS

NOT_MEASURED = "not measured here, where there is none"
# (device, model, contender) -> most of plain's time that the project allows itself.
GOALS = {
    ("cpu", "gpt", "ebbtide_10"): 1.05,
    ("cpu", "gpt-batch-24", "ebbtide_8"): 1.05,
    ("cuda", "llama-7b", "ebbtide_auto"): 1.005,
    ("cuda", "llama-7b", "ebbtide_50"): 1.01,
    ("cuda", "llama-7b", "ebbtide_30"): 1.035,
    ("cuda", "llama-7b", "ebbtide_10"): 1.12,
    ("cuda", "llama-7b-32k", "ebbtide_10"): 1.02,
    ("cuda", "llama-wide", "ebbtide_10"): 1.02,
}


def over_plain(result: Result) -> float | None:
    return statistics.median(result.over_plain) if result.over_plain else None


def tokens_per_s(outcome: Outcome, result: Result) -> float | None:
    """At plain's median step time, times what the pairs say: so a slow group of contenders does not look slower than another."""
    plain, ratio = outcome.results["plain"].seconds(outcome.conditions.warmup), over_plain(result)
    return outcome.conditions.tokens / (plain * ratio) if plain and ratio else None


def rows(outcome: Outcome) -> Iterator[Row]:
    at, part = outcome.conditions, outcome.conditions.label
    yield Row(part, "plain.saved", outcome.saved_bytes, "B")
    for name, result in outcome.results.items():
        ratio = over_plain(result)
        goal = GOALS.get((at.device, part, name))
        if result.exit == "ok" and name != "plain":
            if goal and not at.shrunk:
                yield Row.at_most(part, f"{name}.over_plain", ratio, "x", goal)
            else:
                yield Row(part, f"{name}.over_plain", ratio, "x")
        if result.exit == "ok":
            yield Row(part, f"{name}.memory", result.memory_bytes, "B")
        if result.bitwise_equal is not None and (name.startswith("ebbtide") or result.entry.share):
            yield Row.must_hold(part, f"{name}.bitwise_equal", result.bitwise_equal)


def to_json(outcome: Outcome) -> dict:
    at = outcome.conditions
    sizes = {size: getattr(at.sizes, size) for size in ("layers", "width", "tokens", "batch")}
    return {
        "model": at.label,
        "counted": "images" if SUBJECTS[at.model].images else "tokens",
        "device": at.device,
        "sizes": sizes,
        "warmup": at.warmup,
        "steps": at.steps,
        "deterministic": at.deterministic,
        "saved_bytes": outcome.saved_bytes,
        "contenders": [_entry(outcome, result) for result in outcome.results.values()],
    }


def _entry(outcome: Outcome, result: Result) -> dict:
    end, last = result.end, result.steps[-1] if result.steps else {}
    fields = {
        "name": result.entry.name,
        "label": result.entry.label,
        "family": result.entry.family,
        "exit": result.exit,
        "reason": result.reason or end.get("note", ""),
        "step_s_median": result.seconds(outcome.conditions.warmup),
        "step_s": [step["seconds"] for step in result.steps],
        "over_plain": over_plain(result),
        "over_plain_each": result.over_plain,
        "tokens_per_s": tokens_per_s(outcome, result),
        "bitwise_equal": result.bitwise_equal,
        "bitwise_reference": result.entry.reference,
        "losses": [step["loss"] for step in result.steps],
        "memory_bytes": result.memory_bytes,
        "budget_bytes": result.budget_bytes,
        "limit_bytes": result.limit_bytes,
    }
    measured = ("peak_rss_bytes", "rss_at_start_bytes", "peak_device_bytes", "peak_reserved_bytes", "pinned_bytes", "host_peak_bytes", "spill_peak_bytes")
    return fields | {name: end.get(name) for name in measured} | {"moved": end.get("moved", {}), "became": last.get("bytes", {})}


HEADERS = ("", "step", "x plain", "tokens/s", "memory", "reserved", "pinned", "out", "in", "to disk", "from disk", "gradients", "")


def cells(contender: dict) -> tuple[str, ...]:
    """Of one line of the table, from what `to_json` says of a contender."""
    if contender["step_s_median"] is None or contender["exit"] != "ok":
        return (contender["label"], *[""] * (len(HEADERS) - 2), f"{contender['exit']}: {contender['reason']}")
    size = lambda value: "" if value is None else format_bytes(value)  # noqa: E731
    moved = contender["moved"]
    bits = {True: "equal", False: "DIFFERENT", None: ""}[contender["bitwise_equal"]]
    if contender["name"] == contender["bitwise_reference"]:
        bits = "reference"
    elif contender["bitwise_reference"] != "plain" and bits:
        bits += f" to {contender['bitwise_reference']}"
    return (
        contender["label"],
        f"{contender['step_s_median']:.3f} s",
        f"{contender['over_plain']:.3f}",
        f"{contender['tokens_per_s']:.0f}",
        size(contender["memory_bytes"]),
        size(contender["peak_reserved_bytes"]),
        size(contender["pinned_bytes"]),
        *(size(moved.get(key)) for key in ("moved_out", "moved_in", "disk_write", "disk_read")),
        bits,
        "; ".join(filter(None, (contender["limit_bytes"] and f"under a limit of {format_bytes(contender['limit_bytes'])}", contender["reason"]))),
    )


def title(model: dict) -> str:
    sizes = model["sizes"]
    shape = f"{sizes['layers']} layers, width {sizes['width']}, {sizes['batch']} x {sizes['tokens']}"
    return f"{model['model']} on {'a GPU' if model['device'] == 'cuda' else 'the CPU'}: {shape}; plain saves {format_bytes(model['saved_bytes'])}" + ("; images for tokens" if model["counted"] == "images" else "")


def markdown(result: dict, absent: list[str]) -> str:
    """`absent`: models that this machine cannot try, which are said to be missing."""
    lines = [f"{result['machine']}; commit {result['commit']}; torch {result['torch']}", ""]
    if result["peers"]:
        lines += ["Peers: " + ", ".join(f"{name} {version}" for name, version in result["peers"].items()), ""]
    for model in result["models"]:
        memory = "peak of what torch's allocator had given out" if model["device"] == "cuda" else "what the process grew by, at its peak"
        lines += [f"### {title(model)}", "", f"Medians of {model['steps']} steps after {model['warmup']}, each over plain's beside it. Memory: {memory}.", ""]
        table = [cells(contender) for contender in model["contenders"]]
        shown = [place for place in range(len(HEADERS)) if place == 0 or any(row[place] for row in table)]
        lines.append("| " + " | ".join(HEADERS[place] for place in shown) + " |")
        lines.append("|" + "|".join("---" if place in (0, 11, 12) else "---:" for place in shown) + "|")
        lines += ["| " + " | ".join(row[place].replace("|", "/") for place in shown) + " |" for row in table]
        lines.append("")
    if absent:
        lines += [f"On a GPU: {', '.join(absent)}: {NOT_MEASURED}.", ""]
    if result.get("largest"):
        lines += _largest(result["largest"])
    return "\n".join(lines)


def _largest(largest: dict) -> list[str]:
    lines = [f"### The largest batch of {largest['model']} in {format_bytes(largest['memory_bytes'])}", "", "| | sequences |", "|---|---:|"]
    lines += [f"| {name} | {batch if batch else 'none'} |" for name, batch in largest["batches"].items()]
    return [*lines, ""]
