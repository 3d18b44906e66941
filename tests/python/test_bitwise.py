"""The promise: whatever the budget and the tier, the gradients are those of a run without the store, to the last bit."""

import contextlib
import copy

import pytest
import torch

import ebbtide
from support import MIN_BYTES, MODELS, assert_same_bits, build, saved_bytes, train


BUDGETS = {"0": 0, "10%": 0.1, "50%": 0.5, "unlimited": None}
# Where nothing leaves there is nothing to verify.
CASES = [(budget, tier, False) for budget in BUDGETS for tier in ("host", "nvme")]
CASES += [(budget, "nvme", True) for budget in BUDGETS if BUDGETS[budget] is not None]


@pytest.mark.parametrize(("budget", "tier", "verify"), CASES, ids=[f"{b}-{t}{'-verify' * v}" for b, t, v in CASES])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_bitwise_those_of_plain(name, budget, tier, verify, tmp_path):
    budget = BUDGETS[budget]
    model, x = build(name)
    reference = train(copy.deepcopy(model), x)
    again = train(copy.deepcopy(model), x)
    assert_same_bits(again, reference)  # else "the same as plain" would mean nothing

    options = {"min_bytes": MIN_BYTES, "verify": verify}
    if budget is not None:
        options["device_budget"] = int(budget * saved_bytes(copy.deepcopy(model), x))
    if tier == "nvme":
        options["spill_to"] = tmp_path
    else:
        options["on_full"] = "keep"
    store = ebbtide.Store(**options)
    assert_same_bits(train(copy.deepcopy(model), x, lambda: store), reference)

    stats = store.stats()
    assert stats["passes"] == 2
    assert stats["packed"]["tensors"] == sum(stats[key]["tensors"] for key in ("passed_through", "deduplicated", "saved"))
    assert stats["saved"]["tensors"] == sum(stats[key]["tensors"] for key in ("kept", "offloaded", "spilled", "recomputed"))
    assert stats["handed_over"] == 0 and stats["device"]["bytes"] == 0
    store.close()  # a write that had begun frees its extent when it ends
    assert store.stats()["spill"]["bytes"] == 0
    if tier == "nvme" and budget is not None:
        assert stats["spilled"]["tensors"] + stats["recomputed"]["tensors"] > 0
        if budget == 0:
            assert stats["disk_read"]["bytes"] > 0
    else:
        assert stats["spilled"]["tensors"] == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_thread_count(threads, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, x = build("transformer")
        reference = train(copy.deepcopy(model), x)
        store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
        assert_same_bits(train(copy.deepcopy(model), x, lambda: store), reference)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)).to(dtype)
    x = torch.randn(64, 64).to(dtype)
    reference = train(copy.deepcopy(model), x)
    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    assert_same_bits(train(copy.deepcopy(model), x, lambda: store), reference)


def test_autocast(tmp_path):
    model, x = build("transformer")

    def context(store):
        stack = contextlib.ExitStack()
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        if store is not None:
            stack.enter_context(store)
        return stack

    reference = train(copy.deepcopy(model), x, lambda: context(None))
    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    assert_same_bits(train(copy.deepcopy(model), x, lambda: context(store)), reference)
    assert store.stats()["spilled"]["tensors"] > 0
