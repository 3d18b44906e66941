"""A mixture of experts, whose shapes are others in every step."""

import torch
from torch import nn
from torch.nn import functional as F

VALUES = 256


class Experts(nn.Module):
    """Each token goes to the expert that its router prefers: how many an expert gets differs by layer and by step."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, mine, (expert(x[mine]) * weights[mine, None]).type_as(out))
        return x + out


class MixtureOfExperts(nn.Module):
    """Maps bytes (batch, tokens) and the bytes that follow them to the mean loss."""

    def __init__(self, layers: int = 6, width: int = 512, experts: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(VALUES, width)
        self.blocks = nn.ModuleList(Experts(width, experts) for _ in range(layers))
        self.head = nn.Linear(width, VALUES)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(inputs).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x), targets.flatten())
