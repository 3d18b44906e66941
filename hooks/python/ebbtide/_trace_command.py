"""`python -m ebbtide trace FILE`: what a trace shows, in figures."""

import json
from collections import defaultdict

from . import _ebbtide


def add_to(commands):
    parser = commands.add_parser(
        "trace",
        help="sum up a trace",
        description="Sums up what store.save_trace(path) wrote: passes, what callers did and waited for, transfers, and the most bytes in each tier.",
    )
    parser.add_argument("trace", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="for programs: bytes and seconds")
    parser.set_defaults(run=_run)


def _run(parser, arguments):
    try:
        with open(arguments.trace, encoding="utf-8") as file:
            summary = summarize(json.load(file)["traceEvents"])
    except OSError as error:
        parser.error(f"{arguments.trace}: {error.strerror}")
    except (ValueError, TypeError, KeyError, AttributeError):
        parser.error(f"{arguments.trace} is no trace: accepted is what store.save_trace(path) wrote")
    print(json.dumps({"trace": arguments.trace, **summary}) if arguments.json else _text(arguments.trace, summary))


def summarize(events):
    """`passes`: seconds of each forward and backward; `calls`, `waits` (by cause), `waited_for` (by op), `redos` (by op): `times`, `seconds`; `transfers`: `times`, `bytes`, and `busy_s`, in
    which at least one ran; `peak_bytes` by tier."""
    passes = defaultdict(dict)
    calls, waits, waited_for, redos = (defaultdict(lambda: {"times": 0, "seconds": 0.0}) for _ in range(4))
    spans, sizes = defaultdict(list), defaultdict(int)
    begun = {}
    peaks = defaultdict(int)
    for event in events:
        name, arguments = event["name"], event.get("args", {})
        if event["ph"] == "X":
            seconds = event["dur"] / 1e6
            _add(calls[name], seconds)
            if name == "wait":
                _add(waits[arguments["for"]], seconds)
                if "op" in arguments:
                    _add(waited_for[arguments["op"]], seconds)
            elif name == "redo":
                _add(redos[arguments.get("op", "?")], seconds)
        elif event["ph"] == "b":
            begun[name, event["id"]] = event["ts"]
            sizes[name] += arguments.get("bytes", 0)
        elif event["ph"] == "e":
            span = (begun.pop((name, event["id"])), event["ts"])
            spans[name].append(span)
            if event["cat"] == "pass":
                passes[event["id"]][name + "_s"] = (span[1] - span[0]) / 1e6
        elif event["ph"] == "C":
            for tier, size in arguments.items():
                peaks[tier] = max(peaks[tier], size)
    transfers = {name: {"times": len(of), "bytes": sizes[name], "busy_s": _covered(of) / 1e6} for name, of in spans.items() if name not in ("forward", "backward")}
    return {
        "passes": [{"pass": number, **passes[number]} for number in sorted(passes)],
        "calls": dict(calls),
        "waits": dict(waits),
        "waited_for": dict(waited_for),
        "redos": dict(redos),
        "transfers": transfers,
        "peak_bytes": dict(peaks),
    }


def _add(total, seconds):
    total["times"] += 1
    total["seconds"] += seconds


def _covered(spans):
    """How much of the time line they cover together."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def _text(name, summary):
    rows = [f"{name}: {len(summary['passes'])} passes"]
    for one in summary["passes"]:
        rows.append(f"  pass {one['pass']}: forward {one.get('forward_s', 0):.3f} s, backward {one.get('backward_s', 0):.3f} s")
    for title, what in (("calls", "calls"), ("waits, for", "waits"), ("waited for what was made by", "waited_for"), ("run again", "redos")):
        if summary[what]:
            rows.append(f"{title:38} {'times':>8} {'seconds':>10}")
            for key, total in sorted(summary[what].items(), key=lambda item: -item[1]["seconds"]):
                rows.append(f"  {key:36} {total['times']:8} {total['seconds']:10.3f}")
    if summary["transfers"]:
        rows.append(f"{'transfers':38} {'times':>8} {'busy':>10} {'bytes':>12}")
        for key, total in summary["transfers"].items():
            rows.append(f"  {key:36} {total['times']:8} {total['busy_s']:10.3f} {_ebbtide.bytes_text(total['bytes']):>12}")
    if summary["peak_bytes"]:
        rows.append("at most " + ", ".join(f"{_ebbtide.bytes_text(size)} in {tier}" for tier, size in summary["peak_bytes"].items()))
    return "\n".join(rows)
