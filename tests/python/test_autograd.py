"""What autograd may do with saved tensors, under a store from which everything leaves."""

import contextlib
import gc
import threading

import pytest
import torch

import ebbtide
from support import MIN_BYTES, SIZE, Square, assert_as_plain, assert_same_bits, build, chain, gradient, leaf


def test_retain_graph(store):
    x = leaf()
    reference = gradient(chain, x)
    with store:
        y = chain(x)
    for _ in range(3):
        assert_same_bits(torch.autograd.grad(y, x, retain_graph=True), reference)
    del y


def test_double_backward_inside_the_scope(store):
    x = leaf()

    def nested():
        (first,) = torch.autograd.grad(chain(x), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)

    reference = nested()
    with store:
        got = nested()
    assert_same_bits(got, reference)


def test_double_backward_outside_the_scope(store):
    x = leaf()

    def run(context):
        with context:
            y = chain(x)
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)

    assert_same_bits(run(store), run(contextlib.nullcontext()))


def test_partial_backward(store):
    x, w = leaf(0), leaf(1)

    def run():
        hidden = (x * 2).sin()
        return (hidden * w).exp().sum()

    reference = torch.autograd.grad(run(), w)
    with store:
        y = run()
    y.backward(inputs=[w])
    assert_same_bits([w.grad], reference)
    w.grad = None
    del y


def test_several_passes_in_flight(store):
    x = leaf()
    reference = gradient(chain, x)
    passes = []
    for _ in range(3):
        with store:
            passes.append(chain(x))
    for y in passes:  # oldest first: the order is not the prefetcher's guess
        assert_same_bits(torch.autograd.grad(y, x), reference)
    del y
    passes.clear()
    assert store.stats()["passes"] == 3


def test_pass_dropped_without_backward(store):
    with store:
        y = chain(leaf())
    assert store.stats()["spill"]["bytes"] > 0
    del y
    gc.collect()
    assert store.stats()["passes"] == 1


def test_exception_in_the_forward(store):
    x = leaf()
    with pytest.raises(ZeroDivisionError):
        with store:
            chain(x)
            1 / 0
    reference = gradient(chain, x)
    with store:
        y = chain(x)
    assert_same_bits(torch.autograd.grad(y, x), reference)


