"""Eager models whose peak is what their budget makes it, and which train where they do not fit without a store."""

import functools

import pytest
import torch

import sim
import small_gpt
from peak import Form, plain, runs_out_of_memory, stored

FORMS = {
    "eager": Form(small_gpt.GPT),
    "autocast": Form(small_gpt.GPT, forward=lambda: torch.autocast(sim.DEVICE, dtype=torch.bfloat16)),
    "lora": Form(lambda: small_gpt.with_adapters(small_gpt.GPT())),
    "moe": Form(lambda: small_gpt.GPT(inner=small_gpt.Experts)),
}


@functools.cache
def plain_run(name):
    return plain(FORMS[name])


@pytest.mark.parametrize("name", FORMS)
def test_peak_is_what_the_budget_makes_it(name):
    form, without = FORMS[name], plain_run(name)
    assert without.saved > without.peak / 4  # else there is little to learn here
    for seed, share in enumerate((0, 0.1, 0.5)):
        run = stored(form, without, int(share * without.saved), seed=seed)
        assert run.stats["offloaded"]["tensors"] > 0
        assert run.stats["handed_over_peak"] <= 4 * without.largest  # a node's few tensors
        assert "one compiled graph" not in run.report


@pytest.mark.parametrize("name", FORMS)
def test_trains_where_plain_runs_out_of_memory(name):
    form, without = FORMS[name], plain_run(name)
    budget = without.saved // 10
    room = stored(form, without, budget).bound
    assert room < without.peak
    assert runs_out_of_memory(form, room)
    assert stored(form, without, budget, seed=3, capacity=room).peak <= room
