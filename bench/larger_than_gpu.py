"""Trains a model that does not fit: FSDP2's `fully_shard` with `CPUOffloadPolicy` runs out of memory, and with Ebbtide beside it trains, with the same losses.

Three runs: plain without a limit, which shows what is needed; plain, and then Ebbtide, in that less half of the activations. On a GPU one process, whose share
of the device's memory is capped; on the CPU two over gloo, in a control group (root). `bash bench/larger_than_gpu.sh` sets everything up first.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import cli
import device
import machine
import text
from demo import check_spill_folder
from memory_limit import MemoryLimit

SIZES = {
    "cpu": {"layers": 8, "width": 512, "tokens": 256, "batch": 6},
    "cuda": {"layers": 24, "width": 2048, "tokens": 2048, "batch": 4},
}
RANKS = {"cpu": 2, "cuda": 1}
BUDGET = 0.10
HEADROOM = 0.5  # of the activations, which the limit leaves no room for
LONGEST_S = 900


def parse_arguments():
    parser = cli.Parser(prog="larger_than_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=device.CHOICES, default="auto", help="auto: a GPU where torch finds one, else the CPU")
    for size in ("layers", "width", "tokens", "batch"):
        parser.add_argument(f"--{size}", type=cli.positive, help=f"({SIZES['cpu'][size]}; on a GPU {SIZES['cuda'][size]})")
    parser.add_argument("--steps", type=cli.positive, default=3, help="to train in each run (%(default)s)")
    parser.add_argument("--memory", type=cli.size, metavar="SIZE", help="the limit (what plain needs, less half of the activations)")
    parser.add_argument("--spill", metavar="DIR", default=tempfile.gettempdir(), help="folder on a disk for what leaves memory (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--rank", type=int, help="(its own processes)")
    parser.add_argument("--meet", help="(its own processes: the file that they find each other by)")
    parser.add_argument("--budget", type=int, help="(its own processes: Ebbtide's bytes)")
    parser.add_argument("--device-share", type=float, help="(its own processes)")
    arguments = parser.parse_args()
    arguments.device = device.resolve(arguments.device)
    for size, default in SIZES[arguments.device].items():
        if getattr(arguments, size) is None:
            setattr(arguments, size, default)
    if arguments.width % 64:
        raise cli.BadInput(f"--width {arguments.width}: a multiple of 64 is needed, the width of a head")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise cli.BadInput(f"--json {arguments.json}: its folder does not exist")
    text.load_text(text.DEFAULT_TEXT, arguments.tokens)
    if arguments.rank is None:
        check_spill_folder(arguments.spill)
        if arguments.device == "cpu":
            with MemoryLimit(1 << 30):
                pass  # what would fail after a minute fails now
    return arguments


@dataclass
class Run:
    """Of all ranks: losses one after the other, the rest in sum. `exit`: ok, or how it ended."""

    name: str
    exit: str = "ok"
    limit_bytes: int | None = None
    losses: list[list[float]] | None = None
    step_s: list[float] | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    spilled_bytes: int | None = None


def run(arguments, name: str, limit: int | None, budget: int | None) -> Run:
    """Starts the ranks and waits for them; where one ends badly the others are ended too."""
    result = Run(name, limit_bytes=limit)
    ranks = RANKS[arguments.device]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        command = [sys.executable, __file__, f"--device={arguments.device}", f"--steps={arguments.steps}", f"--spill={arguments.spill}", f"--meet={folder}/meet"]
        command += [f"--{size}={getattr(arguments, size)}" for size in ("layers", "width", "tokens", "batch")]
        command += [f"--budget={budget}"] if budget is not None else []
        group = None
        if limit and arguments.device == "cpu":
            group = stack.enter_context(MemoryLimit(limit))
        elif limit:
            import torch

            command.append(f"--device-share={limit / torch.cuda.get_device_properties(0).total_memory}")
        threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": threads}
        outputs = [open(f"{folder}/out.{rank}", "w+") for rank in range(ranks)]
        errors = [open(f"{folder}/err.{rank}", "w+", errors="replace") for rank in range(ranks)]
        processes = [
            subprocess.Popen(group.wrap([*command, f"--rank={rank}"]) if group else [*command, f"--rank={rank}"], stdout=outputs[rank], stderr=errors[rank], env=environment)
            for rank in range(ranks)
        ]
        try:
            codes = wait_for_all(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(codes):
            result.exit = "killed" if group and group.killed_processes() else _ended(errors)
            return result
        answers = [json.loads(Path(f"{folder}/out.{rank}").read_text()) for rank in range(ranks)]
    result.losses = [answer["losses"] for answer in answers]
    result.step_s = [max(times) for times in zip(*(answer["step_s"] for answer in answers))]
    for name in ("peak_bytes", "saved_bytes", "spilled_bytes"):
        setattr(result, name, sum(answer[name] for answer in answers))
    return result


def wait_for_all(processes: list[subprocess.Popen]) -> list[int | None]:
    """Their exit codes, as soon as all have ended or one badly; None: was still at work."""
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if all(code is not None for code in codes) or any(codes):
            return codes
        time.sleep(0.1)
    raise RuntimeError(f"no end after {LONGEST_S} s")


def _ended(errors) -> str:
    """In words, from what the ranks have said."""
    said = ""
    for file in errors:
        file.seek(0)
        said += file.read()
    if "OutOfMemoryError" in said:
        return "out of memory"
    raise RuntimeError(f"a rank failed:\n{said[-3000:]}")


def train(arguments) -> dict:
    """What a rank does."""
    import torch
    import torch.distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    from gpt import Gpt
    from saved_bytes import SavedBytes
    from training import TextBatches, file_rss, peak_rss

    ranks, on = RANKS[arguments.device], device.StepOn(arguments.device)
    if arguments.device == "cuda":
        torch.cuda.set_device(0)
        if arguments.device_share:
            torch.cuda.set_per_process_memory_fraction(arguments.device_share)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if arguments.device == "cuda" else "gloo", init_method=f"file://{arguments.meet}", rank=arguments.rank, world_size=ranks
    )
    torch.manual_seed(0)
    model = Gpt(arguments.layers, arguments.width, arguments.tokens)  # on the host: its shards stay there
    mesh = init_device_mesh(arguments.device, (ranks,))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=arguments.device == "cuda"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    data = text.load_text(text.DEFAULT_TEXT, arguments.tokens)
    batches = TextBatches(data, arguments.tokens, arguments.batch, arguments.rank, on.device)  # its own part of the text
    store = None
    if arguments.budget is not None:
        import ebbtide

        store = ebbtide.Store(device_budget=arguments.budget, spill_to=arguments.spill, **({"host_budget": "32MiB"} if arguments.device == "cpu" else {}))
    answer = {"losses": [], "step_s": [], "saved_bytes": 0, "spilled_bytes": 0}
    for number in range(arguments.steps):
        # The last step is counted: what its forward saves, parameters aside.
        count = SavedBytes(()) if store is None and number == arguments.steps - 1 else None
        batch = batches.next()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with store or (count.hooks(but=torch.nn.Parameter) if count else nullcontext()), on.precision():
            loss = model(*batch)
        loss.backward()
        optimizer.step()
        on.wait()
        answer["step_s"].append(time.perf_counter() - start)
        answer["losses"].append(loss.item())
        if count:
            answer["saved_bytes"] = count.peak
    on.note_peak()
    if store:
        stats = store.stats()
        answer["saved_bytes"], answer["spilled_bytes"] = (stats[name]["bytes"] // arguments.steps for name in ("saved", "spilled"))
        store.close()
    answer["peak_bytes"] = on.peak_bytes() if arguments.device == "cuda" else peak_rss() - file_rss()
    torch.distributed.destroy_process_group()
    return answer


def table(runs: list[Run], arguments) -> Table:
    ranks = RANKS[arguments.device]
    title = f"FSDP2 with CPU offload, {ranks} rank{'s' if ranks > 1 else ''}; GPT of {arguments.layers} layers, width {arguments.width}, {arguments.batch} x {arguments.tokens} tokens each"
    result = Table(title=title)
    for header in ("", "limit", "ended", "steps", "peak", "saved a step", "to disk", "losses"):
        result.add_column(header, justify="right" if header not in ("", "losses") else "left")
    size = lambda count: "" if count is None else cli.format_bytes(count)  # noqa: E731
    for one in runs:
        steps = ", ".join(f"{seconds:.1f}" for seconds in one.step_s) + " s" if one.step_s else ""
        losses = "" if one.losses is None else "reference" if one is runs[0] else "equal" if one.losses == runs[0].losses else "DIFFERENT"
        result.add_row(one.name, size(one.limit_bytes), one.exit, steps, size(one.peak_bytes), size(one.saved_bytes), size(one.spilled_bytes), losses)
    return result


def main() -> int:
    arguments = parse_arguments()
    if arguments.rank is not None:
        print(json.dumps(train(arguments)))
        return 0
    runs = []
    print("plain, without a limit", file=sys.stderr)
    runs.append(run(arguments, "plain, no limit", None, None))
    limit = arguments.memory or int(runs[0].peak_bytes - HEADROOM * runs[0].saved_bytes)
    budget = int(BUDGET * runs[0].saved_bytes / RANKS[arguments.device])
    print(f"plain, under a limit of {cli.format_bytes(limit)}", file=sys.stderr)
    runs.append(run(arguments, "plain", limit, None))
    print("Ebbtide, under that limit", file=sys.stderr)
    runs.append(run(arguments, "Ebbtide", limit, budget))
    Console(width=None if sys.stdout.isatty() else 150).print(table(runs, arguments))
    shown = runs[1].exit != "ok" and runs[2].exit == "ok" and runs[2].losses == runs[0].losses
    if arguments.json:
        result = machine.provenance() | {"runs": [asdict(one) for one in runs], "shown": shown}
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0 if shown else 1


if __name__ == "__main__":
    cli.run("larger_than_gpu", main)
