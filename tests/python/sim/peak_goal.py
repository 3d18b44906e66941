"""The peak of a process on a device is what was asked for: `device_memory`, or what the device has."""

import contextlib
import functools
import gc

import pytest
import torch

import sim
import small_gpt
from support import MIN_BYTES, assert_same_bits

STEPS = 10


def trained(store=None):
    """Losses and gradients of each step, with an optimizer that makes its state in the first."""
    torch.manual_seed(1)
    model = small_gpt.GPT().to(sim.DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    seen = []
    for tokens, targets in small_gpt.batches(STEPS):
        with sim.under(store, model) if store else contextlib.nullcontext():
            loss = model(tokens.to(sim.DEVICE), targets.to(sim.DEVICE))
        loss.backward()
        seen += [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]
        del loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return seen


@functools.cache
def plain():
    """Its results, and its peak."""
    with sim.accelerators() as machine:
        return trained(), machine.peak()


def open_store(**options):
    return sim.store(min_bytes=MIN_BYTES, host_budget="64MiB", **options)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_the_peak_is_held(share):
    results, peak = plain()
    most = int(share * peak)
    with sim.accelerators(capacity=most):
        with pytest.raises(torch.OutOfMemoryError):
            trained()
        gc.collect()
    with sim.accelerators(seed=3, capacity=most):  # one byte more is an error
        store = open_store(device_memory=most)
        assert_same_bits(trained(store), results)
        stats = store.stats()
        (memory,) = stats["device_memory"].values()
        assert memory["most_bytes"] == most
        assert 0.8 * most < memory["peak_bytes"] <= most
        assert memory["others_bytes"] < memory["peak_bytes"]
        assert stats["offloaded"]["tensors"] > 0
        assert "the process had" in store.report()
        store.close()


def test_a_model_that_fits_is_left_alone():
    results, peak = plain()
    with sim.accelerators(seed=4):
        store = open_store(device_memory=3 * peak)
        assert_same_bits(trained(store), results)
        stats = store.stats()
        assert stats["offloaded"]["tensors"] == stats["recomputed"]["tensors"] == 0
        store.close()


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_without_a_word_it_is_what_the_device_has(share):
    results, peak = plain()
    with sim.accelerators(seed=5, capacity=int(share * peak)):
        store = open_store()
        assert_same_bits(trained(store), results)
        assert store.stats()["offloaded"]["tensors"] > 0
        store.close()


def test_what_no_budget_can_hold_is_told(caplog):
    results, peak = plain()
    with sim.accelerators(seed=6):
        store = open_store(device_memory=peak // 50)
        assert_same_bits(trained(store), results)
        assert "no budget holds that" in caplog.text
        store.close()
