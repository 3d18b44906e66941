"""Steps that repeat follow a plan made of the first ones. What is planned, and what changes under way, changes no bit."""

import copy
import json

import pytest
import torch

import ebbtide
from support import MIN_BYTES, MODELS, assert_same_bits, build, saved_bytes, train


def planned_store(model, x, budget, tmp_path, **options):
    bytes_ = int(budget * saved_bytes(copy.deepcopy(model), x))
    return ebbtide.Store(device_budget=bytes_, spill_to=tmp_path, min_bytes=MIN_BYTES, **options)


@pytest.mark.parametrize("budget", [0, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("name", MODELS)
def test_planned_steps_are_bitwise_those_of_plain(name, budget, tmp_path):
    model, x = build(name)
    reference = train(copy.deepcopy(model), x, steps=7)
    store = planned_store(model, x, budget, tmp_path, verify=True)
    assert_same_bits(train(copy.deepcopy(model), x, lambda: store, steps=7), reference)

    stats, last, plan = store.stats(), store.last_pass(), store.plan()
    assert stats["plans"] >= 2  # one of the second pass, one of the medians of three
    assert 0 < stats["lower_bound_step_s"] <= stats["predicted_step_s"]
    assert stats["measured_step_s"] > 0
    assert len(plan) == last["saved_tensors"]
    assert sum(record["bytes"] for record in plan) == last["saved_bytes"]
    assert {record["action"] for record in plan} <= {"keep", "offload", "spill", "recompute"}
    assert all(record["why"] and record["device"] for record in plan)
    assert "predicted to take" in store.report()


def test_what_fits_is_not_planned_for(tmp_path):
    model, x = build("mlp")
    store = planned_store(model, x, 2, tmp_path)
    train(copy.deepcopy(model), x, lambda: store, steps=5)
    assert store.stats()["plans"] == 0
    assert store.plan() == []
    assert "predicted" not in store.report()


def test_shapes_that_alternate_and_a_pass_without_backward(tmp_path):
    model, x = build("transformer")
    other = torch.randn(4, 48, 64)
    store = planned_store(model, x, 0.1, tmp_path)
    plain, stored = copy.deepcopy(model), copy.deepcopy(model)
    for step in range(12):
        batch = x if step % 2 == 0 else other
        torch.manual_seed(step)
        expected = plain(batch).pow(2).mean()
        torch.manual_seed(step)
        with store:
            loss = stored(batch).pow(2).mean()
        if step == 7:
            del loss  # a pass that is dropped
            with torch.no_grad(), store:
                stored(x)
            continue
        for m, l in ((plain, expected), (stored, loss)):
            m.zero_grad()
            l.backward()
        assert_same_bits([p.grad for p in stored.parameters()], [p.grad for p in plain.parameters()])
    assert store.stats()["plans"] >= 4
    assert len(store.plan()) == store.last_pass()["saved_tensors"]


def test_a_shape_that_is_new_in_every_step(tmp_path):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64), torch.nn.LayerNorm(64))
    store = ebbtide.Store(device_budget="64KiB", spill_to=tmp_path, min_bytes=MIN_BYTES)
    stored = copy.deepcopy(model)
    for rows in (64, 150, 333, 90, 512, 77, 260, 401, 64, 1000, 64, 65):
        x = torch.randn(rows, 64)
        model.zero_grad()
        stored.zero_grad()
        model(x).sum().backward()
        with store:
            loss = stored(x).sum()
        loss.backward()
        assert_same_bits([p.grad for p in stored.parameters()], [p.grad for p in model.parameters()])
    assert store.stats()["device"]["bytes"] == 0


def test_a_budget_that_holds_two_micro_batches(tmp_path):
    model, x = build("mlp")
    store = planned_store(model, x, 0.5, tmp_path)
    plain, stored = copy.deepcopy(model), copy.deepcopy(model)
    for _ in range(6):
        for m, context in ((plain, None), (stored, store)):
            m.zero_grad()
            losses = []
            for half in (x[:32], x[32:]):
                if context is None:
                    losses.append(m(half).sum())
                else:
                    with context:
                        losses.append(m(half).sum())
            for loss in losses:
                loss.backward()
        assert_same_bits([p.grad for p in stored.parameters()], [p.grad for p in plain.parameters()])


def test_a_profile_is_saved(tmp_path):
    model, x = build("mlp")
    store = planned_store(model, x, 0.2, tmp_path)
    with pytest.raises(ebbtide.ConfigError, match="no pass of this store has had a backward"):
        store.save_profile(tmp_path / "early.json")
    train(copy.deepcopy(model), x, lambda: store, steps=5)
    store.save_profile(tmp_path / "profile.json")
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert len(profile["records"]) == store.last_pass()["saved_tensors"]
    assert any(record["op"] for record in profile["records"])
    with pytest.raises(ebbtide.ConfigError, match="No such file or directory"):
        store.save_profile(tmp_path / "no" / "such" / "folder.json")
