"""Storages whose owner makes them smaller after they were saved, as FSDP2 does with parameters: what was there must not be read."""

import contextlib

import pytest
import torch

import ebbtide
from support import MIN_BYTES


def gradient(scope, left: int, rows: int) -> torch.Tensor:
    """Of x; what was made smaller only w's, which is not asked for, would want."""
    torch.manual_seed(0)
    x, w = torch.randn(rows, 1024, requires_grad=True), torch.randn(1024, 64, requires_grad=True)

    def product():
        y = x * 2
        z = y @ w
        y.untyped_storage().resize_(left)
        return z

    with scope:
        loss = (product() * 3).pow(2).sum()
    return torch.autograd.grad(loss, [x])[0]


@pytest.mark.parametrize("how", [{}, {"verify": True}, {"recompute": False}, {"recompute": False, "verify": True}], ids=str)
@pytest.mark.parametrize("left, rows", [(0, 1024), (4096, 4096), (2 << 20, 1024)])
def test_it_is_left_alone(tmp_path, left, rows, how):
    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES, **how)
    assert torch.equal(gradient(store, left, rows), gradient(contextlib.nullcontext(), left, rows))
    assert store.stats()["spilled"]["tensors"] > 0
