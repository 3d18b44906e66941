"""The part `policy`: one model at several budgets beside plain and torch's checkpoint: step times against memory, and what the plans predicted.

`regions` is the model whose blocks Ebbtide may compute again as checkpoint does, within what checkpoint keeps.

Options after -- are those of train_gpt.py's model (--layers, --width, --tokens, --batch), --steps, --spill and --plot FILE.png.
"""

import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack

import cli
import machine
import train_gpt
from contender import Contender
from row import Row

SHARES = (0.05, 0.10, 0.20, 0.30, 0.50)
PREDICTED_WITHIN = 0.05
PEAK_PREDICTED_WITHIN = 0.01
DEMO_SHARE, DEMO_SLOWEST = 0.10, 1.05
FIRST_PLANNED = 2  # steps before this one are watched, and followed no plan
WATCHED = slice(1, 4)  # the steps whose medians the plans rest on


def parse_arguments(options: list[str]):
    parser = cli.Parser(prog="policy", description=__doc__.splitlines()[0])
    train_gpt.add_training_options(parser)
    parser.set_defaults(steps=7)
    parser.add_argument("--spill", metavar="DIR", default=tempfile.gettempdir(), help="folder on a disk for what leaves memory (%(default)s)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw step times against memory")
    arguments = parser.parse_args(options)
    train_gpt.check_training_options(arguments)
    if arguments.steps <= FIRST_PLANNED:
        raise cli.BadInput(f"--steps {arguments.steps}: more than {FIRST_PLANNED} are needed, the first are only watched")
    return arguments


def command(arguments, mode: str, budget: int = 0) -> list[str]:
    options = {name: getattr(arguments, name) for name in ("device", "layers", "width", "tokens", "batch", "data", "seed")} | {"mode": mode}
    if mode in train_gpt.OF_EBBTIDE:
        options |= {"budget": budget, "spill": arguments.spill}
    return [sys.executable, str(machine.ROOT / "bench/train_gpt.py"), "--turns"] + [f"--{name}={value}" for name, value in options.items()]


def name_of(share: float) -> str:
    return f"ebbtide_{share:.0%}".removesuffix("%")


def measure(arguments) -> tuple[int, int, dict[str, list[dict]]]:
    """Bytes that plain saves and that checkpoint keeps, and each contender's answers, a step each in every round, in an order of its own."""
    with ExitStack() as stack:
        start = lambda name, *how: stack.enter_context(Contender(name, command(arguments, *how)))  # noqa: E731
        contenders = {"plain": start("plain", "plain"), "checkpoint": start("checkpoint", "checkpoint")}
        for contender in contenders.values():
            contender.wait_ready()
        saved, kept = (contenders[name].ask("observe")["saved_bytes"] for name in ("plain", "checkpoint"))
        for share in SHARES:
            contenders[name_of(share)] = start(name_of(share), "ebbtide", int(saved * share))
            contenders[name_of(share)].wait_ready()
        contenders["regions"] = start("regions", "regions", kept)
        contenders["regions"].wait_ready()
        answers = {name: [] for name in contenders}
        order = random.Random(arguments.seed)  # a step may pay for what the one before it left to the disk
        for step in range(arguments.steps):
            print(f"policy: step {step + 1} of {arguments.steps}", file=sys.stderr)
            for name in order.sample(list(contenders), len(contenders)):
                answers[name].append(contenders[name].ask("step"))
        for contender in contenders.values():
            contender.finish()
    return saved, kept, answers


def over(steps: list[dict], others: list[dict]) -> float:
    pairs = zip(steps[FIRST_PLANNED:], others[FIRST_PLANNED:], strict=True)
    return statistics.median(mine["seconds"] / other["seconds"] for mine, other in pairs)


def drift(plain: list[dict]) -> list[float]:
    """How much slower the machine was in each planned step than when the plans were made, as plain's steps beside them tell."""
    then = statistics.median(step["seconds"] for step in plain[WATCHED])
    return [step["seconds"] / then for step in plain[FIRST_PLANNED:]]


def rows(options: list[str]) -> Iterator[Row]:
    arguments = parse_arguments(options)
    saved, kept, answers = measure(arguments)
    plain = answers["plain"]
    checkpoint = over(answers["checkpoint"], plain)
    yield Row("policy", "plain.saved", saved, "B")
    yield Row("policy", "checkpoint.kept", kept, "B")
    yield Row("policy", "checkpoint.over_plain", checkpoint, "x")
    regions = over(answers["regions"], answers["checkpoint"])
    yield Row.at_most("policy", "regions.over_checkpoint", regions, "x", 1, "each with as many saved bytes as checkpoint keeps")
    yield Row.must_hold("policy", "regions.bitwise_equal", [s["digest"] for s in answers["regions"]] == [s["digest"] for s in plain])
    drifts = drift(plain)
    yield Row("policy", "plain.off_itself", statistics.median(abs(d - 1) for d in drifts), "", "in the planned steps, to those that the plans rest on")
    curve = []
    for share in SHARES:
        name, steps = name_of(share), answers[name_of(share)]
        passes = [step["pass"] for step in steps[FIRST_PLANNED:]]
        slower = over(steps, plain)
        curve.append((share, slower))
        if share == DEMO_SHARE:
            yield Row.at_most("policy", f"{name}.over_plain", slower, "x", DEMO_SLOWEST)
        elif saved * share >= kept:
            yield Row.at_most("policy", f"{name}.over_plain", slower, "x", checkpoint, "checkpoint's, which keeps less")
        else:
            yield Row("policy", f"{name}.over_plain", slower, "x")
        off = statistics.median(abs(p["predicted_s"] / p["measured_s"] - 1) for p in passes)
        yield Row.at_most("policy", f"{name}.predicted_off", off, "", PREDICTED_WITHIN)
        beside = statistics.median(abs(p["predicted_s"] * d / p["measured_s"] - 1) for p, d in zip(passes, drifts, strict=True))
        yield Row("policy", f"{name}.predicted_off_beside_plain", beside)
        peak_off = statistics.median(abs(p["predicted_peak_bytes"] / p["measured_peak_bytes"] - 1) for p in passes)
        yield Row.at_most("policy", f"{name}.predicted_peak_off", peak_off, "", PEAK_PREDICTED_WITHIN)
        yield Row("policy", f"{name}.bound_over_measured", statistics.median(p["lower_bound_s"] / p["measured_s"] for p in passes))
        yield Row("policy", f"{name}.peak", max(p["peak_bytes"] for p in passes), "B", f"budget {cli.format_bytes(int(saved * share))} and one tensor")
        for what in ("spilled", "recomputed"):
            yield Row("policy", f"{name}.{what}", steps[-1]["bytes"][what], "B")
        yield Row.must_hold("policy", f"{name}.bitwise_equal", [s["digest"] for s in steps] == [s["digest"] for s in plain])
    if arguments.plot:
        draw(arguments.plot, curve, (kept / saved, checkpoint), f"GPT of {arguments.layers} layers, width {arguments.width}, {arguments.batch} x {arguments.tokens} tokens")


def draw(path: str, curve: list[tuple[float, float]], checkpoint: tuple[float, float], title: str) -> None:
    """Of each: the share of plain's saved bytes that stays in memory, and the step time over plain's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    shares, times = zip(*curve, strict=True)
    axes.plot([100 * s for s in shares], times, marker="o", color="#1f6fb4", label="Ebbtide, at five budgets")
    axes.plot(100 * checkpoint[0], checkpoint[1], marker="s", linestyle="", color="#c23b22", label="torch.utils.checkpoint, every block")
    axes.plot(100, 1, marker="D", linestyle="", color="#707880", label="plain")
    axes.set(xlabel="saved activations that stay in memory, % of plain's", ylabel="step time over plain's", title=title, xlim=(0, 105), ylim=(0.95, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
