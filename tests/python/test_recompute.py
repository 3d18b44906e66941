"""What cheap ops made is computed again where the budget needs its memory: seen from Python, where matmuls take most of the bytes."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ebbtide
from support import MIN_BYTES, assert_same_bits, build, train


class SwiGlu(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.gate, self.up, self.down = nn.Linear(64, 256), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x):
        normed = self.norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def swiglu():
    torch.manual_seed(1)
    return nn.Sequential(SwiGlu(), SwiGlu()), torch.randn(128, 64)


MODELS = {"transformer": lambda: build("transformer"), "swiglu": swiglu}


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_without_a_disk_and_bitwise(name, autocast):
    model, x = MODELS[name]()
    store = ebbtide.Store(device_budget=0, on_full="keep", min_bytes=MIN_BYTES, verify=True)

    def context(scope):
        stack = contextlib.ExitStack()
        stack.enter_context(scope)
        if autocast:
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        return stack

    reference = train(copy.deepcopy(model), x, lambda: context(contextlib.nullcontext()))
    assert_same_bits(train(copy.deepcopy(model), x, lambda: context(store)), reference)
    stats = store.stats()
    assert stats["recomputed"]["bytes"] > stats["saved"]["bytes"] / 8
    assert sum(op["bytes"] for op in stats["recomputed_ops"].values()) == stats["recomputed"]["bytes"]
    assert stats["recompute_s"] > 0
    assert stats["unequal_redos"] == {}
    assert stats["device"]["bytes"] == 0


def test_switched_off(tmp_path):
    model, x = swiglu()
    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES, recompute=False)
    train(model, x, lambda: store)
    assert store.stats()["recomputed"]["tensors"] == 0
    assert store.stats()["spilled"]["tensors"] > 0


def test_an_optimizer_step_between_forward_and_backward(tmp_path):
    """Plain torch gives the gradients of what does not need the weights; so must a redo of a norm whose weights have changed."""

    def gradient(scope):
        model, x = swiglu()
        last = torch.randn(64, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        with scope:
            loss = F.gelu(F.layer_norm(model(x), (64,), model[0].norm.weight)).matmul(last).sum()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        return torch.autograd.grad(loss, last)

    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    for _ in range(2):
        assert_same_bits(gradient(store), gradient(contextlib.nullcontext()))
    assert store.stats()["recomputed"]["tensors"] > 0


@pytest.fixture
def redoing(tmp_path):
    """A store that makes again what it can, by rule; on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    store._store.follow_plans(False)
    yield store
    store.close()
    torch.set_num_threads(threads)


def test_an_eps_that_the_first_rows_do_not_tell(redoing):
    """Of large numbers several eps give the same reciprocal deviations, and not of others of the same shape."""
    weight, bias = torch.rand(512, requires_grad=True), torch.rand(512, requires_grad=True)

    def gradient(scale, seed, context):
        x = (torch.randn(64, 512, generator=torch.Generator().manual_seed(seed)) * scale).requires_grad_()
        z = torch.ones(64, 512, requires_grad=True)
        with context:
            y = (F.layer_norm(x * 1.0, (512,), weight, bias, 1e-6) * z).sum()
        return torch.autograd.grad(y, z)

    for scale, seed in [(100, 0)] + [(13, seed) for seed in range(10)]:  # variances of 1e4, then of about 170
        assert_same_bits(gradient(scale, seed, redoing), gradient(scale, seed, contextlib.nullcontext()))
    assert redoing.stats()["recomputed_ops"]["layer_norm"]["tensors"] == 11


def test_denormals_are_flushed_again_where_the_forward_flushed_them(redoing):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    small = [torch.rand(4096, generator=torch.Generator().manual_seed(seed)) * scale for seed, scale in ((0, 1e-30), (1, 1e-10))]
    small[0][::2] *= 1e10  # of zeros alone no site is judged
    a, b = (tensor.requires_grad_() for tensor in small)
    z = torch.ones(4096, requires_grad=True)

    def gradient(context):
        torch.set_flush_denormal(True)
        try:
            with context:
                y = ((a * 1) * (b * 1) * z).sum()
        finally:
            torch.set_flush_denormal(False)
        return torch.autograd.grad(y, z)

    assert_same_bits(gradient(redoing), gradient(contextlib.nullcontext()))
    assert redoing.stats()["recomputed_ops"]["mul"]["tensors"] > 0


