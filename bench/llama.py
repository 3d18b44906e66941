"""A Llama-style decoder: RMSNorm, rotary embeddings, SwiGLU; no dropout, no biases."""

import torch
from torch import nn
from torch.nn import functional as F

HEAD_WIDTH = 64
VALUES = 256


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def hidden_width(width: int) -> int:
    return (8 * width // 3 + 63) // 64 * 64


class Norm(nn.Module):
    """As in the Llama sources: the mean square in fp32. `fused`: torch's own, which saves its input and a number a row."""

    def __init__(self, width: int, eps: float = 1e-5, fused: bool = False):
        super().__init__()
        self.eps, self.fused = eps, fused
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class GatedProduct(torch.autograd.Function):
    """silu(gate) * up, which saves its two inputs alone, as fused kernels do."""

    @staticmethod
    def forward(ctx, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


class Block(nn.Module):
    def __init__(self, width: int, head_width: int = HEAD_WIDTH, fused: bool = False):
        super().__init__()
        self.heads, self.head_width, self.fused = width // head_width, head_width, fused
        hidden = hidden_width(width)
        self.attention_norm, self.mlp_norm = Norm(width, fused=fused), Norm(width, fused=fused)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        normed = self.attention_norm(x)
        query, key, value = (
            projection(normed).view(batch, tokens, self.heads, self.head_width).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(rotated(query, cos, sin), rotated(key, cos, sin), value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        normed = self.mlp_norm(x)
        gate, up = self.gate(normed), self.up(normed)
        return x + self.down(GatedProduct.apply(gate, up) if self.fused else F.silu(gate) * up)


class Llama(nn.Module):
    """Maps bytes (batch, tokens) and the bytes that follow them to the mean loss."""

    def __init__(self, layers: int, width: int, tokens: int, head_width: int = HEAD_WIDTH, fused: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(VALUES, width)
        self.blocks = nn.ModuleList(Block(width, head_width, fused) for _ in range(layers))
        self.final_norm = Norm(width, fused=fused)
        self.head = nn.Linear(width, VALUES, bias=False)
        angles = torch.outer(torch.arange(tokens), 10000.0 ** (-torch.arange(0, head_width, 2) / head_width)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.final_norm(x)).view(-1, VALUES), targets.view(-1))
