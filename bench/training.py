"""One step of training after another, timed: a model, what it learns from, its optimizer, and a way of keeping what autograd saves."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from device import StepOn

COUNTERS = ("saved", "kept", "offloaded", "spilled", "recomputed")


@dataclass
class Way:
    """What becomes of activations. `around` is entered for each forward; `store` is Ebbtide's, where it is the way."""

    around: Callable[[], AbstractContextManager] = nullcontext
    store: object = None
    note: str = ""  # what a reader of its figures must know


class Training:
    """One step is: forward, backward, optimizer.

    `model(*batch)` is the loss; `batches` has `next()`, a step's batch, and `peek()`, the same without a step forward.
    """

    def __init__(self, model, batches, optimizer, on: StepOn, way: Way):
        self.model, self.optimizer, self.way = model, optimizer, way
        self._batches, self._on = batches, on
        self._rss_at_start = 0

    def step(self) -> dict:
        """One timed step; the digest of loss and gradients is taken after the clock has stopped."""
        batch = self._batches.next()
        before = self._counters()
        self._on.wait()
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with self.way.around(), self._on.precision():
            loss = self.model(*batch)
        loss.backward()
        self.optimizer.step()
        self._on.wait()
        seconds = time.perf_counter() - start
        after = self._counters()
        self._on.note_peak()  # before the digest needs memory of its own
        answer = {
            "seconds": seconds,
            "loss": loss.item(),
            "digest": self._on.digest(loss, (p.grad for p in self.model.parameters() if p.grad is not None)),
            "bytes": {name: after[name] - before[name] for name in after},
            "pass": self._pass(),
        }
        self._on.start_again()
        return answer

    def observe(self) -> dict:
        """The bytes held over a forward and backward that nothing else sees: no update, the same random draws afterwards."""
        from saved_bytes import SavedBytes, sample_store

        batch = self._batches.peek()
        self.optimizer.zero_grad(set_to_none=True)
        if self.way.store:
            with sample_store(self.way.store) as timeline:
                self._forward_and_backward(batch)
            answer = {"timeline": timeline}
        else:
            count = SavedBytes((*self.model.parameters(), *self.model.buffers()))
            with count.hooks():
                self._forward_and_backward(batch)
            answer = {"timeline": count.timeline, "saved_bytes": count.peak}
        self.optimizer.zero_grad(set_to_none=True)
        return answer

    def _forward_and_backward(self, batch) -> None:
        with self.way.around(), self._on.precision():
            loss = self.model(*batch)
        loss.backward()
        self._on.wait()

    def finish(self) -> dict:
        store = self.way.store
        report = store.report() if store else None
        if store:
            store.close()
        return {
            "peak_rss_bytes": peak_rss(),
            "rss_at_start_bytes": self._rss_at_start,
            "peak_device_bytes": self._on.peak_bytes(),
            "peak_reserved_bytes": self._on.peak_reserved_bytes(),
            "report": report,
        }

    def forget_peaks(self) -> None:
        """Starts the peaks anew, so that imports and observed steps do not count."""
        self._on.forget_peak()
        forget_peak_rss()
        self._rss_at_start = peak_rss()

    def _counters(self) -> dict[str, int]:
        """What became of saved tensors so far, in bytes; empty without Ebbtide."""
        if not self.way.store:
            return {}
        stats = self.way.store.stats()
        return {name: stats[name]["bytes"] for name in COUNTERS}

    def _pass(self) -> dict[str, float]:
        """What the plan said of the last pass, and what came; empty without Ebbtide."""
        if not self.way.store:
            return {}
        stats = self.way.store.stats()
        return {name: stats[f"{name.removesuffix('_s')}_step_s"] for name in ("predicted_s", "measured_s", "lower_bound_s")} | {
            "peak_bytes": stats["device"]["peak_bytes"],
            "predicted_peak_bytes": stats["predicted_peak_bytes"],
            "measured_peak_bytes": stats["measured_peak_bytes"],
        }


class TextBatches:
    """Bytes of a text and the bytes that follow them, each (batch, tokens), int64; the same for all that have the same seed.

    With `least_batch` each batch is of a size of its own, from that to `batch`.
    """

    def __init__(self, data: bytes, tokens: int, batch: int, seed: int, device, least_batch: int | None = None):
        import torch

        self._torch = torch
        self._data = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._draw = torch.Generator().manual_seed(seed)
        self._batch, self._least, self._tokens, self._device = batch, min(least_batch or batch, batch), tokens, device

    def next(self) -> tuple:
        torch = self._torch
        batch = self._batch
        if self._least < batch:
            batch = torch.randint(self._least, batch + 1, (), generator=self._draw).item()
        starts = torch.randint(len(self._data) - self._tokens, (batch,), generator=self._draw).tolist()
        rows = torch.stack([self._data[start : start + self._tokens + 1] for start in starts]).long()
        return rows[:, :-1].contiguous().to(self._device), rows[:, 1:].contiguous().to(self._device)

    def peek(self) -> tuple:
        state = self._draw.get_state()
        batch = self.next()
        self._draw.set_state(state)
        return batch


def forget_peak_rss() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # a sandbox without it: the peak then covers the whole process, as it does for every contender


def peak_rss() -> int:
    return _status("VmHWM")


def file_rss() -> int:
    """Of the resident set, what is files' now: programs and libraries, which a memory limit need not hold."""
    return _status("RssFile")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def take_turns(training: Training, ready: dict | None = None, **words: Callable[[], dict]) -> None:
    """Answers the words on stdin until finish, or until the one who asks has gone; `words` are understood too. `ready` is told at the start."""
    words = {"observe": training.observe, "step": training.step, "finish": training.finish} | words
    stepped = False
    print(json.dumps({"ready": True} | (ready or {})), flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "step" and not stepped:
            training.forget_peaks()
            stepped = True
        print(json.dumps(words[word]()), flush=True)
        if word == "finish":
            return