def test_exception_in_the_backward(store):
    class Throws(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("thrown in backward")

    x = leaf()
    with store:
        y = Throws.apply(x.sin()).exp().sum()
    with pytest.raises(ValueError, match="thrown in backward"):
        y.backward()
    del y
    gc.collect()
    assert store.stats()["passes"] == 1
    reference = gradient(chain, x)
    with store:
        y = chain(x)
    assert_same_bits(torch.autograd.grad(y, x), reference)


def assert_in_place_error_of_plain(broken, store):
    """That `broken` raises torch's error about in-place writes inside the store as it does outside, word for word."""
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as plain:
        broken()
    with pytest.raises(RuntimeError) as stored:
        with store:
            broken()
    assert str(stored.value) == str(plain.value)


def test_in_place_after_saving_raises_what_torch_raises(store):
    def broken():
        x = leaf()
        y = x.exp()
        z = y.sin().sum()
        with torch.no_grad():
            y.mul_(2)
        z.backward()

    assert_in_place_error_of_plain(broken, store)


def test_in_place_on_a_parameter_raises_what_torch_raises(store):
    def broken():
        weight = leaf()
        y = (leaf(1) * weight).sum()
        with torch.no_grad():
            weight.add_(1)
        y.backward()

    assert_in_place_error_of_plain(broken, store)


def test_in_place_before_saving_is_a_new_version(store):
    def run():
        x = leaf(3)
        y = x * 2
        y.relu_()
        return (y.sin() * y.cos()).sum(), x

    y, x = run()
    reference = torch.autograd.grad(y, x)
    with store:
        y, x = run()
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_views_of_one_storage_are_one_record(store):
    x = leaf(4, 3 * SIZE)

    def run(x):
        hidden = x * 1.5
        a, b, c = hidden.view(3, SIZE).unbind(0)
        return (a.sin() * b.cos() * c.exp()).sum()

    reference = gradient(run, x)
    with store:
        y = run(x)
    assert store.stats()["deduplicated"]["tensors"] >= 2
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_shared_input_is_fetched_once(store):
    x = leaf(5)

    def run(x):
        hidden = x.sin()
        return (hidden.exp() + hidden.cos() + hidden * hidden).sum()

    reference = gradient(run, x)
    with store:
        y = run(x)
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y
    stats = store.stats()
    assert stats["disk_read"]["bytes"] <= stats["disk_write"]["bytes"]


@pytest.mark.parametrize("change", ["transpose", "slice", "expand", "channels_last", "conj", "neg"])
def test_layouts(store, change):
    def run(x):
        base = x.view(4, 4, 16, 16) * 1.25
        if change == "transpose":
            view = base.transpose(0, 3)
        elif change == "slice":
            view = base[1:, :, 2:14:2]
        elif change == "expand":
            view = base[:, :1].expand(4, 4, 16, 16)
        elif change == "channels_last":
            view = base.contiguous(memory_format=torch.channels_last)
        elif change == "conj":
            view = torch.complex(base, base + 1).conj()
        else:
            view = torch.complex(base, base + 1).conj().imag
        out = view * view * (view + 1)
        return (out.real if out.is_complex() else out).sum()

    x = leaf(6)
    reference = gradient(run, x)
    with store:
        y = run(x)
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_saved_tensors_unpack_twice(store):
    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            (mine,) = ctx.saved_tensors
            before = mine.clone()
            (again,) = ctx.saved_tensors
            assert torch.equal(before, again)
            return grad * before

    x = leaf(7)
    reference = gradient(lambda x: Greedy.apply(x.sin()).sum(), x)
    with store:
        y = Greedy.apply(x.sin()).sum()
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_a_write_to_what_was_unpacked_raises_what_torch_raises(store):
    class Rude(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            ctx.saved_tensors[0].mul_(3)
            return grad * ctx.saved_tensors[0]

    def broken():
        Rude.apply(leaf(7).sin()).sum().backward()

    assert_in_place_error_of_plain(broken, store)


def test_backward_on_another_thread(store):
    x = leaf(8)
    reference = gradient(chain, x)
    with store:
        y = chain(x)
    got = []
    thread = threading.Thread(target=lambda: got.extend(torch.autograd.grad(y, x)))
    thread.start()
    thread.join()
    assert_same_bits(got, reference)
    del y


def test_threads_share_a_store(store):
    references = [gradient(chain, leaf(seed)) for seed in range(4)]
    errors = []

    def work(seed):
        try:
            for _ in range(10):
                x = leaf(seed)
                with store:
                    y = chain(x)
                assert_same_bits(torch.autograd.grad(y, x), references[seed])
        except BaseException as error:  # noqa: BLE001: shown by the test below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("reentrant", [False, True])
def test_torch_checkpoint_inside(store, reentrant):
    from torch.utils.checkpoint import checkpoint

    x = leaf(9)

    def run(x):
        return checkpoint(lambda h: h.sin().exp().cos(), x * 2, use_reentrant=reentrant).tanh().sum()

    def grad_of(x):
        x.grad = None
        run(x).backward()
        return [x.grad.clone()]

    reference = grad_of(x)
    with store:
        got = grad_of(x)
    assert_same_bits(got, reference)


def test_python_hooks_inside_the_scope_win(store):
    x = leaf(10)
    seen = []
    with store:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(1), t)[1], lambda t: t):
            y = chain(x)
    assert seen
    assert store.stats()["saved"]["tensors"] == 0
    taken = store.stats()["passed_through_reasons"]["Python hooks inside the scope"]
    assert taken == {"tensors": len(seen), "bytes": 4 * SIZE * len(seen)}
    assert_same_bits(torch.autograd.grad(y, x), gradient(chain, x))


