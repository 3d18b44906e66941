"""Tensors of every kind: what is no plain strided tensor stays with autograd, and its reason is counted."""

import contextlib

import pytest
import torch
from torch import nn

from support import SIZE, assert_as_plain, assert_same_bits, leaf


def assert_passes_through(store, run, reason):
    """That `run(scope)` gives plain's bits, and that what it saved stayed for that reason."""
    assert_same_bits(run(store), run(contextlib.nullcontext()))
    assert reason in store.stats()["passed_through_reasons"]


class Labelled(torch.Tensor):
    """A subclass of the function kind: no storage of its own, so it moves."""


class Logged(torch.Tensor):
    """A subclass of the dispatch kind over one inner tensor."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, strides=inner.stride(), requires_grad=inner.requires_grad)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        unwrap = lambda t: t.inner if isinstance(t, Logged) else t  # noqa: E731
        out = function(*torch.utils._pytree.tree_map(unwrap, args), **torch.utils._pytree.tree_map(unwrap, kwargs or {}))
        return torch.utils._pytree.tree_map(lambda t: Logged(t) if isinstance(t, torch.Tensor) else t, out)


class Unwrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wrapped):
        return wrapped.inner.clone() if isinstance(wrapped, Logged) else wrapped.a.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_subclass_that_only_overrides_functions_moves(store):
    def run(scope):
        x = leaf().detach().as_subclass(Labelled).requires_grad_()
        with scope:
            y = ((x * 2).sin() * x.exp()).sum()
        assert isinstance(y, Labelled)
        y.backward()
        return [x.grad.as_subclass(torch.Tensor)]

    assert_as_plain(store, run)


def test_a_parameter_of_a_subclass_stays(store):
    class Weight(nn.Parameter):
        pass

    def run(scope):
        weight, x = Weight(leaf().detach()), leaf(1)
        with scope:
            y = (x.sin() * weight).exp().sum()
        y.backward()
        return [x.grad, weight.grad]

    assert_as_plain(store, run)
    assert "parameter or leaf" in store.stats()["passed_through_reasons"]


def test_wrapper_subclasses_that_cannot_be_taken_apart(store):
    def run(scope):
        x = Logged(leaf().detach()).requires_grad_()
        with scope:
            y = ((x * 2).sin() * (x * 3).exp()).sum()
        y.backward()
        return [x.grad.inner]

    assert_passes_through(store, run, "tensor subclass")


def test_masked_tensors(store):
    from torch.masked import masked_tensor

    def run(scope):
        data = leaf().detach()
        with pytest.warns(UserWarning, match="prototype"):
            x = masked_tensor(data, data > 0, requires_grad=True)
        with scope:
            y = (x.sin() * x.exp()).sum()
        y.backward()
        return [x.grad.get_data()[data > 0]]

    assert_passes_through(store, run, "tensor subclass")


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse(store, layout):
    def run(scope):
        torch.manual_seed(0)
        dense = torch.randn(64, 64).relu()
        sparse = {
            "coo": lambda: dense.to_sparse(),
            "csr": lambda: dense.to_sparse_csr(),
            "csc": lambda: dense.to_sparse_csc(),
        }[layout]()
        x = leaf().view(64, 64)
        with scope:
            y = (sparse @ (x * 2).sin()).exp().sum()
        return list(torch.autograd.grad(y, x))

    assert_passes_through(store, run, "not strided (sparse or mkldnn)")


def test_a_sparse_gradient(store):
    def run(scope):
        torch.manual_seed(0)
        embedding = nn.Embedding(512, 64, sparse=True)
        ids = torch.randint(512, (64, 16))
        with scope:
            y = embedding(ids).sin().pow(2).sum()
        y.backward()
        grad = embedding.weight.grad.coalesce()
        return [grad.indices(), grad.values()]

    assert_as_plain(store, run)


def test_a_sparse_leaf(store):
    def run(scope):
        torch.manual_seed(0)
        weight = torch.randn(64, 64).relu().to_sparse().requires_grad_()
        x = leaf().view(64, 64)
        with scope:
            y = torch.sparse.mm(weight, x.sin()).exp().sum()
        y.backward()
        return [weight.grad.coalesce().values()]

    assert_as_plain(store, run)


def test_quantised(store):
    """Fake-quantised training moves; a quantised tensor itself has no gradient, and is at most an input."""

    def run(scope):
        x = leaf()
        with scope:
            y = torch.fake_quantize_per_tensor_affine((x * 2).sin(), 0.05, 0, -128, 127)
            table = torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8)
            z = (y * table.dequantize()).exp().sum()
        z.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_a_quantised_tensor_that_is_saved(store):
    class Lookup(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, table):
            ctx.save_for_backward(table)
            return x * table.dequantize()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].dequantize(), None

    def run(scope):
        x = leaf()
        table = torch.quantize_per_tensor(leaf(1).detach(), 0.1, 0, torch.qint8)
        with scope:
            y = Lookup.apply(x.sin(), table).sum()
        y.backward()
        return [x.grad]

    assert_passes_through(store, run, "quantised")


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=["strided", "jagged"])
def test_nested(store, layout):
    def run(scope):
        torch.manual_seed(0)
        rows = [torch.randn(n, 64) for n in (64, 32, 96)]
        x = torch.nested.nested_tensor(rows, layout=layout, requires_grad=True)
        with scope:
            y = (x.sin() * x).to_padded_tensor(0.0).exp().sum()
        y.backward()
        return [row.clone() for row in x.grad.unbind()]

    assert_passes_through(store, run, "nested" if layout is torch.strided else "tensor subclass")


def test_mkldnn(store):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without mkldnn")

    def run(scope):
        x = leaf()
        with scope:
            y = torch.relu((x.view(64, 64) * 2).to_mkldnn()).to_dense().exp().sum()
        y.backward()
        return [x.grad]

    assert_passes_through(store, run, "not strided (sparse or mkldnn)")


def test_no_elements(store):
    def run(scope):
        x, empty = leaf(), torch.empty(0, 64, requires_grad=True)
        with scope:
            y = torch.cat([(x * 2).view(-1, 64), empty.sin() * empty]).exp().sum() + empty.cos().prod()
        y.backward()
        return [x.grad, empty.grad]

    assert_passes_through(store, run, "no elements")


def test_no_dimensions(store):
    def run(scope):
        x, factor = leaf(), torch.tensor(0.7, requires_grad=True)
        with scope:
            y = ((x * 2).sin() * factor.exp() ** 2).sum().tanh()
        y.backward()
        return [x.grad, factor.grad]

    assert_as_plain(store, run)


def test_inference_tensors(store):
    with torch.inference_mode():
        frozen = leaf().detach() * 2

    def broken():
        (leaf() * frozen).sum().backward()

    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved") as plain:
        broken()
    with store, pytest.raises(RuntimeError) as stored:
        broken()
    assert str(stored.value) == str(plain.value)

    def run(scope):
        x = leaf()
        with scope:
            y = (x * frozen.clone()).sin().sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_meta_tensors_have_no_bytes(store):
    with store:
        y = (torch.empty(SIZE, device="meta", requires_grad=True) * 2).sin().sum()
    y.backward()
    assert "meta tensor" in store.stats()["passed_through_reasons"]


def test_fake_tensors(store):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(SIZE, requires_grad=True)
        with store:
            y = (x * 2).sin().exp().sum()
        y.backward()
    assert x.grad.shape == x.shape
    assert store.stats()["saved"]["tensors"] == 0


def test_memory_that_is_shared_or_of_numpy(store):
    numpy = pytest.importorskip("numpy")

    def run(scope):
        shared, borrowed = leaf().detach().share_memory_(), torch.from_numpy(numpy.arange(SIZE, dtype=numpy.float32))
        x = leaf(1)
        with scope:
            y = ((x * shared).sin() * borrowed).sum()
        y.backward()
        return [x.grad]

    assert_passes_through(store, run, "memory of another owner (shared, mapped, numpy)")


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.complex32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_with_gradients(store, dtype):
    def run(scope):
        torch.manual_seed(0)
        x = torch.randn(SIZE, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype).requires_grad_()
        with scope:
            hidden = x * x
            y = (hidden * hidden.conj() * x).abs().float().sum() if dtype.is_complex else (hidden * x).float().sum()
        y.backward()
        return [torch.view_as_real(x.grad) if dtype.is_complex else x.grad]

    assert_as_plain(store, run)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bit_floats(store, dtype):
    """As training in FP8 saves its operands: by a function of its own, which casts them back."""

    class Cast(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            small = x.detach().to(dtype)
            ctx.save_for_backward(small)
            return small.float() * 2

        @staticmethod
        def backward(ctx, grad):
            (small,) = ctx.saved_tensors
            assert small.dtype == dtype
            return grad * small.float()

    def run(scope):
        x = leaf(0, 4 * SIZE)
        with scope:
            y = Cast.apply(Cast.apply(x * 1.5)).sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_integers_bools_and_bytes(store):
    """Indices and masks are saved too."""

    def run(scope):
        x = leaf()
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))
        with scope:
            hidden = x * 2
            picked = hidden.gather(0, order + 0)
            y = torch.where(picked > 0, picked.exp(), picked.sin()).masked_fill(order % 3 == 0, 1.5).sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


LAYOUTS = {
    "expanded": lambda base: base.view(16, 1, 256).expand(16, 8, 256),
    "expanded to nothing": lambda base: base.view(16, 256, 1).expand(16, 256, 0),
    "overlapping windows": lambda base: base.unfold(0, 64, 16),
    "as_strided with an offset": lambda base: base.as_strided((30, 30), (61, 2), 37),
    "flipped": lambda base: base.flip(0),
    "diagonal": lambda base: base.view(64, 64).diagonal(1),
    "channels last": lambda base: base.view(4, 16, 8, 8).contiguous(memory_format=torch.channels_last),
    "channels last 3d": lambda base: base.view(2, 8, 4, 8, 8).contiguous(memory_format=torch.channels_last_3d),
    "conjugate": lambda base: torch.complex(base, base + 1).conj(),
    "negated": lambda base: torch.complex(base, base + 1).conj().imag,
    "conjugate and transposed": lambda base: torch.complex(base, base + 1).view(64, 64).mH[3:, 5:],
    "real of complex": lambda base: torch.view_as_real(torch.complex(base, base + 1)),
    "last element": lambda base: base[-1:],
    "negative step over a slice": lambda base: base.view(64, 64)[::3, ::5].t(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_and_bits(store, name):
    """Through a function that saves the view and looks at all that a view has."""
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, view):
            ctx.save_for_backward(view)
            seen.append(describe(view))
            return view.abs().sum()

        @staticmethod
        def backward(ctx, grad):
            (view,) = ctx.saved_tensors
            seen.append(describe(view))
            return grad * view.resolve_conj().resolve_neg()

    def describe(view):
        return view.shape, view.stride(), view.dtype, view.is_conj(), view.is_neg(), view.data_ptr() % 64

    def run(scope):
        x = leaf()
        with scope:
            y = Look.apply(LAYOUTS[name](x * 1.25))
        y.backward()
        assert seen[-1] == seen[-2]
        return [x.grad if x.grad is not None else torch.zeros(0)]

    if name in ("expanded to nothing", "last element"):
        assert_same_bits(run(store), run(contextlib.nullcontext()))
    else:
        assert_as_plain(store, run)
