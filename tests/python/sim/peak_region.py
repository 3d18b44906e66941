"""Regions on pretend accelerators: what they need, beside torch's checkpoint, and what becomes of it under budgets."""

import functools

import pytest
from torch.utils.checkpoint import checkpoint

import ebbtide
import sim
import small_gpt
from peak import Form, plain, stored, trained
from support import assert_same_bits


def of_torch(block, x):
    return checkpoint(block, x, use_reentrant=False)


def blocks(call):
    return Form(functools.partial(small_gpt.GPT, call=call))


@pytest.mark.parametrize("seed", range(2))
def test_alone_it_needs_no_more_than_torchs(seed):
    with sim.accelerators(seed=seed, pace=sim.Pace.eager) as machine:
        reference = trained(Form(small_gpt.GPT))
        without = machine.peak()
    with sim.accelerators(seed=seed, pace=sim.Pace.eager) as machine:
        assert_same_bits(trained(blocks(of_torch)), reference)
        torchs = machine.peak()
    with sim.accelerators(seed=seed, pace=sim.Pace.eager) as machine:
        assert_same_bits(trained(blocks(ebbtide.checkpoint)), reference)
        ours = machine.peak()
    assert ours <= torchs < without


def test_under_a_store_inputs_leave_and_insides_run_again():
    eager = plain(Form(small_gpt.GPT))
    torchs = plain(blocks(of_torch))
    for budget in (0, "256KiB"):
        with sim.accelerators() as machine:
            store = sim.store(device_budget=budget, min_bytes=4096, host_budget="64MiB")
            assert_same_bits(trained(blocks(ebbtide.checkpoint), lambda model: sim.under(store, model)), eager.results)
            stats, peak = store.stats(), machine.peak()
            store.close()
            del store
        assert stats["recomputed"]["tensors"] > 0
        assert peak < eager.peak
        if budget == 0:
            assert stats["offloaded"]["tensors"] > 0
            assert peak <= torchs.peak + torchs.largest


@pytest.mark.parametrize("seed", range(2))
def test_every_schedule_gives_the_same_bits(seed):
    form = blocks(ebbtide.checkpoint)
    with sim.accelerators():
        reference = trained(Form(small_gpt.GPT))
    for pace in (sim.Pace.lazy, sim.Pace.random):
        with sim.accelerators(seed=seed, pace=pace):
            store = sim.store(device_budget=0, min_bytes=4096, host_budget="64MiB")
            assert_same_bits(trained(form, lambda model: sim.under(store, model)), reference)
            store.close()
            del store
