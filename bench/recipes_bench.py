"""The part `recipes`: how many of the bytes that a step saves need not be stored, since cheap ops make them again.

Four blocks without embedding, head and loss; 2 x 256 tokens, width 256, on one thread. Saved bytes are storages, each once; the casts of weights that autocast saves are
not counted. Every recipe is used: the store has no budget at all, and no disk. Seconds of redoing are held against the step without
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
MIN_BYTES = 4096
# model, autocast -> least share of the saved bytes, most of the step's time
GOALS = {("gpt", False): (0.37, 0.02), ("llama", False): (0.44, 0.02), ("gpt", True): (0.33, 0.02), ("llama", True): (0.50, 0.04)}


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
    kept.attach(model).remove()
    redone = ebbtide.Store(device_budget=0, **options)
    redone.attach(model).remove()
    plain_s, kept_s, redone_s, redoing_s = [], [], [], []
    bitwise = True
    for number in range(STEPS):
        seconds, reference = step(contextlib.nullcontext())
        plain_s.append(seconds)
        for store, times in ((kept, kept_s), (redone, redone_s)):
            seconds, gradients = step(store)
            times.append(seconds)
            bitwise &= all(torch.equal(a, b) for a, b in zip(gradients, reference))
        redoing_s.append(redone.stats()["recompute_s"] - sum(redoing_s))
        if number == 0:
            first = redone.stats()
    stats, within = redone.stats(), kept.stats()
    steps = STEPS - 1
    casts = _cast_bytes(model) if autocast else 0
    saved = (stats["saved"]["bytes"] - first["saved"]["bytes"]) / steps - casts
    removed = (stats["recomputed"]["bytes"] - first["recomputed"]["bytes"]) / steps
    plain = min(plain_s)
    seconds = min(redoing_s[1:])
    yield Row("recipes", f"{case}.saved", int(saved), "B")
    yield Row("recipes", f"{case}.redone", removed / saved, "", f">= {share_goal}", removed / saved >= share_goal)
    for op, count in sorted(stats["recomputed_ops"].items(), key=lambda item: -item[1]["bytes"]):
        yield Row("recipes", f"{case}.redone.{op}", count["bytes"] / STEPS / saved)
    yield Row.at_most("recipes", f"{case}.seconds_of_redoing_per_step", seconds / plain, "", time_goal)
    yield Row("recipes", f"{case}.step", plain * 1e3, "ms")
    yield Row("recipes", f"{case}.step_added_within_budget", min(kept_s) / plain - 1)
    yield Row("recipes", f"{case}.step_added_without_budget", min(redone_s) / plain - 1)
    yield Row.must_hold("recipes", f"{case}.bitwise", bitwise)
    yield Row.must_hold("recipes", f"{case}.nothing_redone_within_budget", within["recomputed"]["tensors"] == 0)
    kept.close()
    redone.close()


def _cast_bytes(model) -> int:
    """Of the copies of weights that autocast makes and autograd saves."""
    from torch import nn

    sizes = [module.weight.numel() * 2 for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    return sum(size for size in sizes if size >= MIN_BYTES)
