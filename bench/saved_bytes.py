"""The bytes that autograd holds for the backward, over the time of a step: counted for plain torch, sampled for Ebbtide."""

import threading
import time
from contextlib import contextmanager

import torch


class SavedBytes:
    """Counts the storages that autograd saves under `hooks()`, each once, for as long as a graph holds it; parameters aside.

    Threads: forward and backward on the thread that made it (the CPU's backward runs on its caller).
    """

    def __init__(self, parameters):
        self._start = time.perf_counter()
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._holders: dict[int, int] = {}
        self._held = 0
        self.timeline: list[tuple[float, int]] = []

    def hooks(self, but: type | None = None):
        """Tensors of the class `but` are not counted: parameters whose memory comes and goes, as FSDP's."""

        def pack(tensor):
            return tensor if but and isinstance(tensor, but) else _Saved(self, tensor)

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor if isinstance(saved, _Saved) else saved)

    @property
    def peak(self) -> int:
        return max((held for _, held in self.timeline), default=0)

    def _change(self, storage, holders: int) -> None:
        address = storage.data_ptr()
        if address in self._parameters:
            return
        before = self._holders.get(address, 0)
        self._holders[address] = before + holders
        if before == 0 or before + holders == 0:
            self._held += storage.nbytes() * holders
            self.timeline.append((time.perf_counter() - self._start, self._held))


class _Saved:
    def __init__(self, count: SavedBytes, tensor: torch.Tensor):
        self.tensor = tensor.detach()  # the tensor itself would hold its own graph: a cycle
        self._count = count
        count._change(tensor.untyped_storage(), +1)

    def __del__(self):
        self._count._change(self.tensor.untyped_storage(), -1)


@contextmanager
def sample_store(store, interval_s: float = 0.005):
    """Yields a list that fills with (seconds, bytes in memory, bytes on disk) of an Ebbtide store while the body runs."""
    samples: list[tuple[float, int, int]] = []
    start = time.perf_counter()
    ended = threading.Event()

    def sample():
        while True:
            stats = store.stats()
            held = stats["device"]["bytes"] + stats["host"]["bytes"]
            samples.append((time.perf_counter() - start, held, stats["spill"]["bytes"]))
            if ended.wait(interval_s):
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        ended.set()
        sampler.join()
