"""Records what real training steps ask of the pool of host memory: bench/traces/*.txt, which `run.sh pool` replays.

An event a line: `+ ID BYTES` where a storage is saved for the backward, `- ID` where the graph lets go of it, `=` where a step ends.
Storages of parameters, and those under the 64 KiB that a store leaves alone, are not in it.
"""

import itertools
import random
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import cli
from gpt import Gpt
from llama import Llama

FOLDER = Path(__file__).resolve().parent / "traces"
LEAST_BYTES = 64 << 10


class ConvNet(nn.Module):
    """Residual stages whose maps halve while the channels double, as in ResNet."""

    def __init__(self, channels: int = 32, stages: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.stages = nn.ModuleList()
        for _ in range(stages):
            self.stages.append(nn.ModuleList(self._half(channels) for _ in range(2)))
            self.stages.append(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1))
            channels *= 2
        self.head = nn.Linear(channels, 10)

    @staticmethod
    def _half(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x) if isinstance(stage, nn.Conv2d) else F.relu(x + stage[1](F.relu(stage[0](x))))
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)


class MixtureOfExperts(nn.Module):
    """Each token goes to the expert that its router prefers: how many an expert gets differs by layer and by step."""

    def __init__(self, layers: int = 6, width: int = 512, experts: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.routers = nn.ModuleList(nn.Linear(width, experts) for _ in range(layers))
        self.experts = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(experts))
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 256)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(inputs).flatten(0, 1)
        for router, experts in zip(self.routers, self.experts):
            weights, chosen = router(x).softmax(-1).max(-1)
            out = torch.zeros_like(x)
            for number, expert in enumerate(experts):
                mine = (chosen == number).nonzero()[:, 0]
                out = out.index_add(0, mine, expert(x[mine]) * weights[mine, None])
            x = x + out
        return F.cross_entropy(self.head(x), targets.flatten())


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
