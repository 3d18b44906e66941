"""Python that runs while a backward does: hooks of tensors, modules and nodes, backwards within backwards, optimizers in hooks."""

import copy
import threading

import torch
from torch import nn

import ebbtide
from support import MIN_BYTES, assert_as_plain, assert_same_bits, build, chain, gradient, leaf


class Reentrant(torch.autograd.Function):
    """Runs its function without a graph, and once more with one in the backward, where it calls backward: as reentrant checkpoints do."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            y = ctx.function(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


def nested(depth):
    """A function of `depth` backwards, each within the one before."""
    if depth == 0:
        return lambda h: h.sin() * h.cos()
    inner = nested(depth - 1)
    return lambda h: Reentrant.apply(inner, (h * 1.5).tanh()).sin()


def test_backwards_within_backwards(store):
    def run(scope):
        x = leaf()
        with scope:
            y = nested(5)(x * 2).sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_backwards_within_a_backward_inside_the_scope(store):
    """The inner forwards pack into the store that is running its own unpacks."""

    def run(scope):
        x = leaf()
        with scope:
            nested(5)(x * 2).sum().backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_deeper_than_the_engine_recurses(store):
    """Past a depth of 60 torch goes on with other threads."""

    def run(scope):
        x = leaf()
        with scope:
            y = nested(70)(x).sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_a_tensor_hook_runs_a_step_of_another_model(store):
    def run(scope):
        x, other = leaf(), leaf(1)
        with scope:
            hidden = (x * 2).sin()
            y = (hidden * hidden).exp().sum()

        def step(grad):
            with torch.enable_grad(), scope:
                inner = chain(other)
            inner.backward()
            return grad * 2

        hidden.register_hook(step)
        del hidden
        y.backward()
        return [x.grad, other.grad]

    assert_as_plain(store, run)


def test_a_tensor_hook_runs_the_rest_of_its_own_graph(store):
    def run(scope):
        x = leaf()
        with scope:
            hidden = (x * 2).sin()
            branch = hidden.exp().sum()
            y = hidden.cos().sum()
        seen = []

        def hook(grad):
            if not seen:
                seen.append(None)
                seen[:] = torch.autograd.grad(branch, x, retain_graph=True)

        handle = hidden.register_hook(hook)
        y.backward()
        handle.remove()  # it holds its own graph
        return [x.grad, *seen]

    assert_as_plain(store, run)


def test_optimizers_that_step_within_the_backward(store):
    """As in optimizer-in-backward recipes: a weight is written to as soon as its gradient is there."""

    def run(scope):
        model, x = build("mlp")
        optimizers = {}

        def step(parameter):
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in model.parameters():
            optimizers[parameter] = torch.optim.SGD([parameter], lr=0.1)
            parameter.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            with scope:
                loss = model(x).pow(2).mean()
            loss.backward()
        return [parameter.detach() for parameter in model.parameters()]

    assert_as_plain(store, run)


def test_module_hooks_that_change_gradients(store):
    def run(scope):
        model, x = build("mlp")
        model[0].register_full_backward_pre_hook(lambda module, grad: (grad[0] * 2,))
        model[5].register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0].sin(),))
        model[2].register_forward_hook(lambda module, args, result: result * 1.5)
        with scope:
            loss = model(x).pow(2).mean()
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    assert_as_plain(store, run)


def test_node_hooks_and_hooks_over_several_gradients(store):
    def run(scope):
        x = leaf()
        seen = []
        with scope:
            a, b = (x * 2).sin(), (x * 3).exp()
            y = (a * b).cos().sum()
        handle = torch.autograd.graph.register_multi_grad_hook((a, b), lambda grads: seen.extend(g.clone() for g in grads))
        y.grad_fn.register_prehook(lambda grads: (grads[0] * 2,))
        a.grad_fn.register_hook(lambda grad_in, grad_out: (grad_in[0] + 1,))
        y.backward()
        handle.remove()
        return [x.grad, *seen]

    assert_as_plain(store, run)


def test_a_forward_of_another_thread_during_a_backward(store):
    """A hook starts a thread that trains under the same store, and waits for it."""
    other = leaf(1)
    reference = gradient(chain, other)

    def run(scope):
        x = leaf()
        got = []

        def train():
            with scope:
                y = chain(other)
            got.extend(torch.autograd.grad(y, other))

        def hook(grad):
            thread = threading.Thread(target=train)
            thread.start()
            thread.join()

        with scope:
            hidden = (x * 2).sin()
            y = (hidden * hidden).sum()
        hidden.register_hook(hook)
        del hidden
        y.backward()
        assert_same_bits(got, reference)
        return [x.grad]

    assert_as_plain(store, run)


def test_torch_hooks_inside_hooks_inside_scopes(store, tmp_path):
    """The innermost alone sees a tensor, whosever it is, and each layer is left as it was entered."""
    other = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    x = leaf()
    reference = gradient(lambda x: sum(chain(x * i) for i in range(1, 6)), x)
    with store:
        y = chain(x * 1)
        with torch.autograd.graph.save_on_cpu():
            y = y + chain(x * 2)
            with other:
                y = y + chain(x * 3)
                with other.saved_tensors_hooks():
                    y = y + chain(x * 4)
        y = y + chain(x * 5)
    assert_same_bits(torch.autograd.grad(y, x), reference)
    assert store.stats()["saved"]["tensors"] > 0 and other.stats()["saved"]["tensors"] > 0
    assert "Python hooks inside the scope" in store.stats()["passed_through_reasons"]
    del y


def test_attached_models_within_each_other(store, tmp_path):
    """A part with a store of its own, within a model with another."""
    model, x = build("transformer")
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    plain(x).pow(2).mean().backward()

    part = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    handles = [store.attach(model), part.attach(model.layers[0])]
    torch.manual_seed(3)
    model(x).pow(2).mean().backward()
    assert_same_bits([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
    assert part.stats()["saved"]["tensors"] > 0 and store.stats()["saved"]["tensors"] > 0
    for handle in handles:
        handle.remove()


def test_activations_shared_by_two_graphs(store):
    """Two losses over one trunk, their backwards in either order; then the trunk's."""

    def run(scope):
        torch.manual_seed(0)
        trunk, heads = nn.Linear(64, 64), [nn.Linear(64, 64) for _ in range(2)]
        x = leaf().view(64, 64)
        with scope:
            hidden = trunk(x).tanh()
            cut = hidden.detach().requires_grad_()
            losses = [head(cut).sin().pow(2).sum() for head in heads]
        for loss in reversed(losses):
            loss.backward()
        hidden.backward(cut.grad)
        return [p.grad for module in (trunk, *heads) for p in module.parameters()]

    assert_as_plain(store, run)