def test_scope_inside_python_hooks_wins(store):
    x = leaf(11)
    reference = gradient(chain, x)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(1), t)[1], lambda t: t):
        with store:
            y = chain(x)
    assert not seen
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_disabled_hooks_pass_through_with_their_reason(store):
    x = leaf(12)
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        with store:
            y = chain(x)
    assert store.stats()["saved"]["tensors"] == 0
    assert "saved-tensor hooks disabled by torch" in store.stats()["passed_through_reasons"]
    y.backward()


def test_function_transforms_inside(store):
    x = leaf(13).detach()
    reference = torch.func.grad(chain)(x)
    with store:
        got = torch.func.grad(chain)(x)
        jacobian = torch.func.vmap(torch.func.grad(lambda v: v.sin().sum()))(x.view(4, -1))
    assert_same_bits([got, jacobian.flatten()], [reference, x.cos()])


def test_forward_mode_inside(store):
    x = leaf(14).detach()
    with store:
        value, tangent = torch.func.jvp(lambda v: v.sin(), (x,), (torch.ones_like(x),))
    assert_same_bits([value, tangent], [x.sin(), x.cos()])


def test_anomaly_mode(store):
    x = leaf(15)
    reference = gradient(chain, x)
    with torch.autograd.detect_anomaly(check_nan=False):
        with store:
            y = chain(x)
        assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_no_grad_and_inference_save_nothing(store):
    with store:
        with torch.no_grad():
            chain(leaf())
        with torch.inference_mode():
            chain(leaf())
    assert store.stats()["passes"] == 0
    assert store.stats()["saved"]["tensors"] == 0


def test_reentrant_scopes_are_one_pass(store):
    x = leaf(16)
    reference = gradient(lambda x: chain(x) + chain(x * 3), x)
    with store:
        first = chain(x)
        with store:
            y = first + chain(x * 3)
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y, first
    assert store.stats()["passes"] == 1


def test_hooks_outlive_the_store(tmp_path):
    x = leaf(17)
    reference = gradient(chain, x)
    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    with store:
        y = chain(x)
    del store
    gc.collect()
    assert_same_bits(torch.autograd.grad(y, x), reference)


def test_close_brings_records_home(tmp_path):
    x = leaf(18)
    reference = gradient(chain, x)
    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    with store:
        y = chain(x)
    assert store.stats()["spill"]["bytes"] > 0
    store.close()
    store.close()
    read = store.stats()["disk_read"]["bytes"]
    assert read > 0
    assert_same_bits(torch.autograd.grad(y, x), reference)
    assert store.stats()["disk_read"]["bytes"] == read, "a record had not come home"
    with pytest.raises(RuntimeError, match="closed"):
        with store:
            pass


def test_close_inside_a_scope_lets_later_tensors_pass(tmp_path):
    x = leaf(19)
    reference = gradient(chain, x)
    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    with store:
        first = chain(x)
        store.close()
        second = chain(x)
    assert_same_bits(torch.autograd.grad(first, x), reference)
    assert_same_bits(torch.autograd.grad(second, x), reference)


def test_special_kinds_pass_through(store):
    x = leaf(20, 128 * 128)
    with store:
        sparse = torch.sparse_coo_tensor([[0, 1], [2, 3]], torch.ones(2), (128, 128))
        y = torch.sparse.mm(sparse, x.view(128, 128)).sum()
        nested = torch.nested.nested_tensor([torch.randn(64, 64), torch.randn(32, 64)], requires_grad=True)
        z = torch.nested.to_padded_tensor(nested.sin(), 0).sum()
    y.backward()
    z.backward()
    reasons = store.stats()["passed_through_reasons"]
    assert any("sparse" in reason for reason in reasons)
    assert "nested" in reasons


