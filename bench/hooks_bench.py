"""The part `hooks`: what a saved tensor costs at pack and at unpack, in Python and (hooks_bench.cpp) in C++.

A chain of sin: each op saves its input, so the forward holds one pack an op and the backward one unpack. Rows of `no_hooks` are
the time of the whole op; the others are what they add to it: the median of what they took more than no_hooks in the same round. All run
on one thread, in each round in another order; in Python by the thread's own time, which other programs disturb less. Ebbtide has a goal of its own, and is to add less than what
anyone pays today: in Python hooks that do nothing, in C++ (where an empty hook is a virtual call) the copying ones.

Ebbtide holds storages, not tensors: a tensor of the chain ends in the forward, its Python object with it, where without hooks both live until the backward.
So Python's packs take more than C++'s, and its unpacks less.
"""

import json
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import cli
import machine
from row import Row

OPS = 200  # of a chain: their nodes and tensors fit the processor's caches, as those of a few layers do
ROUNDS = 400
SMALL = 8  # floats: under any store's min_bytes
LARGE = 1024  # floats, 4 KiB: the smallest record
GOALS = {"pack": 0.5, "unpack": 0.3}  # us
CPP_PROGRAM = machine.ROOT / "build/bench/hooks_bench"

# Name of a contender -> of each round, (seconds an op in the forward, in the backward).
Times = dict[str, list[tuple[float, float]]]


def rows(options: list[str]) -> Iterator[Row]:
    """`options`: none are known."""
    if options:
        raise cli.BadInput(f"the part hooks takes no options: {options[0]}")
    yield from _rows("python", _python_times())
    yield from _rows("cpp", _cpp_times())


def _rows(language: str, times: Times) -> Iterator[Row]:
    for suffix, ebbtide in (("", "ebbtide_passed_through"), ("_4KiB", "ebbtide_kept_4KiB")):
        plain = f"no_hooks{suffix}"
        rival = ("identity_hooks" if language == "python" else "save_on_cpu") + suffix
        for phase, word in enumerate(("forward", "backward")):
            yield Row("hooks", f"{language}.{plain}.{word}", statistics.median(round[phase] for round in times[plain]) * 1e6, "us")
        for name in (f"identity_hooks{suffix}", f"save_on_cpu{suffix}", ebbtide):
            for phase, word in enumerate(("pack", "unpack")):
                added = _added(times, name, plain, phase)
                if name != ebbtide:
                    yield Row("hooks", f"{language}.{name}.{word}", added, "us")
                    continue
                yield Row.at_most("hooks", f"{language}.{name}.{word}", added, "us", GOALS[word])
                yield Row.at_most("hooks", f"{language}.{name}.{word}_over_{rival}", _added(times, name, rival, phase), "us", 0)


def _added(times: Times, name: str, to: str, phase: int) -> float:
    """Microseconds an op."""
    return statistics.median(one[phase] - other[phase] for one, other in zip(times[name], times[to], strict=True)) * 1e6


def _python_times() -> Times:
    import ebbtide
    import torch
    from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

    def chain(floats: int, context: Callable) -> tuple[float, float]:
        x = torch.ones(floats, requires_grad=True)
        start = time.thread_time()
        with context():
            y = x
            for _ in range(OPS):
                y = y.sin()
        turned = time.thread_time()
        y.sum().backward()
        return (turned - start) / OPS, (time.thread_time() - turned) / OPS

    def identity_hooks():
        return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)

    store = ebbtide.Store(device_budget="64GiB", min_bytes="4KiB")
    contenders = {
        "no_hooks": (SMALL, nullcontext),
        "identity_hooks": (SMALL, identity_hooks),
        "save_on_cpu": (SMALL, save_on_cpu),
        "ebbtide_passed_through": (SMALL, lambda: store),
        "no_hooks_4KiB": (LARGE, nullcontext),
        "identity_hooks_4KiB": (LARGE, identity_hooks),
        "save_on_cpu_4KiB": (LARGE, save_on_cpu),
        "ebbtide_kept_4KiB": (LARGE, lambda: store),
    }
    torch.set_num_threads(1)
    times: Times = defaultdict(list)
    order = list(contenders.items())
    shuffle = random.Random(0).shuffle
    print("hooks: Python", file=sys.stderr)
    for _ in range(ROUNDS):
        shuffle(order)
        for name, contender in order:
            times[name].append(chain(*contender))
    store.close()
    return times


def _cpp_times() -> Times:
    if not CPP_PROGRAM.exists():
        raise cli.BadInput(f"{CPP_PROGRAM} is missing: `bash setup.sh` builds it")
    print("hooks: C++", file=sys.stderr)
    ran = subprocess.run(
        [
            CPP_PROGRAM,
            "--benchmark_format=json",
            f"--benchmark_repetitions={ROUNDS}",
            "--benchmark_min_time=0.001",  # a chain a round
            "--benchmark_enable_random_interleaving=true",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rounds: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for result in json.loads(ran.stdout)["benchmarks"]:
        if result["run_type"] == "iteration":
            name, phase, *_ = result["name"].split("/")  # "no_hooks/backward:0/manual_time"
            rounds[name, phase][result["repetition_index"]] = 1 / result["items_per_second"]
    return {
        name: [(rounds[name, "backward:0"][n], rounds[name, "backward:1"][n]) for n in range(ROUNDS)] for name in {name for name, _ in rounds}
    }