def test_what_runs_again_is_as_precise_as_it_was(redoing):
    """A program may let fp32 matmuls round to bfloat16 inside for a while; and do without oneDNN."""
    redoing._store.use_costly_recipes(True)

    def gradient(context, enabled):
        a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (0, 1))
        z = torch.ones(512, 512, requires_grad=True)
        before = torch.backends.mkldnn.matmul.fp32_precision
        torch._C._set_mkldnn_enabled(enabled)
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        try:
            with context:
                y = (torch.mm(a * 1.0, b * 1.0) * z).sum()
        finally:
            torch.backends.mkldnn.matmul.fp32_precision = before
            torch._C._set_mkldnn_enabled(True)
        return torch.autograd.grad(y, z)

    for enabled in (True, False):
        assert_same_bits(gradient(redoing, enabled), gradient(contextlib.nullcontext(), enabled))
    assert redoing.stats()["recomputed_ops"]["mm"]["tensors"] == 2
    assert torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["layer", "group"])
def test_a_norm_whose_node_a_backward_has_released_has_no_recipe(redoing, kind, affine):
    """Its statistics are gone, and its input is not to be taken for them; nor is a weight that is gone one that was never there."""

    def gradients(context):
        torch.manual_seed(1)
        trunk, aux, head = nn.Linear(256, 256), nn.Linear(256, 8), nn.Linear(256, 8)
        norm = nn.LayerNorm(256, elementwise_affine=affine) if kind == "layer" else nn.GroupNorm(8, 256, affine=affine)
        with context:
            t = trunk(torch.randn(512, 256))
            kept = aux(t).sum()  # keeps what the norm read
            f = norm(t)
            f.mean().backward()
            loss = head(f).pow(2).sum() + 0 * kept.detach()
        return torch.autograd.grad(loss, tuple(head.parameters()))

    for _ in range(2):
        assert_same_bits(gradients(redoing), gradients(contextlib.nullcontext()))


def test_an_op_under_another_arithmetic_than_what_saves_its_result_is_not_run_again(redoing):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    z = torch.ones(4096, requires_grad=True)

    def gradient(context, scale, flush):
        small = [torch.rand(4096, generator=torch.Generator().manual_seed(seed)) * scale for seed, scale in ((0, scale), (1, 1e-10))]
        small[0][::2] += 1  # products of these are no denormals
        a, b = (tensor.requires_grad_() for tensor in small)

        def product():
            left, right = a * 1, b * 1
            torch.set_flush_denormal(flush)
            try:
                return left * right
            finally:
                torch.set_flush_denormal(False)

        with context:
            y = (product() * z).sum()
        return torch.autograd.grad(y, z)

    for scale, flush in ((1.0, False), (1.0, True), (1e-30, True)):
        assert_same_bits(gradient(redoing, scale, flush), gradient(contextlib.nullcontext(), scale, flush))
    assert redoing.stats()["recomputed_ops"]["mul"]["tensors"] == 1


def test_a_matmul_without_onednn_before_what_saves_its_result_with_it_is_not_run_again(redoing):
    redoing._store.use_costly_recipes(True)

    def gradient(context, enabled):
        a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (0, 1))
        z = torch.ones(512, 512, requires_grad=True)

        def product():
            left, right = a * 1.0, b * 1.0
            torch._C._set_mkldnn_enabled(enabled)
            try:
                return torch.mm(left, right)
            finally:
                torch._C._set_mkldnn_enabled(True)

        with context:
            y = (product() * z).sum()
        return torch.autograd.grad(y, z)

    for enabled in (True, False):
        assert_same_bits(gradient(redoing, enabled), gradient(contextlib.nullcontext(), enabled))
    assert redoing.stats()["recomputed_ops"]["mm"]["tensors"] == 1
