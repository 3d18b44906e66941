"""Checkpoints of torch's inside a store: what their own hooks take is named, and the rest is the store's."""

import functools

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import small_gpt
from peak import Form, plain, stored


def keep_products(context, op, *args, **kwargs):
    kept = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def whole_block(block, x):
    return checkpoint(block, x, use_reentrant=False)


def selective(block, x):
    return checkpoint(block, x, use_reentrant=False, context_fn=functools.partial(create_selective_checkpoint_contexts, keep_products))


def check(call):
    form = Form(lambda: small_gpt.GPT(call=call))
    without = plain(form)
    run = stored(form, without, 0)
    taken = run.stats["passed_through_reasons"]["Python hooks inside the scope"]
    assert taken["tensors"] > small_gpt.BLOCKS
    assert taken["bytes"] > 0
    assert "Python hooks inside the scope" in run.report
    return without, run, taken["bytes"]


def test_checkpointed_blocks():
    eager = plain(Form(small_gpt.GPT))
    without, run, taken = check(whole_block)
    assert without.peak < eager.peak
    assert taken > eager.saved  # of three steps; what is computed again is no less than what would have been saved
    assert run.peak <= without.peak


def test_selectively_checkpointed_blocks():
    without, run, taken = check(selective)
    assert run.peak <= without.peak
