"""The part `recipes`: how many of the bytes that a step saves need not be stored, since ops make them again: cheap ones, as every store does, and matmuls too.

Four blocks without embedding, head and loss; 2 x 256 tokens, width 256, on one thread. Saved bytes are storages, each once, with the casts of weights that autocast
makes. Every recipe is used: the store has no budget at all, and no disk. Seconds of redoing are held against the step without
a store, the fastest of each.
"""

import contextlib
import sys
import time
from collections.abc import Iterator

import cli
from row import Row

LAYERS, WIDTH, BATCH, TOKENS = 4, 256, 2, 256
STEPS = 12
STEPS_BEFORE = 3  # casts of weights are on trial until the third
MIN_BYTES = 4096
# model, autocast -> of cheap ops: least share of the saved bytes, most of the step's time
GOALS = {("gpt", False): (0.37, 0.02), ("llama", False): (0.44, 0.02), ("gpt", True): (0.49, 0.05), ("llama", True): (0.59, 0.1)}
SHARE_WITH_MATMULS = 0.65


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    if options:
        raise cli.BadInput(f"the part recipes takes no options: {options[0]}")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for (model, autocast), (share, time_share) in GOALS.items():
            yield from _rows(model, autocast, share, time_share)
    finally:
        torch.set_num_threads(before)


def _rows(name: str, autocast: bool, share_goal: float, time_goal: float) -> Iterator[Row]:
    import ebbtide
    import torch
    from gpt import Gpt
    from llama import Llama

    case = f"{name}.{'bf16' if autocast else 'fp32'}"
    print(f"recipes: {case}", file=sys.stderr)
    torch.manual_seed(0)
    model = {"gpt": Gpt, "llama": Llama}[name](LAYERS, WIDTH, TOKENS)
    optimizer = torch.optim.SGD(model.blocks.parameters(), lr=1e-3)
    embedded = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    rotation = () if name == "gpt" else (model.cos, model.sin)
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()

    def step(store) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        start = time.perf_counter()
        with store, precision:
            x = embedded * 1.0  # nobody else's, as what an embedding makes
            for block in model.blocks:
                x = block(x, *rotation)
            loss = x.mean()
        del x
        loss.backward()
        return time.perf_counter() - start, [parameter.grad.clone() for parameter in model.blocks.parameters()]

    options = {"min_bytes": MIN_BYTES, "on_full": "keep"}
    kept = ebbtide.Store(device_budget="64GiB", **options)
    cheap = ebbtide.Store(device_budget=0, **options)
    with_matmuls = ebbtide.Store(device_budget=0, **options)
    with_matmuls._store.use_costly_recipes(True)
    stores = (kept, cheap, with_matmuls)
    plain_s, step_s, redoing_s = [], {store: [] for store in stores}, {store: [] for store in stores}
    before = {}
    bitwise = True
    for store in stores:
        store.attach(model).remove()
    for number in range(STEPS_BEFORE + STEPS):
        if number == STEPS_BEFORE:
            before = {store: store.stats() for store in stores}
        seconds, reference = step(contextlib.nullcontext())
        plain_s.append(seconds)
        for store in stores:
            so_far = store.stats()["recompute_s"]
            seconds, gradients = step(store)
            step_s[store].append(seconds)
            redoing_s[store].append(store.stats()["recompute_s"] - so_far)
            bitwise &= all(torch.equal(a, b) for a, b in zip(gradients, reference))
        optimizer.step()
    plain = min(plain_s)

    def bytes_per_step(store, *keys) -> float:
        now, then = store.stats(), before[store]
        for key in keys:
            now, then = now[key], then.get(key, {"bytes": 0})
        return (now["bytes"] - then["bytes"]) / STEPS

    saved = bytes_per_step(cheap, "saved")
    yield Row("recipes", f"{case}.saved", int(saved), "B")
    yield Row("recipes", f"{case}.step", plain * 1e3, "ms")
    yield Row("recipes", f"{case}.step_added_within_budget", min(step_s[kept]) / plain - 1)
    for label, store, least in (("redone", cheap, share_goal), ("redone_with_matmuls", with_matmuls, SHARE_WITH_MATMULS)):
        share = bytes_per_step(store, "recomputed") / saved
        yield Row("recipes", f"{case}.{label}", share, "", f">= {least}", share >= least)
        shares = {op: bytes_per_step(store, "recomputed_ops", op) / saved for op in store.stats()["recomputed_ops"]}
        for op, of_op in sorted(shares.items(), key=lambda item: -item[1]):
            yield Row("recipes", f"{case}.{label}.{op}", of_op)
        seconds = min(redoing_s[store][STEPS_BEFORE:]) / plain
        name = f"{case}.{label}.seconds_of_redoing_per_step"
        yield Row.at_most("recipes", name, seconds, "", time_goal) if store is cheap else Row("recipes", name, seconds)
        yield Row("recipes", f"{case}.{label}.step_added", min(step_s[store][STEPS_BEFORE:]) / plain - 1)
    yield Row.must_hold("recipes", f"{case}.bitwise", bitwise)
    yield Row.must_hold("recipes", f"{case}.nothing_redone_within_budget", kept.stats()["recomputed"]["tensors"] == 0)
    for store in stores:
        store.close()
