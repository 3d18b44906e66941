"""A byte-level GPT in nanoGPT's layout; gpt.h is the same model in C++."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

BYTE_VALUES = 256
HEAD_WIDTH = 64


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            part.view(batch, tokens, self.heads, HEAD_WIDTH).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(x)).split(width, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(x)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class Gpt(nn.Module):
    """Maps bytes (batch, tokens) and the bytes that follow them to the mean loss.

    `run_block(block, x)` runs a block, for those who would not keep what is inside.
    """

    def __init__(self, layers: int, width: int, tokens: int, run_block: Callable = lambda block, x: block(x)):
        super().__init__()
        self.run_block = run_block
        self.byte_embedding = nn.Embedding(BYTE_VALUES, width)
        self.position_embedding = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTE_VALUES, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.byte_embedding(inputs) + self.position_embedding.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = self.run_block(block, x)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.view(-1, BYTE_VALUES), targets.view(-1))
