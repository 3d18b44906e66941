"""On an accelerator too, what an op made of weights is made again where the budget needs its memory: unless they change in between, then bytes are kept."""

import contextlib

import pytest
import torch
from torch import nn

import sim
from support import MIN_BYTES, assert_same_bits

STEPS = 8


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 32)).to(sim.DEVICE)


def grads(model):
    return [parameter.grad.cpu() for parameter in model.parameters()]


class Run:
    """A training, with a store or without."""

    def __init__(self, store=None, cast=True):
        self.store, self.cast, self.model = store, cast, mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, foreach=False)
        if store is not None:
            store.attach(self.model).remove()

    def loss(self, seed):
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)).to(sim.DEVICE)
        with self.store or contextlib.nullcontext(), torch.autocast(sim.DEVICE, dtype=torch.bfloat16, enabled=self.cast):
            return self.model(x).float().pow(2).mean()

    def step(self, seed, between=lambda run: None):
        self.optimizer.zero_grad()
        loss = self.loss(seed)
        between(self)
        loss.backward()
        seen = grads(self.model)  # which waits for the device, so that trials end with their step
        self.optimizer.step()
        return seen


def trained(store=None, between=lambda run: None, **how):
    run = Run(store, **how)
    return [gradient for number in range(STEPS) for gradient in run.step(number, between)]


@contextlib.contextmanager
def opened(seed):
    with sim.accelerators(seed=seed):
        store = sim.store(device_budget=0, min_bytes=MIN_BYTES, host_budget="64MiB")
        store._store.follow_plans(False)  # a plan may find other ways cheaper
        yield store
        store.close()
        del store


def plain(**how):
    with sim.accelerators():
        return trained(**how)


def redone(store, op):
    return store.stats()["recomputed_ops"].get(op, {"tensors": 0})["tensors"]


@pytest.mark.parametrize("seed", range(3))
def test_casts_of_weights(seed):
    reference = plain()
    with opened(seed) as store:
        assert_same_bits(trained(store), reference)
        assert redone(store, "cast") > 0
        assert store.stats()["unequal_redos"] == {}


@pytest.mark.parametrize("seed", range(3))
def test_matmuls_with_weights(seed):
    reference = plain(cast=False)
    with opened(seed) as store:
        store._store.use_costly_recipes(True)
        assert_same_bits(trained(store, cast=False), reference)
        assert redone(store, "addmm") > 0
        assert store.stats()["unequal_redos"] == {}


def write(run):
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(0.75)


def write_data(run):
    for parameter in run.model.parameters():
        parameter.data.mul_(0.75)


@pytest.mark.parametrize("change", [write, write_data])
def test_weights_that_change_before_the_backward_are_never_read_again(change):
    reference = plain(between=change)
    with opened(1) as store:
        assert_same_bits(trained(store, change), reference)
        assert redone(store, "cast") == 0
        assert store.stats()["unequal_redos"]["cast"] >= 1


def test_an_optimizer_steps_between_forward_and_backward():
    def program(store=None):
        run, seen = Run(store), []
        for number in range(STEPS):
            loss = run.loss(number)
            if number > 0:
                run.optimizer.step()
            run.optimizer.zero_grad()
            loss.backward()
            seen += grads(run.model)
        return seen

    with opened(2) as store:
        with_store = program(store)
        assert store.stats()["unequal_redos"] == {}
    with sim.accelerators():
        assert_same_bits(with_store, program())


def test_a_change_after_steps_without_one_is_an_error():
    with opened(3) as store:
        run = Run(store)
        for number in range(STEPS):
            run.step(number)
        assert redone(store, "cast") > 0
        loss = run.loss(STEPS)
        write(run)
        with pytest.raises(RuntimeError, match="cast.*modified after the forward.*recompute=False"):
            loss.backward()
        del loss, run


def normed(store=None, steps=STEPS, moves=False):
    """Half-way through, the norm's eps changes. `moves`: the model comes to the device once it is attached."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128, eps=1e-3), nn.Linear(128, 32))
    if not moves:
        model.to(sim.DEVICE)
    if store is not None:
        store.attach(model)
    model.to(sim.DEVICE)
    seen = []
    for number in range(steps):
        if number == steps // 2:
            model[1].eps = 0.5
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(number)).to(sim.DEVICE)
        model(x).pow(2).mean().backward()
        seen += grads(model)
        model.zero_grad()
    return seen


@pytest.mark.parametrize("moves", [False, True])
def test_layer_norms_whose_eps_is_known(moves):
    with sim.accelerators():
        reference = normed()
    with opened(4) as store:
        assert_same_bits(normed(store, moves=moves), reference)
        assert redone(store, "layer_norm") >= STEPS - 4  # two call sites, each compared first
        assert store.stats()["unequal_redos"] == {}


def test_layer_norms_of_models_that_were_not_attached():
    with opened(5) as store:
        model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 32)).to(sim.DEVICE)
        for _ in range(4):
            with sim.under(store, model):
                loss = model(torch.ones(64, 64).to(sim.DEVICE)).sum()
            loss.backward()
            grads(model)
        assert redone(store, "layer_norm") == 0
        del model, loss
