"""The promises on a real GPU, with torch's own streams and allocator. Skipped where there is none."""

import contextlib
import copy
import gc
import os

import pytest
import torch
from torch import nn

import ebbtide
from support import MIN_BYTES, MODELS, Square, assert_same_bits, build, train

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first matrix product
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")]

GPU = "cuda"
MIB = 1 << 20
# As long as a few hundred small kernels: what must wait for it and does not is wrong.
SLEEP_CYCLES = 5_000_000


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def on_gpu(name):
    model, x = build(name)
    return model.to(GPU), x.to(GPU)


def saved_on_gpu(model, x):
    with ebbtide.Store(device_budget="1TiB", min_bytes=MIN_BYTES) as store:
        loss = model(x).pow(2).mean()
    loss.backward()
    return store.stats()["saved"]["bytes"]


def deep(layers, width=256, rows=16384):
    """Large in what it saves, small in its parameters."""
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(layers)]
    return nn.Sequential(*blocks).to(GPU), torch.randn(rows, width, device=GPU)


@pytest.mark.parametrize("tier", ["host", "nvme"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, None], ids=["0", "10%", "50%", "unlimited"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_bitwise_those_of_plain(name, share, tier, tmp_path):
    model, x = on_gpu(name)
    reference = train(copy.deepcopy(model), x)
    assert_same_bits(train(copy.deepcopy(model), x), reference)  # else "the same as plain" would mean nothing

    saved = saved_on_gpu(copy.deepcopy(model), x)
    options = {"min_bytes": MIN_BYTES, "device_budget": "1TiB" if share is None else int(share * saved)}
    if tier == "nvme":
        options |= {"spill_to": tmp_path, "host_budget": "16MiB"}
    store = ebbtide.Store(**options)
    assert_same_bits(train(copy.deepcopy(model), x, lambda: store), reference)

    stats = store.stats()
    assert stats["passes"] == 2
    assert stats["packed"]["tensors"] == sum(stats[key]["tensors"] for key in ("passed_through", "deduplicated", "saved"))
    assert stats["saved"]["tensors"] == sum(stats[key]["tensors"] for key in ("kept", "offloaded", "spilled", "recomputed"))
    assert stats["device"]["bytes"] == 0
    if share is None:
        assert stats["d2h"]["bytes"] == 0
    else:
        assert stats["offloaded"]["tensors"] + stats["spilled"]["tensors"] > 0 and stats["h2d"]["bytes"] > 0
    store.close()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_what_autograd_saves_stays_within_the_budget(share):
    model, x = deep(layers=12)
    reference = train(copy.deepcopy(model), x, steps=1)
    saved = saved_on_gpu(model, x)
    largest = 64 * MIB
    budget = int(share * saved)

    def peak_of(context):
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        with context():
            loss = model(x).pow(2).mean()
        loss.backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    plain = peak_of(contextlib.nullcontext)
    store = ebbtide.Store(device_budget=budget, min_bytes=MIB)
    peaks = [peak_of(lambda: store) for _ in range(3)]
    # What leaves is counted from the pack after its own; what is computed at that moment is no saved tensor yet.
    assert max(peaks[1:]) <= plain - saved + budget + 3 * largest
    assert store.stats()["device"]["peak_bytes"] <= budget + 2 * largest
    assert_same_bits(train(copy.deepcopy(model), x, lambda: store, steps=1), reference)


def test_a_model_that_does_not_fit_trains():
    model, x = deep(layers=24)
    saved = saved_on_gpu(model, x)
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + saved // 2 + 512 * MIB
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            model(x).pow(2).mean().backward()
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        store = ebbtide.Store(device_budget=saved // 10)
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            with store:
                loss = model(x).pow(2).mean()
            loss.backward()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert store.stats()["offloaded"]["bytes"] > 0


def test_memory_that_is_reused_at_once_under_a_slow_stream():
    """The allocator hands freed memory to the next op while the GPU is far behind: a missing wait is wrong bits."""
    weights = [torch.randn(512, 512, device=GPU, requires_grad=True) for _ in range(16)]

    def step(context, slow):
        x = torch.randn(512, 512, device=GPU, generator=torch.Generator(GPU).manual_seed(7))
        with context():
            for weight in weights:
                if slow:
                    torch.cuda._sleep(SLEEP_CYCLES // 10)
                x = torch.tanh(x @ weight * 0.05)
                for _ in range(3):
                    torch.full_like(x, float("nan"))  # whoever gets freed memory writes to it
            loss = x.sum()
        grads = torch.autograd.grad(loss, weights)
        return [g.clone() for g in grads]

    reference = step(contextlib.nullcontext, slow=False)
    for round in range(20):
        store = ebbtide.Store(device_budget=round % 4 * MIB, min_bytes=MIN_BYTES)
        assert_same_bits(step(lambda: store, slow=round % 2 == 0), reference)


def test_streams_of_the_user():
    weight = torch.randn(1024, 1024, device=GPU, requires_grad=True)
    other = torch.cuda.Stream()
    x = torch.randn(1024, 1024, device=GPU)

    def run(context):
        main = torch.cuda.current_stream()
        with torch.cuda.stream(other):
            other.wait_stream(main)
            torch.cuda._sleep(SLEEP_CYCLES)
            side = x * 2 + 1  # allocated and made on the side stream
        main.wait_stream(other)
        side.record_stream(main)
        with context():
            y = (side @ weight).tanh()  # packed on the main stream
            other.wait_stream(main)
            with torch.cuda.stream(other):
                z = (y @ weight).sigmoid()
                y.record_stream(other)
            main.wait_stream(other)
            z.record_stream(main)
            loss = (z * side).sum()
        del side, y, z
        return torch.autograd.grad(loss, weight)

    reference = run(contextlib.nullcontext)
    for budget in (0, MIB, "1GiB"):
        for _ in range(3):
            store = ebbtide.Store(device_budget=budget, min_bytes=MIN_BYTES)
            assert_same_bits(run(lambda: store), reference)


def test_backward_on_another_stream_than_the_forward():
    weight = torch.randn(1024, 1024, device=GPU, requires_grad=True)
    x = torch.randn(1024, 1024, device=GPU)

    def forward(context):
        with context():
            return torch.tanh(torch.tanh(x @ weight) @ weight).sum()

    reference = torch.autograd.grad(forward(contextlib.nullcontext), weight)
    store = ebbtide.Store(device_budget=0, min_bytes=MIN_BYTES)
    loss = forward(lambda: store)
    backward = torch.cuda.Stream()
    backward.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(backward):
        grads = torch.autograd.grad(loss, weight)
    torch.cuda.current_stream().wait_stream(backward)
    assert_same_bits(grads, reference)


def test_kept_graphs_micro_batches_and_dropped_graphs():
    x = torch.randn(64 * 1024, device=GPU, requires_grad=True)

    def chain(x):
        return ((x * 2).sin().exp().cos() * x.tanh()).sum() + Square.apply(x.sin()).sum()

    reference = torch.autograd.grad(chain(x), x)
    store = ebbtide.Store(device_budget=0, min_bytes=MIN_BYTES)
    with store:
        first, second, dropped = chain(x), chain(x), chain(x)
    del dropped
    assert_same_bits(torch.autograd.grad(second, x, retain_graph=True), reference)
    assert_same_bits(torch.autograd.grad(first, x), reference)
    assert_same_bits(torch.autograd.grad(second, x), reference)
    del first, second

    def twice(context):
        with context():
            (gradient,) = torch.autograd.grad(chain(x), x, create_graph=True)
            return torch.autograd.grad(gradient.pow(2).sum(), x)

    assert_same_bits(twice(lambda: store), twice(contextlib.nullcontext))
    gc.collect()
    assert store.stats()["device"]["bytes"] == 0


def test_in_place_writes_are_the_errors_that_torch_raises():
    x = torch.randn(64 * 1024, device=GPU, requires_grad=True)
    with ebbtide.Store(device_budget=0, min_bytes=MIN_BYTES):
        y = x.exp()
        z = (y * 2).sin()
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_what_a_graph_capture_saves_passes_through():
    torch.use_deterministic_algorithms(False)  # it fills new memory, which no capture may do
    linear = nn.Linear(1024, 1024).to(GPU)
    x = torch.randn(1024, 1024, device=GPU)
    store = ebbtide.Store(device_budget=0, min_bytes=MIN_BYTES)

    def step():
        linear.zero_grad(set_to_none=True)
        with store:
            loss = linear(x).tanh().sum()
        loss.backward()

    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(warm_up)
    reference = linear.weight.grad.clone()
    graph = torch.cuda.CUDAGraph()
    linear.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits([linear.weight.grad], [reference])
    assert "inside a graph capture" in store.stats()["passed_through_reasons"]


def test_bf16_autocast_and_attached_models():
    layer = nn.TransformerEncoderLayer(256, 4, dim_feedforward=1024, dropout=0.1, batch_first=True, norm_first=True)
    torch.manual_seed(4)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(GPU)
    x = torch.randn(16, 256, 256, device=GPU)

    def run(model):
        with torch.autocast(GPU, dtype=torch.bfloat16):
            return train(model, x)

    reference = run(copy.deepcopy(model))
    attached = copy.deepcopy(model)
    store = ebbtide.enable(attached, device_budget="4MiB", min_bytes=MIN_BYTES)
    assert_same_bits(run(attached), reference)
    assert store.stats()["offloaded"]["tensors"] > 0
    report = store.report()
    assert "cuda" in report.lower() or "nvidia" in report.lower()


def test_what_a_store_has_seen_may_outlive_it():
    """torch's allocator turns to every stream that it was told of when it frees what they used: the store's own must not be among them."""
    weight = torch.randn(1024, 1024, device=GPU, requires_grad=True)
    inputs = [torch.randn(1024, 1024, device=GPU) for _ in range(8)]
    for x in inputs:
        store = ebbtide.Store(device_budget=0, min_bytes=MIN_BYTES)
        with store:
            loss = (x @ weight).tanh().sum()
        loss.backward()
        del store, loss
        gc.collect()
    torch.cuda.synchronize()
    del inputs, x
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
