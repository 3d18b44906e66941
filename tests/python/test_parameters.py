"""Casts of parameters that autocast makes are made again where the budget needs their memory, unless parameters change in between: then bytes are kept."""

import contextlib
import gc

import pytest
import torch
from torch import nn

import ebbtide
from support import MIN_BYTES, assert_same_bits

STEPS_ON_TRIAL = 2
CASTS = 2  # a step of mlp() saves: the first layer's input wants no gradient


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 32))


def batch(seed=2):
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))


def grads(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


class Run:
    """A training, with a store or without: what a program does with it."""

    def __init__(self, store=None, model=None):
        self.store = store
        self.model = model or mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        if store is not None:
            store.attach(self.model).remove()

    def loss(self, seed=2, model=None):
        with self.store or contextlib.nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16):
            return (model or self.model)(batch(seed)).float().pow(2).mean()

    def step(self, seed=2):
        self.optimizer.zero_grad()
        self.loss(seed).backward()
        seen = grads(self.model)
        self.optimizer.step()
        return seen


def trusting(run):
    """Past the steps for which bytes are kept and compared."""
    for seed in range(STEPS_ON_TRIAL):
        run.step(seed)
    return run


@pytest.fixture(params=["kept", "spilled"])
def store(request, tmp_path):
    spill = {"spill_to": tmp_path} if request.param == "spilled" else {"on_full": "keep"}
    store = ebbtide.Store(device_budget=0, min_bytes=MIN_BYTES, **spill)
    store._store.follow_plans(False)  # a plan may find other ways cheaper
    yield store
    gc.collect()
    assert store.stats()["device"]["bytes"] == 0


def casts(store):
    return store.stats()["recomputed_ops"].get("cast", {"tensors": 0})["tensors"]


def same_with_and_without(store, program, steps=5):
    """`program(run, number)` returns tensors; all of a run's are those of a run without a store."""
    with_store, without = Run(store), Run()
    for number in range(steps):
        assert_same_bits(program(with_store, number), program(without, number))


def test_after_two_steps(store):
    same_with_and_without(store, lambda run, number: run.step(number))
    assert casts(store) == (5 - STEPS_ON_TRIAL) * CASTS
    assert store.stats()["unequal_redos"] == {}


def test_only_of_an_attached_model(store):
    run = Run()
    run.store = store
    trusting(run).step()
    assert casts(store) == 0


def test_an_optimizer_steps_between_forward_and_backward(store):
    def program(run, number):
        loss = run.loss(number)
        if number > 0:
            run.optimizer.step()
        run.optimizer.zero_grad()
        loss.backward()
        return grads(run.model)

    same_with_and_without(store, program)
    assert store.stats()["unequal_redos"] == {}


def test_two_micro_batches_with_a_step_between(store):
    def program(run, number):
        first, second = run.loss(number), run.loss(number + 7)
        run.optimizer.zero_grad()
        first.backward()
        run.optimizer.step()
        second.backward()
        seen = grads(run.model)
        run.optimizer.step()
        return seen

    same_with_and_without(store, program)
    assert casts(store) > 0


def test_what_was_made_again_for_a_step_is_given_out_unchanged(store):
    run = trusting(Run(store))
    loss = run.loss(5)
    before = store.stats()["recompute_s"]
    run.optimizer.step()
    assert store.stats()["recompute_s"] > before
    loss.backward()


def test_a_second_step_finds_nothing_to_make_again(store):
    run = trusting(Run(store))
    loss = run.loss(5)
    run.optimizer.step()
    before = store.stats()["recompute_s"]
    run.optimizer.step()
    assert store.stats()["recompute_s"] == before
    loss.backward()


def write(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.75)


def write_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(0.75)


