"""Trains a byte-level GPT on real text: plain, with torch's checkpoint, or with Ebbtide, in one of several ways.

Alone it trains and prints a line a step. With --turns it is a contender of demo.py: it waits for a word on stdin (observe, step,
finish), does that, and answers with one line of JSON. train_gpt.cpp is the same program without Python.
"""

import functools
import tempfile

import cli
import device
import text
from training import TextBatches, Training, Way, take_turns

OF_EBBTIDE = ("selective", "offload", "ebbtide", "regions")  # with a store
MODES = {
    "plain": "all stay",
    "checkpoint": "torch's checkpoint around each block",
    "full": "ebbtide.checkpoint around each block, and no store: its insides are computed again",
    "selective": "the same, but what each block's MLP saves stays, as named by ebbtide.region",
    "offload": "a store that moves them, and computes nothing again",
    "ebbtide": "a store that moves them, or computes again what is cheap",
    "regions": "a store, and ebbtide.checkpoint around each block: they stay, move or are computed again as the plan finds",
}


def parse_arguments():
    parser = cli.Parser(prog="train_gpt.py", description=__doc__.splitlines()[0])
    add_training_options(parser)
    parser.add_argument(
        "--mode",
        choices=tuple(MODES),
        default="plain",
        help="what becomes of activations; " + "; ".join(f"{mode}: {meaning}" for mode, meaning in MODES.items()) + " (%(default)s)",
    )
    parser.add_argument(
        "--budget", help="Ebbtide: bytes of activations that may stay in memory, like 150MiB (0; selective: what fits)"
    )
    parser.add_argument(
        "--spill", metavar="DIR", default=tempfile.gettempdir(), help="Ebbtide: folder for what leaves memory (%(default)s)"
    )
    parser.add_argument("--turns", action="store_true", help="wait for each turn on stdin and answer in JSON, for demo.py")
    arguments = parser.parse_args()
    check_training_options(arguments)
    return arguments


def add_training_options(parser) -> None:
    parser.add_argument(
        "--device", choices=device.CHOICES, default="auto", help="auto: a GPU where torch finds one, else the CPU (%(default)s)"
    )
    on_cpu, on_cuda = device.DEFAULT_SIZES["cpu"], device.DEFAULT_SIZES["cuda"]
    for size, meaning in (
        ("layers", "blocks"),
        ("width", "a multiple of 64, the width of a head"),
        ("tokens", "bytes of text in a sequence"),
        ("batch", "sequences in a step"),
    ):
        parser.add_argument(f"--{size}", type=cli.positive, help=f"{meaning} ({on_cpu[size]}; on a GPU {on_cuda[size]})")
    parser.add_argument("--steps", type=cli.positive, default=6, help="how many to train (%(default)s)")
    parser.add_argument("--data", default=text.DEFAULT_TEXT, metavar="PATH", help="a text file, or a folder of them (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the choice of text (%(default)s)")


def check_training_options(arguments) -> None:
    """Also fills in what depends on the device."""
    arguments.device = device.resolve(arguments.device)
    for size, default in device.DEFAULT_SIZES[arguments.device].items():
        if getattr(arguments, size) is None:
            setattr(arguments, size, default)
    if arguments.width % 64:
        raise cli.BadInput(f"--width {arguments.width}: a multiple of 64 is needed, the width of a head")


def training_of(arguments) -> Training:
    """Errors: BadInput where there is no text."""
    data = text.load_text(arguments.data, arguments.tokens)
    # Past the cheap checks: torch takes seconds to import, and bad input should not.
    import torch

    from gpt import Gpt

    on = device.StepOn(arguments.device)
    torch.manual_seed(arguments.seed)
    batches = TextBatches(data, arguments.tokens, arguments.batch, arguments.seed, on.device)
    model = Gpt(arguments.layers, arguments.width, arguments.tokens, *_how_blocks_run(arguments.mode))
    if arguments.mode == "selective":
        for block in model.blocks:
            block.mlp = import_ebbtide().region("mlp", policy="keep")(block.mlp)
    model.to(on.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    store = open_store(arguments) if arguments.mode in OF_EBBTIDE else None
    return Training(model, batches, optimizer, on, Way(lambda: store, store) if store else Way())


def _how_blocks_run(mode: str) -> tuple:
    if mode == "checkpoint":
        from torch.utils.checkpoint import checkpoint

        return (functools.partial(checkpoint, use_reentrant=False),)
    if mode in ("full", "regions"):
        return (import_ebbtide().checkpoint,)
    if mode == "selective":
        return (import_ebbtide().region("block", policy="recompute")(import_ebbtide().checkpoint),)
    return ()


def import_ebbtide():
    try:
        import ebbtide
    except ImportError as error:
        raise cli.BadInput(f"import ebbtide: {error}; `bash setup.sh` builds it into build/python") from None
    return ebbtide


def open_store(arguments):
    options = {"spill_to": arguments.spill, "recompute": arguments.mode != "offload"}
    if arguments.budget is not None or arguments.mode != "selective":
        options["device_budget"] = arguments.budget or "0"
    return import_ebbtide().Store(**options)


def train(training: Training, steps: int) -> None:
    training.forget_peaks()
    for number in range(1, steps + 1):
        step = training.step()
        print(f"step {number}/{steps}  loss {step['loss']:.4f}  {step['seconds']:.3f} s", flush=True)
    end = training.finish()
    print(f"peak RSS {cli.format_bytes(end['peak_rss_bytes'])}")
    if end["peak_device_bytes"] is not None:
        print(f"peak device memory {cli.format_bytes(end['peak_device_bytes'])}")
    if end["report"]:
        print(end["report"])


def run(arguments) -> None:
    training = training_of(arguments)
    if arguments.turns:
        take_turns(training)
    else:
        train(training, arguments.steps)


def main() -> int:
    arguments = parse_arguments()
    if arguments.mode not in OF_EBBTIDE:
        run(arguments)
        return 0
    ebbtide = import_ebbtide()
    try:
        run(arguments)
    except (ebbtide.ConfigError, ebbtide.OutOfBudget, ebbtide.SpillError) as error:
        # A wrong option, no room, a full disk: Ebbtide says which in one line.
        raise cli.BadInput(str(error)) from None
    return 0


if __name__ == "__main__":
    cli.run("train_gpt.py", main)
