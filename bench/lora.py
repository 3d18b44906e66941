"""LoRA: what is frozen, and small trained adapters beside it."""

import torch
from torch import nn


class LowRank(nn.Module):
    """A frozen linear layer with an adapter of rank `rank`, which is zero at first."""

    def __init__(self, frozen: nn.Linear, rank: int):
        super().__init__()
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.up(self.down(x))


def with_adapters(model: nn.Module, rank: int = 16) -> nn.Module:
    """Freezes `model` and gives every linear layer of its `blocks` an adapter."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear):
                parent, _, last = name.rpartition(".")
                setattr(block.get_submodule(parent), last, LowRank(layer, rank))
    return model