def swap_with_average(model):
    """As the usual averages of weights do for an evaluation."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 0.5)


WRITES = [write, write_data, swap_with_average]


@pytest.mark.parametrize("change", WRITES)
def test_parameters_that_always_change_before_the_backward_are_never_read_again(store, change):
    def program(run, number):
        run.optimizer.zero_grad()
        loss = run.loss(number)
        change(run.model)
        loss.backward()
        seen = grads(run.model)
        run.optimizer.step()
        return seen

    same_with_and_without(store, program)
    assert casts(store) == 0
    assert store.stats()["unequal_redos"]["cast"] >= 1


@pytest.mark.parametrize("change", WRITES)
def test_a_change_after_steps_without_one_is_an_error_and_no_wrong_bit(store, change):
    run = trusting(Run(store))
    loss = run.loss()
    change(run.model)
    with pytest.raises(RuntimeError, match="cast.*modified (after the forward|in a way that torch does not tell).*recompute=False"):
        loss.backward()


def test_another_tensor_put_in_a_parameters_place_changes_nothing(store):
    def program(run, number):
        run.optimizer.zero_grad()
        loss = run.loss(number)
        for parameter in run.model.parameters():
            parameter.data = parameter.detach() * 0.75
        loss.backward()
        seen = grads(run.model)
        run.optimizer.step()
        return seen

    same_with_and_without(store, program, steps=1)
    with_store, without = trusting(Run(store)), trusting(Run())
    before = casts(store)
    assert_same_bits(program(with_store, 3), program(without, 3))
    assert casts(store) > before


def test_a_parameter_whose_storage_is_gone_is_not_read(store):
    run = trusting(Run(store))
    loss = run.loss()
    run.model[2].weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="resized"):
        loss.backward()


def test_a_state_dict_is_loaded_between_forward_and_backward(store):
    state = {name: value * 0.5 for name, value in mlp().state_dict().items()}
    with_store, without = Run(store), Run()
    handle = store.attach(with_store.model)
    for number in range(4):
        seen = []
        for run in (with_store, without):
            run.optimizer.zero_grad()
            loss = run.loss(number)
            if number > STEPS_ON_TRIAL:
                run.model.load_state_dict(state)
            loss.backward()
            seen.append(grads(run.model))
            run.optimizer.step()
        assert_same_bits(*seen)
    assert casts(store) > 0
    handle.remove()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 64)
        self.outer = nn.Linear(64, 64)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


def test_tied_weights(store):
    torch.manual_seed(3)
    with_store = Run(store, Tied())
    torch.manual_seed(3)
    without = Run(None, Tied())
    for number in range(5):
        assert_same_bits(with_store.step(number), without.step(number))
    assert casts(store) == 5 - STEPS_ON_TRIAL  # one cast, three uses


def test_two_models_that_train_each_other(store):
    """The generator's loss reads what the discriminator was before its step."""

    def gan(store):
        torch.manual_seed(4)
        generator, discriminator = Run(store, nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))), Run(store)
        seen = []
        for number in range(5):
            with store or contextlib.nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16):
                made = generator.model(batch(number))
                real = discriminator.model(batch(number + 50)).float().mean()
                fake = discriminator.model(made.detach()).float().mean()
                fooled = -discriminator.model(made).float().mean()
            discriminator.optimizer.zero_grad()
            (fake - real).backward()
            discriminator.optimizer.step()
            generator.optimizer.zero_grad()
            fooled.backward()
            generator.optimizer.step()
            seen += grads(generator.model) + grads(discriminator.model)
        return seen

    assert_same_bits(gan(store), gan(None))
    assert casts(store) > 0


def test_an_optimizer_that_steps_inside_the_backward(store):
    def trained(store):
        run = Run(store)
        optimizers = {parameter: torch.optim.SGD([parameter], lr=0.05) for parameter in run.model.parameters()}

        def step(parameter):
            optimizers[parameter].step()
            parameter.grad = None

        for parameter in run.model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        for number in range(5):
            run.loss(number).backward()
        return list(run.model.parameters())

    assert_same_bits(trained(store), trained(None))
    assert casts(store) >= CASTS
    assert store.stats()["unequal_redos"] == {}


def test_a_graph_outlives_its_store(tmp_path):
    store = ebbtide.Store(device_budget=0, min_bytes=MIN_BYTES, spill_to=tmp_path)
    store._store.follow_plans(False)
    run, reference = trusting(Run(store)), trusting(Run())
    loss, expected = run.loss(), reference.loss()
    run.store = None
    del store
    for each, of in ((run, loss), (reference, expected)):
        each.optimizer.step()
        each.optimizer.zero_grad()
        of.backward()
    assert_same_bits(grads(run.model), grads(reference.model))


def test_a_kept_graph(store):
    def program(run, number):
        run.optimizer.zero_grad()
        loss = run.loss(number)
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
        run.optimizer.step()
        loss.backward()
        return grads(run.model)

    same_with_and_without(store, program)


def test_an_autocast_around_several_steps(store):
    """Its cache keeps casts of what the parameters once were."""

    def trained(store):
        run = Run(store)
        seen = []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for number in range(5):
                seen += run.step(number)
        return seen

    assert_same_bits(trained(store), trained(None))


def test_parameters_that_nobody_steps_are_never_read_again(store):
    run = Run(store)
    for number in range(5):
        run.optimizer.zero_grad()
        run.loss(number).backward()
        write(run.model)
    assert casts(store) == 0
    assert store.stats()["unequal_redos"] == {}
