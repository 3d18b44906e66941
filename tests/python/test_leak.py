"""Ten thousand passes end with the memory that a thousand have.

Those that go to disk take longer, and are run in C++ alone (tests/hooks/leak_test.cpp).
"""

import os

import pytest
import torch
from torch.nn import functional as F

import ebbtide
from support import MIN_BYTES

WARM, ALL = 1000, 10000
SLACK = 2 << 20  # of resident memory: a leak of a page in 18 passes shows


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def forward(x, weight):
    h = x * 2
    return (F.layer_norm(h, (64,), weight) * h.sin()).sum()


def one_pass(store, x, weight, backward):
    with store:
        loss = forward(x, weight)
    if backward:
        loss.backward()
        x.grad = weight.grad = None


@pytest.mark.parametrize("how", ["kept", "dropped", "recomputed"])
def test_memory_is_flat(how):
    options = {
        "kept": {"device_budget": "1GiB"},
        "dropped": {"device_budget": "1GiB"},
        "recomputed": {"device_budget": 0, "on_full": "keep"},
    }[how]
    store = ebbtide.Store(min_bytes=MIN_BYTES, **options)
    store._store.follow_plans(False)  # a plan may find other ways cheaper
    torch.manual_seed(0)
    x, weight = torch.randn(64, 64, requires_grad=True), torch.randn(64, requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before = 0
        for number in range(1, ALL + 1):
            one_pass(store, x, weight, backward=how != "dropped")
            if number == WARM:
                before = resident_bytes()
        grown = resident_bytes() - before
    finally:
        torch.set_num_threads(threads)
    stats = store.stats()
    assert grown <= SLACK
    assert stats["passes"] == ALL
    assert stats["device"]["bytes"] == 0
    assert stats["handed_over"] == 0
    assert stats["recipe_bytes"] == 0
    became = {name: stats[name]["tensors"] for name in ("kept", "offloaded", "spilled", "recomputed")}
    assert sum(became.values()) == stats["saved"]["tensors"]
    assert became[{"dropped": "kept"}.get(how, how)] >= ALL
    store.close()
