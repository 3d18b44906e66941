"""The largest batch that a contender trains in a given memory, by halving."""

import sys
from collections.abc import Callable
from contextlib import ExitStack

import cli
from competition import Outcome, Result
from contender import Contender, Died
from memory_limit import MemoryLimit

STEPS = 2  # the second has the optimizer's state from its beginning
MOST = 1 << 16


def find(arguments, outcome: Outcome) -> dict:
    """For the JSON: each contender's largest batch, 0 where not even one sequence fits."""
    batches = {}
    for name, result in outcome.results.items():
        if result.exit != "ok" or name == "plain_again" or result.entry.swaps:
            continue
        fits = lambda batch: trains(outcome, result, batch, arguments.memory)  # noqa: B023, E731
        batches[name] = search(fits, outcome.conditions.sizes.batch)
        print(f"largest batch of {name}: {batches[name]}", file=sys.stderr)
    return {"model": outcome.conditions.model, "memory_bytes": arguments.memory, "batches": batches}


def search(fits: Callable[[int], bool], start: int) -> int:
    """The largest number that `fits`, which is true up to some number and false from there. About 2 log2 trials."""
    low, high = 0, start
    while high <= MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def trains(outcome: Outcome, result: Result, batch: int, memory: int) -> bool:
    at = outcome.conditions
    budget = result.budget_bytes and result.budget_bytes * batch // at.sizes.batch
    with ExitStack() as stack:
        if at.device == "cuda":
            limit, command = None, at.command(result.entry, budget, memory / _device_bytes(), batch)
        else:
            limit = stack.enter_context(MemoryLimit(memory))
            command = limit.wrap(at.command(result.entry, budget, batch=batch))
        contender = stack.enter_context(Contender(result.entry.name, command))
        try:
            contender.wait_ready()
            for _ in range(STEPS):
                contender.ask("step")
            return True
        except cli.BadInput:
            return False  # Ebbtide finds no room
        except Died as error:
            if (limit and limit.killed_processes()) or "out of memory" in str(error).lower() or "OutOfBudget" in str(error):
                return False
            raise


def _device_bytes() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory
