"""Trains the same models with what people do about activations today, and with Ebbtide at several budgets: time, memory and bits, side by side.

Out: a table; with --json FILE all figures, a Markdown table beside them, and pictures. `bash bench/compare.sh` sets everything up first.
"""

import json
import sys
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

import cli
import comparison
import contenders
import device
import machine
import peers
import text
from competition import Competition, Conditions, Outcome, layers_that_fit
from contender import Died
from demo import check_spill_folder
from memory_limit import MemoryLimit
from subjects import SUBJECTS, subject

BUDGETS = "5,10,20,30,50,auto"
# What is left out, since it takes minutes, or says little: named by --contenders it takes part all the same.
QUICK = ("plain", "checkpoint", "selective", "save_on_cpu", "transformers", "ebbtide_10", "ebbtide_30", "ebbtide_50", "ebbtide_auto")
GPU_SHORT = ("plain", "plain_again", "checkpoint", "save_on_cpu", "torchtune", "ebbtide_10", "ebbtide_30", "ebbtide_50")
GPU_SHORT_MODELS = ("llama-7b", "llama-7b-32k")
# The demo's model beside checkpoint and swap, and then six times as many sequences in 3 GiB of memory, beside plain in as much as it likes.
CPU_REACH = ("plain", "checkpoint", "swap", "ebbtide_10")
# (About what the limit leaves: with 5% there is hardly room to fetch the next tensors, and the backward waits for the disk.)
REACH_BATCH, REACH_LIMIT, REACH_ENTRY = 24, 3 << 30, "ebbtide_8"
CPU_MODELS = ("gpt", "llama-1b", "llama-short", "moe", "conv", "lora")


def parse_arguments():
    parser = cli.Parser(prog="compare", description=__doc__.splitlines()[0])
    which = parser.add_argument_group("what is compared")
    which.add_argument("--quick", action="store_true", help="a small GPT and fewer contenders: minutes, to see that all works")
    which.add_argument("--gpu-short", action="store_true", help=f"{' and '.join(GPU_SHORT_MODELS)}, with {len(GPU_SHORT)} contenders: under 8 minutes on an H100")
    which.add_argument(
        "--cpu-reach", action="store_true", help="the demo's GPT: plain, checkpoint, swap, Ebbtide at 10%%; then batch 24 under 3 GiB (root; 20 minutes, 12 GiB of memory, 20 GiB of disk)"
    )
    which.add_argument("--full", action="store_true", help="all models, on a GPU with as many layers as it holds: an hour")
    which.add_argument("--models", metavar="NAME,...", help=f"of {', '.join(SUBJECTS)} (on the CPU {', '.join(CPU_MODELS)})")
    which.add_argument("--contenders", metavar="NAME,...", help=f"of {', '.join(contenders.table(contenders.budgets(BUDGETS)))} (all)")
    which.add_argument("--budgets", metavar="SHARE,...", default=BUDGETS, help="Ebbtide's, in per cent of what plain saves (%(default)s)")
    which.add_argument("--peers", action="store_true", help=f"install {', '.join(peers.PEERS)} from PyPI into {peers.FOLDER.relative_to(machine.ROOT)} first")
    which.add_argument("--swap", action="store_true", help="let plain swap too, under a limit of what Ebbtide needs at 10%% (root, CPU)")
    which.add_argument("--largest", action="store_true", help="find each contender's largest batch in --memory, by halving")
    which.add_argument("--memory", type=cli.size, metavar="SIZE", help="for --largest: of the process on the CPU (root), of the device on a GPU")
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=device.CHOICES, default="auto", help="auto: a GPU where torch finds one, else the CPU")
    how.add_argument("--steps", type=cli.positive, help="timed ones (5; with --quick 3)")
    how.add_argument("--warmup", type=cli.positive, default=3, help="steps before them (%(default)s)")
    how.add_argument("--seed", type=int, default=0, help="of weights, data and turns (%(default)s)")
    how.add_argument("--shrink", type=cli.positive, default=1, metavar="N", help="a GPU's width and tokens divided by N, 3 layers: a dry run on any device, whose times say nothing")
    for size in ("layers", "width", "tokens", "batch"):
        how.add_argument(f"--{size}", type=cli.positive, help="instead of the models' own")
    how.add_argument("--together", type=cli.positive, metavar="N", help="contenders that are there at once, beside plain (as many as memory has room for)")
    how.add_argument("--alone", action="store_true", help="contenders one after the other, where two do not fit (with --full on a GPU)")
    how.add_argument("--spill", metavar="DIR", default=tempfile.gettempdir(), help="folder on a disk for what leaves memory (%(default)s)")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--json", metavar="FILE", help="all figures; FILE's name with .md for the table, -MODEL.png and -step.png for pictures")
    arguments = parser.parse_args()
    check(arguments)
    return arguments


def check(arguments) -> None:
    """Also fills in what depends on other options."""
    arguments.device = device.resolve(arguments.device)
    if arguments.quick + arguments.gpu_short + arguments.full + arguments.cpu_reach > 1:
        raise cli.BadInput("--quick, --gpu-short, --cpu-reach and --full: one of them")
    if arguments.cpu_reach:
        if arguments.device != "cpu":
            raise cli.BadInput("--cpu-reach is for --device cpu")
        with MemoryLimit(REACH_LIMIT):
            pass  # what would fail after minutes fails now
        arguments.swap, arguments.models = True, "gpt"
        arguments.contenders = arguments.contenders or ",".join(CPU_REACH)
    if arguments.steps is None:
        arguments.steps = 3 if arguments.quick else 5
    arguments.models = arguments.models.split(",") if arguments.models else default_models(arguments)
    for name in arguments.models:
        subject(name)
    arguments.entries = entries_of(arguments)
    if arguments.largest and not arguments.memory:
        raise cli.BadInput("--largest needs --memory")
    if arguments.largest and (arguments.quick or arguments.gpu_short):
        raise cli.BadInput("--largest takes long: not with --quick or --gpu-short")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise cli.BadInput(f"--json {arguments.json}: its folder does not exist")
    check_spill_folder(arguments.spill)
    text.load_text(text.DEFAULT_TEXT, 1)


def default_models(arguments) -> list[str]:
    if arguments.quick:
        return ["gpt"]
    if arguments.gpu_short:
        return list(GPU_SHORT_MODELS)
    return list(SUBJECTS) if arguments.device == "cuda" or arguments.full else list(CPU_MODELS)


def entries_of(arguments) -> list[contenders.Entry]:
    shares = contenders.budgets(arguments.budgets)
    known = contenders.table(shares)
    if arguments.contenders:
        names = arguments.contenders.split(",")
    elif arguments.quick or arguments.gpu_short:
        names = [name for name in (QUICK if arguments.quick else GPU_SHORT) if name in known]
    else:
        names = list(known)
    for name in names:
        if name not in known:
            raise cli.BadInput(f"no contender {name!r}: there are {', '.join(known)}")
    return [known["plain"], *(known[name] for name in names if name != "plain")]


def compete_in_little(arguments) -> Outcome:
    """The second half of --cpu-reach."""
    sizes = subject("gpt").sizes("cpu", shrink=arguments.shrink, **sizes_asked(arguments) | {"batch": REACH_BATCH})
    limits = {REACH_ENTRY: arguments.memory or REACH_LIMIT}
    conditions = Conditions(
        "gpt", sizes, "cpu", arguments.spill, 2, 3, seed=arguments.seed, shrunk=arguments.shrink > 1, limits=limits, label=f"gpt-batch-{REACH_BATCH}"
    )
    known = contenders.table(contenders.budgets(REACH_ENTRY.removeprefix("ebbtide_")))
    return Competition(conditions, [known["plain"], known[REACH_ENTRY]], say).run()


def sizes_asked(arguments) -> dict[str, int | None]:
    return {size: getattr(arguments, size) for size in ("layers", "width", "tokens", "batch")}


