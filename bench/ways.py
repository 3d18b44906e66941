"""What becomes of activations, a function a way: those of torch, and Ebbtide's. peers.py has those of others.

Each gets the model (whose `blocks` it may change) and a `Where`, and returns a `Way`. What cannot be done here is an `Unavailable`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training import Way

COMPILE_BUDGETS = (0.3, 0.5)


@dataclass
class Where:
    device: str
    budget: int | str | None  # Ebbtide's, bytes; None: automatic
    spill: str
    peers: Path  # the folder that `--peers` installs into


class Unavailable(Exception):
    """Why a way cannot be tried on this machine, in one line."""


def plain(model, where: Where) -> Way:
    return Way()


def checkpoint(model, where: Where) -> Way:
    from torch.utils.checkpoint import checkpoint

    wrap_blocks(model, lambda forward: functools.partial(checkpoint, forward, use_reentrant=False))
    return Way()


def selective(model, where: Where) -> Way:
    """Matrix products, attention and convolutions stay, the rest is computed again."""
    import torch
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    aten = torch.ops.aten
    stay = [aten.mm.default, aten.addmm.default, aten.bmm.default, aten.convolution.default]
    stay += [
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    ]
    contexts = functools.partial(create_selective_checkpoint_contexts, stay)
    wrap_blocks(model, lambda forward: functools.partial(checkpoint, forward, use_reentrant=False, context_fn=contexts))
    return Way()


def save_on_cpu(model, where: Where) -> Way:
    from torch.autograd.graph import save_on_cpu

    note = "" if where.device == "cuda" else "copies within the same memory: there is no other device here"
    return Way(lambda: save_on_cpu(pin_memory=where.device == "cuda"), note=note)


def checkpoint_save_on_cpu(model, where: Where) -> Way:
    checkpoint(model, where)
    return save_on_cpu(model, where)


def compiled(model, where: Where) -> Way:
    for block in model.blocks:
        block.compile()
    return Way(note="each block compiled")


def compiled_within(budget: float, model, where: Where) -> Way:
    import torch._functorch.config

    torch._functorch.config.activation_memory_budget = budget
    return compiled(model, where)


def ebbtide(model, where: Where) -> Way:
    import ebbtide

    options = {} if where.budget is None else {"device_budget": where.budget}
    store = ebbtide.enable(model, spill_to=where.spill, **options)
    return Way(store=store)


def ebbtide_regions(model, where: Where) -> Way:
    """Each block called through `ebbtide.checkpoint`."""
    import ebbtide as package

    wrap_blocks(model, lambda forward: functools.partial(package.checkpoint, forward))
    return ebbtide(model, where)


def compiled_ebbtide(model, where: Where) -> Way:
    compiled(model, where)
    return ebbtide(model, where)


def wrap_blocks(model, wrap: Callable) -> None:
    for block in model.blocks:
        block.forward = wrap(block.forward)
