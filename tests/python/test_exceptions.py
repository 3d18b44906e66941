"""An exception at any point of a step: it arrives as it was thrown, the store is empty once the graph is gone, and the next step is right."""

import gc
import threading

import pytest
import torch

import ebbtide
from support import MIN_BYTES, assert_same_bits, gradient, leaf

POINTS = 4


class Thrown(Exception):
    pass


class Fuse(torch.autograd.Function):
    """Throws when its place is the one that is to burn, in the forward or the backward."""

    @staticmethod
    def forward(ctx, x, place, burns):
        ctx.place, ctx.burns = place, burns
        ctx.save_for_backward(x)
        if burns == ("forward", place):
            raise Thrown(place)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.burns == ("backward, before it reads", ctx.place):
            raise Thrown(ctx.place)
        (x,) = ctx.saved_tensors
        if ctx.burns == ("backward", ctx.place):
            raise Thrown(ctx.place)
        return grad + 0 * x, None, None


def net(x, burns=None):
    hidden = x * 2
    for place in range(POINTS):
        hidden = Fuse.apply(hidden.sin() * hidden.exp(), place, burns) + hidden.tanh()
    return hidden.sum()


def hooked(x, place):
    """As net, with a tensor hook that throws."""
    hidden = x * 2
    for i in range(POINTS):
        hidden = hidden.sin() * hidden.cos()
        if i == place:
            hidden.register_hook(burn(place))
    return hidden.sum()


def burn(place):
    def hook(grad):
        raise Thrown(place)

    return hook


@pytest.mark.parametrize("keep", [False, True], ids=["", "graph kept"])
@pytest.mark.parametrize("where", ["forward", "backward", "backward, before it reads", "hook"])
def test_at_any_point(store, where, keep):
    x = leaf()
    reference = gradient(net, x)
    for place in range(POINTS):
        passes = store.stats()["passes"]
        with pytest.raises(Thrown, match=str(place)):
            with store:
                y = hooked(x, place) if where == "hook" else net(x, (where, place))
            y.backward(retain_graph=keep)
        if keep:  # the graph is whole: what comes before the fuse can still be asked for
            with pytest.raises(Thrown, match=str(place)):
                if where == "forward":
                    raise Thrown(place)
                y.backward()
        y = None
        gc.collect()
        stats = store.stats()
        assert stats["device"]["bytes"] == 0 and stats["handed_over"] == 0
        if where != "forward" or place > 0:
            assert stats["passes"] == passes + 1
        with store:
            y = net(x)
        assert_same_bits(torch.autograd.grad(y, x), reference)
        del y
        x.grad = None


class Interrupts(torch.autograd.Function):
    """What Ctrl-C raises is no Exception."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise KeyboardInterrupt


def test_keyboard_interrupts(store):
    x = leaf()
    with pytest.raises(KeyboardInterrupt):
        with store:
            y = (x * 2).sin()
            raise KeyboardInterrupt
    del y
    with store:
        y = Interrupts.apply((x * 2).sin()).exp().sum()
    with pytest.raises(KeyboardInterrupt):
        y.backward()
    del y
    reference = gradient(net, x)
    with store:
        y = net(x)
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_in_the_packing_hook_of_a_user(store):
    x = leaf()

    def pack(tensor):
        raise Thrown("pack")

    with pytest.raises(Thrown, match="pack"):
        with store:
            hidden = (x * 2).sin()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                hidden.exp()
    del hidden
    reference = gradient(net, x)
    with store:
        y = net(x)
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_in_the_unpacking_hook_of_a_user(store):
    x = leaf()

    def unpack(tensor):
        raise Thrown("unpack")

    with store:
        hidden = (x * 2).sin()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach(), unpack):  # the tensor itself would hold its own graph
            hidden = hidden.exp()
        y = hidden.cos().sum()
    with pytest.raises(Thrown, match="unpack"):
        y.backward()
    del y, hidden


def test_where_no_tier_has_room_the_next_step_may_be_smaller():
    """OutOfBudget from the middle of a forward."""
    x = leaf(0, 64 * 1024)
    store = ebbtide.Store(device_budget=3 * x.nbytes, recompute=False, min_bytes=MIN_BYTES)
    for _ in range(3):
        with pytest.raises(ebbtide.OutOfBudget):
            with store:
                y = net(x)
            y.backward()
        y = None
        gc.collect()
        assert store.stats()["device"]["bytes"] == 0
        small = leaf(1, 1024)
        with store:
            y = net(small)
        assert_same_bits(torch.autograd.grad(y, small), gradient(net, small))
        y = None


def test_out_of_a_generator_that_holds_the_scope(store):
    """A forward in a generator that nobody finishes: its scope ends when it is collected."""
    x = leaf()

    def steps():
        with store:
            yield (x * 2).sin().exp().sum()
            raise AssertionError("nobody asks for more")

    generator = steps()
    y = next(generator)
    generator.close()
    assert_same_bits(torch.autograd.grad(y, x), gradient(lambda x: (x * 2).sin().exp().sum(), x))
    del y
    before = store.stats()["packed"]["tensors"]
    net(x).backward()
    assert store.stats()["packed"]["tensors"] == before, "the scope is over"
    x.grad = None


@pytest.mark.parametrize("what", ["a store", "region 'a'"])
def test_out_of_a_generator_that_another_thread_began(store, what):
    """Neither can be left there, whatever else this thread is in."""
    context = store if what == "a store" else ebbtide.region("a", "keep")

    def holding():
        with context:
            yield

    generator = holding()
    thread = threading.Thread(target=next, args=(generator,))
    thread.start()
    thread.join()
    with ebbtide.region("b"):
        with pytest.raises(RuntimeError, match=f"{what} is left on a thread that has not entered it"):
            generator.close()
    with context:
        pass


def test_in_anomaly_mode_a_nan_is_torchs_error(store):
    def broken():
        x = leaf()
        y = (x * 2).abs().sqrt() * 0
        (y / y).sum().backward()

    with torch.autograd.detect_anomaly():
        with pytest.raises(RuntimeError, match="returned nan values") as plain:
            broken()
        with pytest.raises(RuntimeError) as stored:
            with store:
                broken()
    assert str(stored.value) == str(plain.value)


def test_a_second_backward_is_torchs_error(store):
    def broken():
        y = (leaf() * 2).sin().exp().sum()
        y.backward()
        y.backward()

    with pytest.raises(RuntimeError, match="second time") as plain:
        broken()
    with pytest.raises(RuntimeError) as stored:
        with store:
            broken()
    assert str(stored.value) == str(plain.value)
