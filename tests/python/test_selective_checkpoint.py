"""torch's selective checkpointing inside a store: what it keeps is the store's too, where torch tells of it."""

import contextlib
import gc
import inspect
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import ebbtide
from support import assert_as_plain

TELLS = "respect_saved_tensors_hooks" in inspect.signature(checkpoint).parameters
ROWS = 64
BLOCKS = 3
CACHED = BLOCKS * ROWS * 256 * 4  # bytes: what each block's first product makes; the others are under min_bytes or not kept


def blocks():
    torch.manual_seed(4)
    return nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Tanh()) for _ in range(BLOCKS))


def keeps_products(context, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if op == torch.ops.aten.addmm.default and args[2].shape[1] == 256 else CheckpointPolicy.PREFER_RECOMPUTE


def run(net, scope, nested=False, **how):
    contexts = partial(create_selective_checkpoint_contexts, keeps_products)

    def kept(block, h):
        return checkpoint(block, h, use_reentrant=False, context_fn=contexts, **how)

    x = torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    net.zero_grad()
    with scope:
        h = x * 1
        for block in net:
            h = checkpoint(partial(kept, block), h, use_reentrant=False) if nested else kept(block, h)
        loss = h.pow(2).mean()
    loss.backward()
    return [x.grad, *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("nested", [False, True], ids=["by itself", "nested"])
def test_by_default_gradients_are_plain_torchs(store, nested):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of 2.14 and newer: this default will change
        assert_as_plain(store, lambda scope: run(blocks(), scope, nested))


@pytest.mark.skipif(not TELLS, reason="torch before 2.14 tells nobody of what selective checkpointing keeps")
def test_what_it_keeps_leaves(store):
    net = blocks()
    assert_as_plain(store, lambda scope: run(net, scope, respect_saved_tensors_hooks=False))
    gc.collect()
    without = store.stats()["saved"]
    assert_as_plain(store, lambda scope: run(net, scope, respect_saved_tensors_hooks=True))
    gc.collect()
    stats = store.stats()
    assert stats["saved"]["tensors"] - without["tensors"] == without["tensors"] + BLOCKS
    assert stats["saved"]["bytes"] - without["bytes"] == without["bytes"] + CACHED
    assert stats["passed_through_reasons"].get("Python hooks inside the scope", {"tensors": 0})["tensors"] > 0, "what torch makes again"
    assert stats["spilled"]["bytes"] > CACHED


@pytest.mark.skipif(not TELLS, reason="torch before 2.14 tells nobody of what selective checkpointing keeps")
def test_pythons_own_hooks_come_first(store):
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        with store:
            pass
        run(blocks(), store, respect_saved_tensors_hooks=True)
    outside = len(seen)

    class Inside:
        def __enter__(self):
            store.__enter__()
            self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t)
            self.hooks.__enter__()

        def __exit__(self, *error):
            self.hooks.__exit__(*error)
            store.__exit__(*error)

    run(blocks(), Inside(), respect_saved_tensors_hooks=True)
    assert seen[outside:].count((ROWS, 256)) == BLOCKS, "hooks inside the scope have what is kept"


@pytest.mark.skipif(not TELLS, reason="torch before 2.14 tells nobody of what selective checkpointing keeps")
def test_outside_a_scope_nobody_is_told(store):
    with store:
        pass
    run(blocks(), contextlib.nullcontext(), respect_saved_tensors_hooks=True)
    assert store.stats()["packed"]["tensors"] == 0


def test_with_regions_of_ours(store):
    net = blocks()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)

        def inside_ours(scope):
            x = torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
            with scope:
                y = ebbtide.checkpoint(lambda h: checkpoint(net[0], h, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, keeps_products)), x * 1).sum()
            return list(torch.autograd.grad(y, [x, *net[0].parameters()]))

        assert_as_plain(store, inside_ours)
