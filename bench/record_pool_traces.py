"""Records what real training steps ask of the pool of host memory: bench/traces/*.txt, which `run.sh pool` replays.

An event a line: `+ ID BYTES` where a storage is saved for the backward, `- ID` where the graph lets go of it, `=` where a step ends.
Storages of parameters, and those under the 64 KiB that a store leaves alone, are not in it.
"""

import itertools
import random
import sys
from pathlib import Path

import torch

import cli
from convnet import ConvNet
from gpt import Gpt
from llama import Llama
from moe import MixtureOfExperts

FOLDER = Path(__file__).resolve().parent / "traces"
LEAST_BYTES = 64 << 10


class Recorder:
    """Threads: one."""

    def __init__(self, parameters):
        self.lines: list[str] = []
        self._outside = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._numbers = itertools.count()
        self._live: dict[int, list[int]] = {}  # address: number, holders

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(self, tensor), lambda saved: saved.tensor)

    def hold(self, storage) -> None:
        address = storage.data_ptr()
        if address in self._outside or storage.nbytes() < LEAST_BYTES:
            return
        if address not in self._live:
            self._live[address] = [next(self._numbers), 0]
            self.lines.append(f"+ {self._live[address][0]} {storage.nbytes()}")
        self._live[address][1] += 1

    def let_go(self, storage) -> None:
        held = self._live.get(storage.data_ptr())
        if held is None:
            return
        held[1] -= 1
        if held[1] == 0:
            self.lines.append(f"- {held[0]}")
            del self._live[storage.data_ptr()]


class _Saved:
    def __init__(self, recorder: Recorder, tensor: torch.Tensor):
        self.tensor = tensor.detach()  # the tensor itself would hold its own graph: a cycle
        self._recorder = recorder
        recorder.hold(tensor.untyped_storage())

    def __del__(self):
        self._recorder.let_go(self.tensor.untyped_storage())


def text(batch: int, tokens: int) -> list[torch.Tensor]:
    sample = torch.randint(256, (batch, tokens + 1))
    return [sample[:, :-1].contiguous(), sample[:, 1:].contiguous()]


TRACES = {
    "gpt": (lambda: Gpt(layers=6, width=384, tokens=256), lambda: text(8, 256), 2),
    "llama": (lambda: Llama(layers=6, width=384, tokens=256), lambda: text(8, 256), 2),
    "conv": (ConvNet, lambda: [torch.randn(16, 3, 96, 96), torch.randint(10, (16,))], 2),
    # A batch of its own size each step, as when texts are packed by length.
    "moe": (MixtureOfExperts, lambda: text(random.randint(4, 8), 256), 12),
}


def main() -> int:
    cli.Parser(prog="record_pool_traces", description=__doc__.splitlines()[0]).parse_args()
    for name, (make, batch, steps) in TRACES.items():
        torch.manual_seed(0)
        random.seed(0)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        recorder = Recorder(model.parameters())
        for _ in range(steps):
            with recorder.hooks():
                loss = model(*batch())
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
            recorder.lines.append("=")
        (FOLDER / f"{name}.txt").write_text("\n".join(recorder.lines) + "\n")
        print(f"{name}: {len(recorder.lines)} events in {steps} steps", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run("record_pool_traces", main)