def test_what_an_op_packs_before_it_writes_it(store):
    """The noise of rrelu: when it is packed, of this size, memory fresh from the system, all zeros."""

    def run(scope):
        x = leaf(21, 1 << 24)
        torch.manual_seed(0)
        with scope:
            y = torch.nn.functional.rrelu(x * 2, training=True).sum()
        y.backward()
        return [x.grad]

    assert_as_plain(store, run)


def test_custom_function_saves_its_result(store):
    x = leaf(21)
    reference = gradient(lambda x: Square.apply(x.sin()).sum(), x)
    with store:
        y = Square.apply(x.sin()).sum()
    assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_ten_thousand_small_passes_leave_nothing(tmp_path):
    store = ebbtide.Store(device_budget="1GiB", min_bytes=MIN_BYTES)
    x = leaf(22)
    for _ in range(10_000):
        with store:
            y = (x * 2).sin().sum()
        y.backward()
    del y
    stats = store.stats()
    assert stats["passes"] == 10_000
    assert stats["device"]["bytes"] == 0


def test_compiled_model(store):
    model, x = build("mlp")
    compiled = torch.compile(model, backend="aot_eager")
    reference = [p.grad.clone() for p in model.parameters()] if compiled(x).pow(2).sum().backward() is None else []
    model.zero_grad()
    with store:
        loss = compiled(x).pow(2).sum()
    loss.backward()
    assert_same_bits([p.grad for p in model.parameters()], reference)
    del loss


def test_a_small_view_of_a_large_storage(store):
    x = leaf(23, 64 * SIZE)

    def run(x):
        part = (x * 2)[8:40]  # no whole sector of the disk
        return (part.sin() * part).sum() + chain(x)

    reference = gradient(run, x)
    for _ in range(2):
        with store:
            y = run(x)
        assert_same_bits(torch.autograd.grad(y, x), reference)
    del y


def test_a_storage_that_python_has_looked_at_leaves_too(store):
    x = leaf(24)
    with store:
        hidden = x
        for _ in range(8):
            hidden = (hidden * 1.5).sin()
            assert hidden.untyped_storage().nbytes() > 0
        y = hidden.sum()
        del hidden
    stats = store.stats()
    assert stats["device"]["bytes"] == 0
    assert stats["referenced_elsewhere"] <= 2 * 4 * SIZE
    y.backward()
    del y


@pytest.mark.parametrize("double", [False, True], ids=["retain_graph", "create_graph"])
def test_budget_holds_while_the_graph_is_kept(store, double):
    x = leaf(25)
    with store:
        hidden = x
        for _ in range(16):
            hidden = hidden.sin() * hidden.cos() * 1.5
        y = hidden.sum()
        del hidden
        (first,) = torch.autograd.grad(y, x, create_graph=double, retain_graph=True)
    stats = store.stats()
    assert stats["device"]["bytes"] + stats["referenced_elsewhere"] <= 5 * 4 * SIZE, stats
    if double:
        first.pow(2).sum().backward()
        x.grad = None
    del y, first


def test_passes_end_with_their_last_record(store):
    with store:
        for _ in range(5):
            y = chain(leaf(26))
            del y
        assert store.stats()["passes"] == 5


def test_interpreter_exit_with_transfers_under_way(tmp_path):
    import subprocess
    import sys

    program = f"""
import numpy, torch, ebbtide
store = ebbtide.Store(device_budget=0, spill_to={str(tmp_path)!r}, min_bytes=4096)
x = torch.ones(1 << 20, requires_grad=True)
with store:
    y = sum((torch.from_numpy(numpy.ones(1 << 20, dtype=numpy.float32)) * x).sin().sum() for _ in range(8))
    if {{drop}}:
        del y, store
"""
    for drop in (True, False, True, False):
        result = subprocess.run([sys.executable, "-c", program.format(drop=drop)], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
