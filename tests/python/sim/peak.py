"""The allocator's peak against what a store says of itself.

Two runs without a store say what is right and what a program needs beside its saved tensors: in the second, torch's own hooks set apart the memory of every
tensor that may move, and the allocator notes the most that the others were. With a store the allocator may not have held more than these others and what the
store's statistics say was alive, in its budget or in none.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Callable

import pytest
import torch

import sim
import small_gpt
from support import MIN_BYTES, assert_same_bits

STEPS = 3


@dataclasses.dataclass
class Form:
    """One way to train the model."""

    make: Callable[[], small_gpt.GPT]
    compiled: Callable[[small_gpt.GPT], Callable] = lambda model: model
    forward: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext  # around it


def trained(form, context=contextlib.nullcontext):
    """Losses and gradients of a few steps of SGD; the forward under `context(model)`."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    model = form.make().to(sim.DEVICE)
    call = form.compiled(model)
    trained_ones = [p for p in model.parameters() if p.requires_grad]
    seen = []
    for tokens, targets in small_gpt.batches(STEPS):
        tokens, targets = tokens.to(sim.DEVICE), targets.to(sim.DEVICE)
        with context(model), form.forward():
            loss = call(tokens, targets)
        loss.backward()
        seen += [loss.detach().cpu(), *(p.grad.cpu() for p in trained_ones)]
        del loss
        with torch.no_grad():
            for p in trained_ones:
                p -= 0.1 * p.grad
                p.grad = None
    return seen


@dataclasses.dataclass
class Plain:
    """What a run without a store needs."""

    results: list[torch.Tensor]
    peak: int
    others: int  # the most that was allocated and not a saved tensor that may move
    largest: int  # of the saved tensors

    @property
    def saved(self):
        return self.peak - self.others


def plain(form):
    with sim.accelerators() as machine:
        results = trained(form)
        peak = machine.peak()
    largest = 0

    def setting_apart(model):
        stays = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

        def pack(tensor):
            nonlocal largest
            storage = tensor.untyped_storage()
            if storage.nbytes() >= MIN_BYTES and storage.data_ptr() not in stays:
                sim.set_apart(tensor)
                largest = max(largest, storage.nbytes())
            return tensor if tensor.is_leaf else tensor.detach()

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    with sim.accelerators() as machine:
        assert_same_bits(trained(form, setting_apart), results)
        assert machine.peak() == peak
        return Plain(results, peak, machine.peak_of_others(), largest)


@dataclasses.dataclass
class Stored:
    """What a run under a store did."""

    peak: int
    bound: int  # of the peak, by what the store says
    stats: dict
    report: str


def stored(form, without, budget, **machine_options):
    """Trains under a store, and holds it to its promises."""
    with sim.accelerators(**machine_options) as machine:
        store = sim.store(device_budget=budget, min_bytes=MIN_BYTES, host_budget="64MiB")
        assert_same_bits(trained(form, lambda model: sim.under(store, model)), without.results)
        gc.collect()
        stats, report, peak = store.stats(), store.report(), machine.peak()
        store.close()
        del store
    assert stats["device"]["bytes"] == stats["handed_over"] == stats["referenced_elsewhere"] == 0
    assert stats["device"]["peak_bytes"] <= budget + without.largest
    bound = without.others + stats["alive_peak"]
    assert peak <= bound, report
    return Stored(peak, bound, stats, report)


def runs_out_of_memory(form, capacity):
    with sim.accelerators(capacity=capacity):
        with pytest.raises(torch.OutOfMemoryError):
            trained(form)
        gc.collect()
    return True
