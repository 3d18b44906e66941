"""Steps on an accelerator that repeat follow a plan made by its own times, and it changes no bit."""

import contextlib

import pytest
import torch

import sim
import small_gpt
from support import MIN_BYTES, assert_same_bits

STEPS = 10


def trained(store=None):
    """Losses and gradients of each step."""
    torch.manual_seed(1)
    model = small_gpt.GPT().to(sim.DEVICE)
    seen = []
    for tokens, targets in small_gpt.batches(STEPS):
        with sim.under(store, model) if store else contextlib.nullcontext():
            loss = model(tokens.to(sim.DEVICE), targets.to(sim.DEVICE))
        loss.backward()
        seen += [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]
        del loss
        model.zero_grad(set_to_none=True)
    return seen


@pytest.mark.parametrize("budget", ["0%", "30%", "60%"])
def test_steps_that_repeat_follow_a_plan(budget):
    with sim.accelerators(seed=5):
        reference = trained()
    with sim.accelerators(seed=6):
        store = sim.store(device_budget=budget, host_budget="64MiB", min_bytes=MIN_BYTES)
        assert_same_bits(trained(store), reference)
        stats, plan = store.stats(), store.plan()
        assert stats["plans"] >= 2  # one of the second pass, one of the medians of three
        assert len(plan) == store.last_pass()["saved_tensors"]
        assert all(record["device"] for record in plan)
        assert stats["predicted_step_s"] > 0
        store.close()


class OverTwoDevices(torch.nn.Module):
    """Its second half is on the second device."""

    def __init__(self):
        super().__init__()
        half = lambda: torch.nn.Sequential(*(layer for _ in range(3) for layer in (torch.nn.Linear(64, 64), torch.nn.GELU())))  # noqa: E731
        self.first, self.second = half().to(f"{sim.DEVICE}:0"), half().to(f"{sim.DEVICE}:1")

    def forward(self, x):
        return self.second(self.first(x).to(f"{sim.DEVICE}:1")).pow(2).mean()


def test_steps_over_two_devices():
    """Their clocks are read while they work; whether they can be compared, and a plan be made, is left to the weather."""

    def trained(store=None):
        torch.manual_seed(1)
        model = OverTwoDevices()
        seen = []
        for _ in range(STEPS):
            x = torch.randn(64, 64)
            with sim.under(store, model) if store else contextlib.nullcontext():
                loss = model(x.to(f"{sim.DEVICE}:0"))
            loss.backward()
            seen += [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]
            del loss
            model.zero_grad(set_to_none=True)
        return seen

    with sim.accelerators(seed=10):
        reference = trained()
    with sim.accelerators(seed=11):
        store = sim.store(device_budget="30%", host_budget="64MiB", min_bytes=MIN_BYTES, recompute=False)
        assert_same_bits(trained(store), reference)
        stats = store.stats()
        assert stats["offloaded"]["bytes"] > 0
        store.close()


def priced(attached):
    """How many records of a step have a recipe that a plan has weighed."""
    torch.manual_seed(1)
    model = small_gpt.GPT().to(sim.DEVICE)
    store = sim.store(device_budget="0%", host_budget="64MiB", min_bytes=MIN_BYTES)
    store._store.use_costly_recipes(True)
    if attached:
        store.attach(model).remove()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, foreach=False)
    for tokens, targets in list(small_gpt.batches(4)) * 5:
        with sim.under(store, model):
            loss = model(tokens.to(sim.DEVICE), targets.to(sim.DEVICE))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # the device's trials of recipes end with their step
    plan = store.plan()
    store.close()
    return sum(record["why"] != "it has no recipe" for record in plan)


@pytest.mark.parametrize("attached", [True, False])
def test_matmuls_are_weighed_where_their_weights_are_known(attached):
    with sim.accelerators(seed=7):
        # Of each block what GELU made, and what the layer before it did.
        assert priced(attached) == (2 if attached else 1) * small_gpt.BLOCKS


def test_autocasts_cache_of_weights_does_not_keep_what_is_made_of_them():
    """It holds the cast weights until the forward is over, and a layer's result that is to be made again must not wait for that."""

    def trained(store=None):
        torch.manual_seed(1)
        model = small_gpt.GPT().to(sim.DEVICE)
        if store:
            store._store.use_costly_recipes(True)
            store.attach(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, foreach=False)
        seen = []
        for tokens, targets in small_gpt.batches(STEPS):
            with torch.autocast(sim.DEVICE, dtype=torch.bfloat16):
                loss = model(tokens.to(sim.DEVICE), targets.to(sim.DEVICE))
            loss.backward()
            seen += [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]
            optimizer.step()
            optimizer.zero_grad()
        return seen

    with sim.accelerators(seed=8):
        reference = trained()
    with sim.accelerators(seed=9):
        store = sim.store(device_budget="0%", host_budget="64MiB", min_bytes=MIN_BYTES)
        assert_same_bits(trained(store), reference)
        redone = store.stats()["recomputed_ops"]
        assert redone["addmm"]["tensors"] >= 2 * small_gpt.BLOCKS, redone
        store.close()
