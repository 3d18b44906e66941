"""A small GPT, and the forms in which people train one."""

import torch
from torch import nn
from torch.nn import functional as F

BLOCKS, WIDTH, HEADS, LENGTH, BATCH, VOCABULARY = 6, 64, 4, 64, 4, 96


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), float("-inf")).triu(1))

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.to_qkv(x).split(width, dim=2))
        weights = torch.softmax(q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5 + self.mask, dim=-1)
        return self.project((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Experts(nn.Module):
    """Each token goes to one of four experts, so that shapes change from step to step."""

    def __init__(self):
        super().__init__()
        self.route = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(dense(WIDTH) for _ in range(4))

    def forward(self, x):
        tokens = x.reshape(-1, WIDTH)
        weights = self.route(tokens).softmax(-1)
        best, chosen = weights.max(-1)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            mine = (chosen == i).nonzero().squeeze(1)
            out = out.index_add(0, mine, expert(tokens[mine]) * best[mine].unsqueeze(1))
        return out.view_as(x)


class LowRank(nn.Module):
    """LoRA: a frozen layer, and a small trained one beside it."""

    def __init__(self, frozen, rank=4):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)

    def forward(self, x):
        return self.frozen(x) + self.up(self.down(x))


def dense(inside=4 * WIDTH):
    return nn.Sequential(nn.Linear(WIDTH, inside), nn.GELU(), nn.Linear(inside, WIDTH))


class Block(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm_2, self.inner = nn.LayerNorm(WIDTH), inner()

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.inner(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, inner=dense, call=lambda block, x: block(x)):
        """`call` runs a block: where checkpoints go."""
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(inner) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.call = call

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.place.weight
        for block in self.blocks:
            x = self.call(block, x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def with_adapters(model):
    """All is frozen but the adapters of the attention's layers."""
    model.requires_grad_(False)
    for block in model.blocks:
        block.attention.to_qkv = LowRank(block.attention.to_qkv)
        block.attention.project = LowRank(block.attention.project)
    return model


def batches(steps):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCABULARY, (2, BATCH, LENGTH), generator=generator) for _ in range(steps)]
