"""The part `recipes`: how many of the bytes that a step saves need not be stored, since cheap ops make them again.

Blocks without embedding, head and loss; 2 x 256 tokens, on one thread. Saved bytes are storages, each once; the casts of weights that
autocast saves are not counted. Every cheap recipe is used: the store has no budget at all, and no disk. In each round a step without a
store, some with one, and the ops that are redone by themselves, on tensors of the same shapes, take turns; seconds are medians over the
rounds. What the ops by themselves take is the least that redoing can: in steps as narrow as these, whose matmuls are short, that may be
over the goal by itself. The wide rows are nearer to what is trained.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cli
from row import Row

BATCH, TOKENS = 2, 256
MIN_BYTES = 4096
# model, autocast -> least share of the saved bytes, most of the step's time
GOALS = {("gpt", False): (0.37, 0.02), ("llama", False): (0.44, 0.02), ("gpt", True): (0.33, 0.02), ("llama", True): (0.50, 0.04)}
SHARE_WITH_MATMULS = 0.65
ROUNDS_ON_TRIAL = 3  # what rests on weights is compared until the third
OVER_BARE_OPS = 1.2  # the most that redoing takes, of the ops by themselves


@dataclass
class Size:
    suffix: str
    layers: int
    width: int
    rounds: int


SIZES = (Size("", 4, 256, 16), Size(".wide", 2, 1024, 6))


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    if options:
        raise cli.BadInput(f"the part recipes takes no options: {options[0]}")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size in SIZES:
            for (model, autocast), (share, time_share) in GOALS.items():
                yield from _rows(size, model, autocast, share, time_share)
    finally:
        torch.set_num_threads(before)


def _rows(size: Size, name: str, autocast: bool, share_goal: float, time_goal: float) -> Iterator[Row]:
    import ebbtide
    import torch
    from gpt import Gpt
    from llama import Llama

    case = f"{name}.{'bf16' if autocast else 'fp32'}{size.suffix}"
    print(f"recipes: {case}", file=sys.stderr)
    torch.manual_seed(0)
    model = {"gpt": Gpt, "llama": Llama}[name](size.layers, size.width, TOKENS)
    embedded = torch.randn(BATCH, TOKENS, size.width, requires_grad=True)
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
    redone = ebbtide.Store(device_budget=0, **options)  # knows of no model: casts of weights stay
    redone._store.use_costly_recipes(False)
    with_matmuls = ebbtide.Store(device_budget=0, **options)
    with_matmuls.attach(model).remove()
    with_matmuls._store.use_costly_recipes(True)
    for store in (redone, with_matmuls):
        store._store.follow_plans(False)
    optimizer = torch.optim.SGD(model.blocks.parameters(), lr=1e-3)
    bare_ops = _bare_ops(name, autocast, size)
    plain_s, kept_s, redone_s, redoing_s, bare_s, costly_s = [], [], [], [], [], []
    bitwise = True
    for number in range(size.rounds):
        seconds, reference = step(contextlib.nullcontext())
        plain_s.append(seconds)
        redoing_before = redone.stats()["recompute_s"]
        for store, times in ((kept, kept_s), (redone, redone_s), (with_matmuls, costly_s)):
            seconds, gradients = step(store)
            times.append(seconds)
            bitwise &= all(torch.equal(a, b) for a, b in zip(gradients, reference))
        redoing_s.append(redone.stats()["recompute_s"] - redoing_before)
        bare_s.append(bare_ops())
        optimizer.step()
        if number == 0:
            first = redone.stats()
        if number == ROUNDS_ON_TRIAL - 1:
            trusted = with_matmuls.stats()
    stats, within = redone.stats(), kept.stats()
    steps = size.rounds - 1
    casts = _cast_bytes(model) if autocast else 0
    saved = (stats["saved"]["bytes"] - first["saved"]["bytes"]) / steps - casts
    removed = (stats["recomputed"]["bytes"] - first["recomputed"]["bytes"]) / steps
    plain, redoing, bare = (statistics.median(times[1:]) for times in (plain_s, redoing_s, bare_s))
    low, _, high = statistics.quantiles(plain_s[1:], n=4)
    yield Row("recipes", f"{case}.saved", int(saved), "B")
    yield Row("recipes", f"{case}.redone", removed / saved, "", f">= {share_goal}", removed / saved >= share_goal)
    for op, count in sorted(stats["recomputed_ops"].items(), key=lambda item: -item[1]["bytes"]):
        yield Row("recipes", f"{case}.redone.{op}", count["bytes"] / size.rounds / saved)
    yield Row.at_most("recipes", f"{case}.seconds_of_redoing_per_step", redoing / plain, "", time_goal)
    yield Row("recipes", f"{case}.seconds_of_bare_ops_per_step", bare / plain)
    yield Row.at_most("recipes", f"{case}.redoing_over_bare_ops", redoing / bare, "", OVER_BARE_OPS)
    yield Row("recipes", f"{case}.step", plain * 1e3, "ms")
    yield Row("recipes", f"{case}.step_spread", (high - low) / plain)  # between the quartiles: how noisy the machine was
    yield Row("recipes", f"{case}.step_added_within_budget", statistics.median(kept_s[1:]) / plain - 1)
    yield Row("recipes", f"{case}.step_added_without_budget", statistics.median(redone_s[1:]) / plain - 1)
    yield Row("recipes", f"{case}.held_by_recipes_at_most", stats["recipe_bytes_peak"] / saved)
    now = with_matmuls.stats()
    share = (now["recomputed"]["bytes"] - trusted["recomputed"]["bytes"]) / (now["saved"]["bytes"] - trusted["saved"]["bytes"])
    costly = statistics.median(costly_s[ROUNDS_ON_TRIAL:])
    yield Row("recipes", f"{case}.redone_with_matmuls_and_casts", share, "", f">= {SHARE_WITH_MATMULS}", share >= SHARE_WITH_MATMULS)
    yield Row("recipes", f"{case}.step_added_with_matmuls_and_casts", costly / plain - 1)
    yield Row.must_hold("recipes", f"{case}.bitwise", bitwise)
    yield Row.must_hold("recipes", f"{case}.nothing_redone_within_budget", within["recomputed"]["tensors"] == 0)
    kept.close()
    redone.close()
    with_matmuls.close()


def _bare_ops(name: str, autocast: bool, size: Size) -> Callable[[], float]:
    """Runs what a step redoes, an op each, and returns the seconds."""
    import torch
    from llama import hidden_width
    from torch.nn import functional as F

    narrow = torch.bfloat16 if autocast else torch.float32
    x = torch.randn(BATCH, TOKENS, size.width)
    weight, bias = torch.randn(size.width), torch.randn(size.width)
    scale = torch.rand(BATCH, TOKENS, 1)
    hidden = 4 * size.width if name == "gpt" else hidden_width(size.width)
    gate, up = (torch.randn(BATCH, TOKENS, hidden).to(narrow) for _ in range(2))

    def gpt_block():
        for _ in range(2):
            normed = F.layer_norm(x, (size.width,), weight, bias)
            if autocast:
                normed.to(narrow)
        F.gelu(gate)

    def llama_block():
        for readers in (3, 2):  # query, key and value; gate and up
            normed = weight * (x * scale)
            for _ in range(readers if autocast else 0):
                normed.to(narrow)
        F.silu(gate) * up

    def run() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for _ in range(size.layers):
                gpt_block() if name == "gpt" else llama_block()
        return time.perf_counter() - start

    return run


def _cast_bytes(model) -> int:
    """Of the copies of weights that autocast makes and autograd saves."""
    from torch import nn

    sizes = [module.weight.numel() * 2 for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    return sum(size for size in sizes if size >= MIN_BYTES)
