"""torch.compile: compiled graphs save through the store, and trace as if there were none."""

import copy
import gc

import pytest
import torch
from torch import nn

import ebbtide
from support import SIZE, assert_as_plain, assert_same_bits, build, leaf


@pytest.fixture(autouse=True)
def forget_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(model, x, scope, steps=3):
    seen = []
    for _ in range(steps):
        model.zero_grad()
        with scope:
            loss = model(x).pow(2).mean()
        loss.backward()
        seen.extend(p.grad.clone() for p in model.parameters())
    return seen


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "aot_eager_decomp_partition"])
@pytest.mark.parametrize("name", ["mlp", "conv", "custom_function"])
def test_whole_models(store, name, backend):
    def run(scope):
        torch._dynamo.reset()
        model, x = build(name)
        return gradients(torch.compile(model, backend=backend), x, scope)

    assert_as_plain(store, run)


def test_by_the_inductor(store):
    """The kernels are of one compilation: its own rounding is not the store's business."""
    model, x = build("mlp")
    compiled = torch.compile(model)
    reference = gradients(compiled, x, torch.enable_grad())
    assert_same_bits(gradients(compiled, x, torch.enable_grad()), reference)
    assert_same_bits(gradients(compiled, x, store), reference)
    assert store.stats()["saved"]["tensors"] > 0


def test_compiled_within_the_scope(store):
    """The first call, which traces, is made inside."""

    def run(scope):
        torch._dynamo.reset()
        model, x = build("mlp")
        with scope:
            compiled = torch.compile(model, backend="aot_eager")
            loss = compiled(x).pow(2).mean()
        loss.backward()
        return [p.grad for p in model.parameters()]

    assert_as_plain(store, run)


def test_a_scope_that_a_compiled_function_enters(store):
    """Dynamo breaks the graph there, or refuses; the gradients are right either way."""

    def run(scope):
        torch._dynamo.reset()
        x = leaf()

        def forward(x):
            y = (x * 2).sin()
            with scope:
                z = y.exp() * y
            return z.sum()

        torch.compile(forward, backend="aot_eager")(x).backward()
        return [x.grad]

    assert_same_bits(run(store), run(torch.enable_grad()))


def test_graph_breaks_and_shapes_that_change(store):
    def run(scope):
        torch._dynamo.reset()
        torch.manual_seed(0)
        first, second = nn.Linear(64, 256), nn.Linear(256, 64)

        def forward(x):
            hidden = first(x).tanh()
            torch._dynamo.graph_break()
            return second(hidden).pow(2).mean()

        compiled = torch.compile(forward, backend="aot_eager")
        seen = []
        for rows in (64, 48, 96, 64):
            with scope:
                loss = compiled(leaf(rows, rows * 64).detach().view(rows, 64))
            seen.extend(torch.autograd.grad(loss, [*first.parameters(), *second.parameters()]))
        return seen

    assert_as_plain(store, run)


class Regions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = ebbtide.checkpoint(block, x)
        return x