def say(line: str) -> None:
    print(line, file=sys.stderr)


def compete(arguments, name: str) -> Outcome:
    sizes = subject(name).sizes(arguments.device, arguments.quick, arguments.shrink, **sizes_asked(arguments))
    conditions = Conditions(
        name,
        sizes,
        arguments.device,
        arguments.spill,
        arguments.warmup,
        arguments.steps,
        seed=arguments.seed,
        together=arguments.together,
        alone=arguments.alone,
        swap=arguments.swap,
        shrunk=arguments.shrink > 1,
    )
    if arguments.full and arguments.device == "cuda" and not arguments.layers:
        layers = layers_that_fit(conditions, contenders.table([])["plain"])
        conditions = replace(conditions, sizes=replace(sizes, layers=layers), alone=True)
    entries = [entry for entry in arguments.entries if subject(name).fuses or not entry.fused]
    traced = next((entry.name for entry in entries if entry.name.startswith("ebbtide") and entry.share == 0.1), None)
    return Competition(conditions, entries, say, traced).run()


def table(model: dict) -> Table:
    result = Table(title=comparison.title(model), caption=f"medians of {model['steps']} steps after {model['warmup']}, over plain's beside them")
    lines = [comparison.cells(contender) for contender in model["contenders"]]
    shown = [place for place in range(len(comparison.HEADERS)) if place == 0 or any(line[place] for line in lines)]
    for place in shown:
        result.add_column(comparison.HEADERS[place], justify="left" if place in (0, 11, 12) else "right")
    for line in lines:
        result.add_row(*(line[place] for place in shown), style="red" if "DIFFERENT" in line[11] else None)
    return result


def to_json(outcomes: list[Outcome]) -> dict:
    result = machine.provenance() | {"peers": peers.versions(), "models": [comparison.to_json(outcome) for outcome in outcomes]}
    return result | {"rows": [asdict(row) for outcome in outcomes for row in comparison.rows(outcome)]}


def write(arguments, result: dict, outcomes: list[Outcome]) -> None:
    """The JSON, the table and the pictures, beside each other; after each model, since the next may take long."""
    import compare_plot

    path = Path(arguments.json)
    path.write_text(json.dumps(result, indent=1) + "\n")
    absent = [] if arguments.device == "cuda" else [name for name in SUBJECTS if name.startswith("llama-")]
    path.with_suffix(".md").write_text(comparison.markdown(result, absent))
    for model, outcome in zip(result["models"], outcomes, strict=True):
        compare_plot.draw(path.with_name(f"{path.stem}-{model['model']}.png"), model)
        if outcome.trace and outcome is outcomes[0]:
            compare_plot.draw_step(path.with_name(f"{path.stem}-step.png"), outcome.trace, model)


def main() -> int:
    arguments = parse_arguments()
    if arguments.peers:
        peers.install()
    outcomes = []
    competitions = [partial(compete, arguments, name) for name in arguments.models]
    if arguments.cpu_reach:
        competitions.append(partial(compete_in_little, arguments))
    for competition in competitions:
        try:
            outcomes.append(competition())
        except Died as error:
            print(f"compare: {error}", file=sys.stderr)
            return 1
        result = to_json(outcomes)
        if arguments.json:
            write(arguments, result, outcomes)
    if arguments.largest:
        import largest

        result["largest"] = largest.find(arguments, outcomes[0])
        if arguments.json:
            write(arguments, result, outcomes)
    console = Console(width=None if sys.stdout.isatty() else 170)
    for model in result["models"]:
        console.print(table(model))
    for name, batch in result.get("largest", {}).get("batches", {}).items():
        console.print(f"largest batch of {name} in {cli.format_bytes(arguments.memory)}: {batch}")
    return 1 if any(row["name"].endswith("bitwise_equal") and row["met"] is False for row in result["rows"]) else 0


if __name__ == "__main__":
    cli.run("compare", main)
