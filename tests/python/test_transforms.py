"""torch.func and forward mode inside a scope, beside it and across its edge."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from support import SIZE, assert_as_plain, assert_same_bits, build, chain, leaf

TRANSFORMS = {
    "grad": lambda x: torch.func.grad(chain)(x),
    "grad of grad": lambda x: torch.func.grad(lambda v: torch.func.grad(chain)(v).pow(2).sum())(x),
    "vjp": lambda x: torch.func.vjp(lambda v: v.sin() * v, x)[1](x.cos())[0],
    "jvp": lambda x: torch.func.jvp(lambda v: v.sin() * v, (x,), (x.cos(),))[1],
    "jvp of grad": lambda x: torch.func.jvp(torch.func.grad(chain), (x,), (torch.ones_like(x),))[1],
    "vmap of grad": lambda x: torch.func.vmap(torch.func.grad(chain))(x.view(8, -1)),
    "grad of vmap": lambda x: torch.func.grad(lambda v: torch.func.vmap(chain)(v.view(8, -1)).sum())(x),
    "jacrev": lambda x: torch.func.jacrev(lambda v: v.sin() * v)(x[:64]),
    "jacfwd": lambda x: torch.func.jacfwd(lambda v: v.sin() * v)(x[:64]),
    "hessian": lambda x: torch.func.hessian(chain)(x[:64]),
    "linearize": lambda x: torch.func.linearize(lambda v: v.sin() * v, x)[1](x.cos()),
    "functionalize": lambda x: torch.func.functionalize(lambda v: v.clone().sin_().mul_(2))(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_within_a_scope(store, name):
    x = leaf().detach()
    reference = TRANSFORMS[name](x)
    with store:
        got = TRANSFORMS[name](x)
    assert_same_bits([got], [reference])


@pytest.mark.parametrize("name", ["vjp", "grad", "vmap of grad", "grad of vmap", "jvp of grad", "jacrev"])
def test_a_backward_through_a_transform(store, name):
    """The transform's result is part of the graph of a plain backward."""

    def run(scope):
        x = leaf()
        with scope:
            y = (TRANSFORMS[name](x * 0.5).sin() * 2).pow(2).sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_a_scope_within_a_transform(store):
    def slope(scope):
        def inside(x):
            with scope:
                return chain(x)

        return inside

    x = leaf().detach()
    reference = torch.func.grad(chain)(x)
    assert_same_bits([torch.func.grad(slope(store))(x)], [reference])
    batched = torch.func.vmap(torch.func.grad(chain))(x.view(8, -1))
    assert_same_bits([torch.func.vmap(torch.func.grad(slope(store)))(x.view(8, -1))], [batched])


def test_per_sample_gradients_of_a_model(store):
    model, x = build("mlp")
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(model, parameters, (sample,)).pow(2).mean()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    reference = per_sample(parameters, x)
    with store:
        got = per_sample(parameters, x)
    assert_same_bits(list(got.values()), list(reference.values()))


def test_an_ensemble_trained_through_vmap(store):
    def run(scope):
        torch.manual_seed(0)
        parameters, buffers = torch.func.stack_module_state([nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)) for _ in range(4)])
        skeleton = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)).to("meta")
        x = leaf().detach().view(-1, 32)
        with scope:
            y = torch.func.vmap(lambda p, b: torch.func.functional_call(skeleton, (p, b), (x,)))(parameters, buffers).sin().pow(2).sum()
        y.backward()
        return [p.grad for p in parameters.values()]

    assert_as_plain(store, run)


def test_dual_numbers(store):
    x, tangent = leaf().detach(), leaf(1).detach()

    def run():
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, tangent)
            return forward_ad.unpack_dual(dual.sin() * dual.exp())

    reference = run()
    with store:
        got = run()
    assert_same_bits(list(got), list(reference))


def test_forward_over_reverse(store):
    """The tangent of a gradient: duals run through a forward that is saved, and through its backward."""

    def run(scope):
        x, tangent = leaf(), leaf(1).detach()
        with forward_ad.dual_level():
            with scope:
                dual = forward_ad.make_dual(x * 1, tangent)
                y = (dual.sin() * dual.exp()).sum()
                (slope,) = torch.autograd.grad(y, x, create_graph=True)
            return [part.detach() for part in forward_ad.unpack_dual(slope) if part is not None]

    assert_as_plain(store, run)


def test_zero_tangents(store):
    """Duals of which one has no tangent: torch makes tensors without memory."""

    def run(scope):
        x = leaf()
        with forward_ad.dual_level(), scope:
            dual = forward_ad.make_dual(x * 1, torch._efficientzerotensor(SIZE))
            y = (dual.sin() * dual).sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_the_older_functional_api(store):
    x = leaf().detach()[:64].clone()
    for function in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        for vectorize in (False, True):
            what = chain if function is torch.autograd.functional.hessian else lambda v: v.sin() * v
            reference = function(what, x, vectorize=vectorize)
            with store:
                got = function(what, x, vectorize=vectorize)
            assert_same_bits([got], [reference])


def test_gradients_in_a_batch(store):
    """is_grads_batched: one backward under vmap, over what was saved outside."""

    def run(scope):
        x = leaf()
        with scope:
            y = (x * 2).sin() * x.exp()
        vectors = torch.stack([leaf(i).detach() for i in range(3)])
        return list(torch.autograd.grad(y, x, vectors, is_grads_batched=True))

    assert_as_plain(store, run)


def test_gradcheck(store):
    x = leaf().detach().double()[:16].clone().requires_grad_()
    with store:
        assert torch.autograd.gradcheck(lambda v: (v.repeat(128) * 2).sin().view(128, -1).sum(0), x, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(lambda v: (v.repeat(128) * 2).sin().view(128, -1).sum(0), x)
    assert store.stats()["saved"]["tensors"] > 0
