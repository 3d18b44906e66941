"""What a backward saves for another on an accelerator, on a thread of the engine's, is the store's where it was called inside a scope."""

import contextlib

import torch

import sim
from support import MIN_BYTES, assert_same_bits


def leaf():
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(3)).to(sim.DEVICE).requires_grad_()


def penalty(x, context, saved=lambda: 0):
    """The gradient of a gradient's square; and how much the first backward saved."""
    with context:
        y = ((x * 2).sin().exp() * x).sum()
        before = saved()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        of_backward = saved() - before
        z = gradient.pow(2).sum()
    (result,) = torch.autograd.grad(z, x)
    return result.cpu(), of_backward


def test_it_is_counted_and_moves():
    with sim.accelerators(seed=5):
        reference, _ = penalty(leaf(), contextlib.nullcontext())
    with sim.accelerators(seed=6):
        store = sim.store(device_budget=0, host_budget="16MiB", min_bytes=MIN_BYTES)
        for _ in range(3):
            result, saved = penalty(leaf(), store, lambda: store.stats()["packed"]["tensors"])
            assert_same_bits([result], [reference])
            assert saved > 0
        assert store.stats()["device"]["bytes"] == 0
        store.close()


def test_of_scopes_that_are_left_in_another_order():
    with sim.accelerators(seed=7):
        reference, _ = penalty(leaf(), contextlib.nullcontext())
        outer, inner = (sim.store(device_budget=0, host_budget="16MiB", min_bytes=MIN_BYTES) for _ in range(2))
        for store in (outer, inner):
            penalty(leaf(), store)  # each has met the accelerator
        for store in (outer, inner):
            store.__enter__()
        outer.__exit__(None, None, None)
        before = inner.stats()["packed"]["tensors"], outer.stats()["packed"]["tensors"]
        result, _ = penalty(leaf(), contextlib.nullcontext())
        assert inner.stats()["packed"]["tensors"] > before[0]
        inner.__exit__(None, None, None)
        assert outer.stats()["packed"]["tensors"] == before[1]
        assert_same_bits([result], [reference])
        after = inner.stats()["packed"]["tensors"]
        penalty(leaf(), contextlib.nullcontext())
        assert inner.stats()["packed"]["tensors"] == after
        outer.close()
        inner.close()
