"""A model attached to a store: every call of it runs inside."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

import ebbtide
from support import MIN_BYTES, assert_same_bits, build


@pytest.fixture
def store(tmp_path):
    return ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)


def gradients(model, x):
    model.zero_grad()
    model(x).pow(2).mean().backward()
    return [p.grad.clone() for p in model.parameters()]


def saved(store):
    return store.stats()["saved"]["tensors"]


def packed_outside(store):
    """Whether a forward outside the model is packed: then a scope was left behind."""
    before = store.stats()["packed"]["tensors"]
    (torch.randn(4096, requires_grad=True) * 2).sin().sum().backward()
    return store.stats()["packed"]["tensors"] > before


def test_every_call_is_inside_until_removed(store):
    model, x = build("mlp")
    reference = gradients(model, x)
    handle = store.attach(model)
    assert_same_bits(gradients(model, x), reference)
    first = saved(store)
    assert first > 0 and not packed_outside(store)
    assert_same_bits(gradients(model, x), reference)
    assert saved(store) == 2 * first
    handle.remove()
    handle.remove()
    gradients(model, x)
    assert saved(store) == 2 * first
    with store.attach(model):
        gradients(model, x)
    assert saved(store) == 3 * first
    gradients(model, x)
    assert saved(store) == 3 * first
    assert store.stats()["passes"] == 3


def test_enable_is_one_line(tmp_path):
    model, x = build("mlp")
    reference = gradients(model, x)
    store = ebbtide.enable(model, device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    assert_same_bits(gradients(model, x), reference)
    assert store.stats()["spilled"]["tensors"] > 0


@pytest.mark.parametrize("called_before", [True, False])
def test_closing_the_store_of_enable_leaves_the_model_plain(tmp_path, called_before):
    model, x = build("mlp")
    reference = gradients(model, x)
    store = ebbtide.enable(model, device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    if called_before:
        gradients(model, x)
    store.close()
    before = store.stats()["packed"]["tensors"]
    assert_same_bits(gradients(model, x), reference)
    assert store.stats()["packed"]["tensors"] == before
    store.close()
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_closing_the_store_of_enable_inside_a_call(tmp_path):
    class Closing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)
            self.store = None

        def forward(self, x):
            x = self.layer(x).sin()
            if self.store is not None:
                self.store.close()
            return x.exp() * x

    model, x = Closing(), torch.randn(64, 64)
    reference = gradients(model, x)
    store = ebbtide.enable(model, device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    model.store = store
    assert_same_bits(gradients(model, x), reference)
    assert saved(store) > 0 and not packed_outside(store)
    assert_same_bits(gradients(model, x), reference)


def test_parameters_and_buffers_never_move(store):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64))
            self.register_buffer("mask", torch.rand(64, 64))

        def forward(self, x):
            return x @ (self.weight.detach().t() * 1) * self.mask.view(64, 64) + x @ self.weight

    model, x = Masked(), torch.randn(64, 64, requires_grad=True)
    store.attach(model)
    model(x).sum().backward()
    assert known(store) >= 1


KNOWN = "parameter or buffer of an attached model"


def known(store):
    """How many tensors were known as a parameter or a buffer so far."""
    return store.stats()["passed_through_reasons"].get(KNOWN, {"tensors": 0})["tensors"]


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("t", torch.randn(128, 128))  # 64 KiB

    def forward(self, x):
        return (x * 2) * self.t


def test_what_moves_or_changes_its_type_is_known_anew(store):
    def count(x=torch.randn(128, 128)):
        before = known(store)
        model(x.to(model.t.dtype).requires_grad_()).sum().backward()
        return known(store) - before

    model = Table()
    store.attach(model)
    assert count() == 1
    model.double()
    assert count() == 1
    model.float()
    assert count() == 1
    model.load_state_dict({"t": torch.ones(128, 128)}, assign=True)
    assert count() == 1
    assert count() == 1


def test_weights_that_a_caller_puts_in_the_place_of_parameters_move(store):
    """They are of one step, which may hold as many of them as it likes."""
    model, x = nn.Linear(64, 64), torch.randn(64, 64)
    store.attach(model)
    fast = {name: parameter * 2 for name, parameter in model.named_parameters()}
    torch.func.functional_call(model, fast, (x.requires_grad_(),)).sum().backward()
    assert known(store) == 0 and saved(store) > 0


def test_copies_and_pickles_are_not_attached(store):
    model, x = build("mlp")
    store.attach(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        gradients(other, x)
        assert saved(store) == 0


def test_the_model_is_held_weakly(store):
    import weakref

    model, _ = build("mlp")
    handle = store.attach(model)
    weak = weakref.ref(model)
    del model
    gc.collect()
    assert weak() is None
    handle.remove()


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.fail = None

    def forward(self, x, depth=2):
        if self.fail and depth == 0:
            raise self.fail
        h = self.layer(x).sin()
        return self(h, depth - 1) if depth else h


@pytest.mark.parametrize("error", [ValueError("in the forward"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_forward_that_breaks_off_leaves_no_scope_for_the_next(store, error):
    model, x = Recursive(), torch.randn(64, 64)
    reference = gradients(model, x)
    store.attach(model)
    model.fail = error
    with pytest.raises(type(error)):
        model(x)
    model.fail = None
    assert_same_bits(gradients(model, x), reference)
    assert not packed_outside(store)


def test_a_hook_that_throws_before_ours_does_not_end_the_users_scope(store):
    model, x = build("mlp")
    store.attach(model)

    def throws(*_):
        raise ValueError("a hook of the user's")

    model.register_forward_pre_hook(throws, prepend=True)
    with pytest.raises(ValueError, match="a hook of the user's"):
        with store:
            model(x)
    assert not packed_outside(store)


def test_an_attached_model_on_a_closed_store_says_so(store):
    model, x = build("mlp")
    store.attach(model)
    expected = model(x).detach()
    store.close()
    with pytest.raises(ebbtide.ClosedError):
        model(x)
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert_same_bits([model(x)], [expected])
    with pytest.raises(ebbtide.ClosedError):
        model(x)


def test_with_store_around_an_attached_model_is_one_pass(store):
    model, x = build("mlp")
    reference = gradients(model, x)
    store.attach(model)
    model.zero_grad()
    with store:
        loss = model(x).pow(2).mean()
    loss.backward()
    assert_same_bits([p.grad for p in model.parameters()], reference)
    del loss
    assert store.stats()["passes"] == 1