@pytest.mark.parametrize("inner", ["eager", "compiled"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_regions_in_what_is_compiled(store, backend, inner):
    """Their functions run alike in the forward and in the backward, where dynamo is not there: as they are, or compiled by themselves."""

    def run(scope, compiled=True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, x = Regions(), torch.randn(64, 64)
        if inner == "compiled":
            for block in model.blocks:
                block.compile(backend=backend)
        return gradients(torch.compile(model, backend=backend) if compiled else model, x, scope)

    reference = run(torch.enable_grad(), compiled=False)
    assert_same_bits(run(torch.enable_grad()), reference)
    assert_same_bits(run(store), reference)
    assert store.stats()["saved"]["tensors"] > 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("order", ["attach, compile", "compile, attach", "attach, module.compile", "module.compile, attach"])
def test_attached_models_before_and_after(store, order, backend):
    def run(scope, attached=False):
        torch._dynamo.reset()
        model, x = build("mlp")
        called = model
        for step in order.split(", "):
            if step == "attach" and attached:
                store.attach(called)
            elif step == "compile":
                called = torch.compile(called, backend=backend)
            elif step == "module.compile":
                model.compile(backend=backend)
        return gradients(called, x, scope)

    assert_same_bits(run(torch.enable_grad(), attached=True), run(torch.enable_grad()))
    assert store.stats()["passes"] == 3 and store.stats()["saved"]["tensors"] > 0


def test_a_copy_of_an_attached_model_is_exported(store):
    model, x = build("mlp")
    store.attach(model)
    exported = torch.export.export(copy.deepcopy(model), (x,), strict=True)
    assert_same_bits([exported.module()(x)], [model(x)])


def test_scripting_an_attached_model_says_what_to_do(store):
    model, x = build("mlp")
    handle = store.attach(model)
    with pytest.raises(AttributeError, match=r"TorchScript cannot compile the hooks of an attached model, nor of its copies: `remove\(\)`"):
        torch.jit.script(model)
    handle.remove()
    assert_same_bits([torch.jit.script(model)(x)], [model(x)])


def test_a_kept_graph(store):
    """Donated buffers are off where the graph is kept."""

    def run(scope):
        torch._dynamo.reset()
        x = leaf()
        with scope, torch._functorch.config.patch(donated_buffer=False):
            y = torch.compile(lambda x: ((x * 2).sin() * x.exp()).sum(), backend="aot_eager")(x)
            first = torch.autograd.grad(y, x, retain_graph=True)
        return [*first, *torch.autograd.grad(y, x)]

    assert_as_plain(store, run)


def test_in_place_writes_inside_a_compiled_function(store):
    def run(scope):
        torch._dynamo.reset()
        x = leaf()

        def forward(x):
            hidden = (x * 2).sin()
            hidden.mul_(1.5).add_(1)
            return (hidden * hidden.cos()).sum()

        with scope:
            y = torch.compile(forward, backend="aot_eager")(x)
        y.backward()
        return [x.grad]

    assert_same_bits(run(store), run(torch.enable_grad()))  # the partitioner may save the leaf alone


def compiled_backward(context):
    torch._dynamo.reset()
    x = leaf()
    with context:
        y = ((x * 2).sin() * x.exp()).sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        y.backward()
    return [x.grad]


def test_compiled_autograd_takes_python_hooks_alone(store):
    """It says so; the same store serves it as Python hooks."""
    with pytest.raises(RuntimeError, match="only supports python saved tensor hooks"):
        compiled_backward(store)
    assert_same_bits(compiled_backward(store.saved_tensors_hooks()), compiled_backward(torch.enable_grad()))
    torch._dynamo.reset()
    gc.collect()


def test_traced_by_make_fx(store):
    """The trace of a gradient is a function of its input, as without a store."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def slope(x):
        return torch.autograd.grad(((x * 2).sin() * x).sum(), x)[0]

    with store:
        traced = make_fx(slope)(leaf())
    other = leaf(1)
    assert_same_bits([traced(other)], [slope(other)])
    assert "while tracing" in store.stats()["passed_through_reasons"]


def test_a_dispatch_mode_sees_the_models_ops_alone(store):
    """Of what the store does for itself, such as running ops again, a mode learns nothing."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.ops = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.ops.append(str(function))
            return function(*args, **(kwargs or {}))

    def ops(scope):
        x = leaf()
        with Log() as log, scope:
            ((x * 2).sin() * torch.where(x > 0, x.exp(), 1.5)).sum().backward()
        return [op for op in log.ops if op != "aten.detach.default"]  # torch's own, around hooks too

    assert ops(store) == ops(torch.enable_grad())
    assert store.stats()["saved"]["tensors"] > 0


def test_scripted(store):
    """TorchScript's own differentiation saves through the same hooks."""

    @torch.jit.script
    def forward(x):
        return ((x * 2).sin() * x.exp()).sum()

    def run(scope):
        seen = []
        for _ in range(3):
            x = leaf()
            with scope:
                y = forward(x)
            y.backward()
            seen.append(x.grad)
        return seen

    assert_as_plain(store, run)
