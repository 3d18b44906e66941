"""Custom autograd functions: all that they may save, and all that they may do with it."""

import pytest
import torch
from torch.autograd.function import once_differentiable

from support import assert_as_plain, chain, leaf


class SavesTheSameTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        first, second = ctx.saved_tensors
        return grad * (first + second)


class SavesAnIntermediate(torch.autograd.Function):
    """What is neither an input nor an output."""

    @staticmethod
    def forward(ctx, x):
        middle = x.sin()
        ctx.save_for_backward(middle)
        return middle.exp()

    @staticmethod
    def backward(ctx, grad):
        (middle,) = ctx.saved_tensors
        return grad * middle.exp() * (1 - middle * middle)


class SavesNone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(None, x, None)
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        nothing, x, _ = ctx.saved_tensors
        assert nothing is None
        return grad * x.exp()


class SavesViews(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.view(2, -1)[1], x.view(-1, 4).t())
        return x * 3

    @staticmethod
    def backward(ctx, grad):
        half, columns = ctx.saved_tensors
        return grad * torch.cat([half, half]) + columns.t().reshape(-1)


class SavesByAttribute(torch.autograd.Function):
    """Such tensors go past all hooks."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.cos()
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.kept + 0 * ctx.saved_tensors[0]


class Dirty(torch.autograd.Function):
    """Writes to its input, returns it, and saves it as it is then."""

    @staticmethod
    def forward(ctx, x):
        x.exp_()
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class ReturnsItsInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class WithAnIndex(torch.autograd.Function):
    """Saves an output that has no gradient."""

    @staticmethod
    def forward(ctx, x):
        order = x.argsort()
        ctx.mark_non_differentiable(order)
        ctx.save_for_backward(order)
        return x[order], order

    @staticmethod
    def backward(ctx, grad, _):
        (order,) = ctx.saved_tensors
        return torch.zeros_like(grad).index_put((order,), grad)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class WithSetupContext(torch.autograd.Function):
    @staticmethod
    def forward(x):
        y = x.exp()
        return y, y.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, unused):
        assert unused is None
        x, y, _ = ctx.saved_tensors
        return grad * y + 0 * x


class TrainsInItsForward(torch.autograd.Function):
    """A graph of its own, begun and ended while the outer one is built."""

    @staticmethod
    def forward(ctx, x):
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(chain(inner), inner)
        ctx.save_for_backward(slope)
        return x * slope

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


FUNCTIONS = (
    SavesTheSameTwice, SavesAnIntermediate, SavesNone, SavesViews, SavesByAttribute, Dirty, ReturnsItsInput, WithAnIndex, OnceDifferentiable,
    WithSetupContext, TrainsInItsForward,
)  # fmt: skip


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_gradients_are_those_of_plain(store, function):
    def run(scope):
        x = leaf()
        with scope:
            y = first(function.apply(x * 0.5))
            z = y.sin().sum()
        z.backward()
        return [x.grad, y]

    assert_as_plain(store, run)


TWICE = (SavesTheSameTwice, SavesNone, SavesViews, ReturnsItsInput)


@pytest.mark.parametrize("inside", [True, False], ids=["inside the scope", "outside"])
@pytest.mark.parametrize("function", TWICE, ids=lambda function: function.__name__)
def test_second_derivatives_are_those_of_plain(store, function, inside):
    def run(scope):
        x = leaf()

        def differentiate(z):
            return torch.autograd.grad(z, x, create_graph=True)[0].pow(2).sum()

        with scope:
            z = function.apply(x * 0.5).sin().sum()
            if inside:
                second = differentiate(z)
        if not inside:
            second = differentiate(z)
        second.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_of_once_differentiable_no_second_derivative_as_in_torch(store):
    def broken():
        x = leaf()
        (slope,) = torch.autograd.grad(OnceDifferentiable.apply(x * 2).exp().sum(), x, create_graph=True)
        slope.sum().backward()

    with pytest.raises(RuntimeError, match="once_differentiable") as plain:
        broken()
    with store, pytest.raises(RuntimeError) as stored:
        broken()
    assert str(stored.value) == str(plain.value)


def test_saved_tensors_after_the_backward_are_gone_as_in_torch(store):
    def broken():
        y = SavesNone.apply(leaf() * 2)
        y.sum().backward()
        y.grad_fn.saved_tensors

    with pytest.raises(RuntimeError) as plain:
        broken()
    with store, pytest.raises(RuntimeError) as stored:
        broken()
    assert str(stored.value) == str(plain.value)


class Labelled(torch.Tensor):
    pass


def with_scale(tensor):
    tensor.scale = 2.0
    return tensor


OBJECTS = {
    "a frozen parameter": lambda: torch.nn.Parameter(leaf(1).detach(), requires_grad=False),
    "a frozen parameter with an attribute": lambda: with_scale(torch.nn.Parameter(leaf(1).detach(), requires_grad=False)),
    "a tensor with an attribute": lambda: with_scale(leaf(1).detach()),
    "a small tensor with an attribute": lambda: with_scale(leaf(1, 8).detach()),
    "a subclass": lambda: leaf(1).detach().as_subclass(Labelled),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_saved_tensors_without_gradients_are_the_very_objects(store, name):
    """As in torch: what is asked of them may depend on their class and their attributes."""
    saved = OBJECTS[name]()

    class Scales(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x, saved)
            return x * saved.sum().as_subclass(torch.Tensor)

        @staticmethod
        def backward(ctx, grad):
            _, back = ctx.saved_tensors
            assert back is saved
            return grad * back.sum().as_subclass(torch.Tensor) * getattr(back, "scale", 1.0)

    def run(scope):
        x = leaf()
        with scope:
            y = Scales.apply(x * 2).sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_saved_tensors_are_read_before_the_backward(store):
    """As debuggers do: grad_fn.saved_tensors and the _saved_ properties of torch's own nodes."""

    def run(scope):
        x = leaf()
        with scope:
            hidden = x * 2
            y = SavesTheSameTwice.apply(hidden).sin()
        read = [*y.grad_fn.next_functions[0][0].saved_tensors, y.grad_fn._saved_self]
        y.sum().backward()
        return [tensor.detach() for tensor in read] + [x.grad]

    assert_as_plain(store, run)


def test_a_raw_saved_tensor_is_not_hooked_again_as_in_torch(store):
    with store:
        y = (leaf() * 2).sin()
    raw = y.grad_fn._raw_saved_self
    with pytest.raises(RuntimeError, match="already been set"):
        raw.register_hooks(lambda t: t, lambda t: t)
    y.sum().backward()
