"""Trains a byte-level GPT on real text: plain, with torch's checkpoint, or with Ebbtide.

Alone it trains and prints a line a step. With --turns it is a contender of demo.py: it waits for a word on stdin (observe, step,
finish), does that, and answers with one line of JSON. train_gpt.cpp is the same program without Python.
"""

import hashlib
import json
import struct
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import cli
import device
import text

COUNTERS = ("saved", "kept", "offloaded", "spilled", "recomputed")


def parse_arguments():
    parser = cli.Parser(prog="train_gpt.py", description=__doc__.splitlines()[0])
    add_training_options(parser)
    parser.add_argument(
        "--mode", choices=("plain", "checkpoint", "ebbtide"), default="plain", help="what happens to activations (%(default)s)"
    )
    parser.add_argument(
        "--budget", default="0", help="Ebbtide: bytes of activations that may stay in memory, like 150MiB (%(default)s)"
    )
    parser.add_argument("--spill", metavar="DIR", help="Ebbtide: folder for what leaves memory")
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


class Training:
    """The model, its optimizer and its text. One step is: forward, backward, AdamW."""

    def __init__(self, arguments):
        data = text.load_text(arguments.data, arguments.tokens)
        # Past the cheap checks: torch takes seconds to import, and bad input should not.
        import torch

        from gpt import Gpt

        self._torch = torch
        self._on = device.StepOn(arguments.device)
        torch.manual_seed(arguments.seed)
        self._data = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._draw = torch.Generator().manual_seed(arguments.seed)
        self._batch, self._tokens = arguments.batch, arguments.tokens
        self.model = Gpt(arguments.layers, arguments.width, arguments.tokens, arguments.mode == "checkpoint")
        self.model.to(self._on.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.store = open_store(arguments) if arguments.mode == "ebbtide" else None

    def next_batch(self):
        """Bytes and the bytes that follow them, each (batch, tokens), int64; the same for every contender with the same seed."""
        torch = self._torch
        starts = torch.randint(len(self._data) - self._tokens, (self._batch,), generator=self._draw).tolist()
        rows = torch.stack([self._data[start : start + self._tokens + 1] for start in starts]).long()
        return rows[:, :-1].contiguous().to(self._on.device), rows[:, 1:].contiguous().to(self._on.device)

    def step(self) -> dict:
        """One timed step; the digest of loss and gradients is taken after the clock has stopped."""
        batch = self.next_batch()
        before = self._counters()
        self._on.wait()
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with self.store or nullcontext(), self._on.precision():
            loss = self.model(*batch)
        loss.backward()
        self.optimizer.step()
        self._on.wait()
        seconds = time.perf_counter() - start
        after = self._counters()
        return {
            "seconds": seconds,
            "loss": loss.item(),
            "digest": self._digest(loss),
            "bytes": {name: after[name] - before[name] for name in after},
            "pass": self._pass(),
        }

    def observe(self) -> dict:
        """The bytes held over a forward and backward that nothing else sees: no update, the same random draws afterwards."""
        from saved_bytes import SavedBytes, sample_store

        state = self._draw.get_state()
        batch = self.next_batch()
        self._draw.set_state(state)
        self.optimizer.zero_grad(set_to_none=True)
        if self.store:
            with sample_store(self.store) as timeline:
                with self.store, self._on.precision():
                    loss = self.model(*batch)
                loss.backward()
                self._on.wait()
            answer = {"timeline": timeline}
        else:
            count = SavedBytes(self.model.parameters())
            with count.hooks(), self._on.precision():
                loss = self.model(*batch)
            loss.backward()
            self._on.wait()
            answer = {"timeline": count.timeline, "saved_bytes": count.peak}
        self.optimizer.zero_grad(set_to_none=True)
        return answer

    def finish(self) -> dict:
        report = self.store.report() if self.store else None
        if self.store:
            self.store.close()
        return {"peak_rss_bytes": peak_rss(), "peak_device_bytes": self._on.peak_bytes(), "report": report}

    def forget_peaks(self) -> None:
        """Starts the peaks anew, so that imports and observed steps do not count."""
        self._on.forget_peak()
        forget_peak_rss()

    def _counters(self) -> dict[str, int]:
        """What became of saved tensors so far, in bytes; empty without Ebbtide."""
        if not self.store:
            return {}
        stats = self.store.stats()
        return {name: stats[name]["bytes"] for name in COUNTERS}

    def _pass(self) -> dict[str, float]:
        """What the plan said of the last pass, and what came; empty without Ebbtide."""
        if not self.store:
            return {}
        stats = self.store.stats()
        return {name: stats[f"{name.removesuffix('_s')}_step_s"] for name in ("predicted_s", "measured_s", "lower_bound_s")} | {
            "peak_bytes": stats["device"]["peak_bytes"]
        }

    def _digest(self, loss) -> str:
        """128 bits over the loss and every parameter's gradient, in the parameters' order."""
        digest = hashlib.blake2b(struct.pack("<f", loss.item()), digest_size=16)
        for parameter in self.model.parameters():
            digest.update(parameter.grad.contiguous().view(self._torch.uint8).cpu().numpy())
        return digest.hexdigest()


def import_ebbtide():
    try:
        import ebbtide
    except ImportError as error:
        raise cli.BadInput(f"import ebbtide: {error}; `bash setup.sh` builds it into build/python") from None
    return ebbtide


def open_store(arguments):
    return import_ebbtide().Store(device_budget=arguments.budget, spill_to=arguments.spill)


def forget_peak_rss() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # a sandbox without it: the peak then covers the whole process, as it does for every contender


def peak_rss() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def take_turns(training: Training) -> None:
    """Answers the words on stdin until finish, or until demo.py has gone."""
    stepped = False
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "step" and not stepped:
            training.forget_peaks()
            stepped = True
        print(json.dumps({"observe": training.observe, "step": training.step, "finish": training.finish}[word]()), flush=True)
        if word == "finish":
            return


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
    training = Training(arguments)
    if arguments.turns:
        take_turns(training)
    else:
        train(training, arguments.steps)


def main() -> int:
    arguments = parse_arguments()
    if arguments.mode != "ebbtide":
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
