"""A residual convolutional network."""

import torch
from torch import nn
from torch.nn import functional as F

COLOURS, CLASSES = 3, 10


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.halves = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.halves[1](F.relu(self.halves[0](x))))


class ConvNet(nn.Module):
    """Stages whose maps halve while the channels double, as in ResNet. Maps images (batch, 3, side, side) and labels to the mean loss."""

    def __init__(self, channels: int = 32, stages: int = 4, depth: int = 1):
        super().__init__()
        self.stem = nn.Conv2d(COLOURS, channels, 3, padding=1)
        self.blocks = nn.ModuleList()
        for _ in range(stages):
            self.blocks.extend(Residual(channels) for _ in range(depth))
            self.blocks.append(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1))
            channels *= 2
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)
