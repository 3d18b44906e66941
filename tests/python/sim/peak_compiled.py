"""A compiled graph is one node of the backward: it has at once all that it saved. Per block that is little; of a whole model it is what no budget bounds."""

import pytest
import torch

import small_gpt
from peak import Form, plain, runs_out_of_memory, stored


def per_block(model):
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return model


BY_BLOCK = Form(small_gpt.GPT, per_block)
WHOLE = Form(small_gpt.GPT, lambda model: torch.compile(model, backend="aot_eager"))


@pytest.fixture(scope="module")
def by_block():
    return plain(BY_BLOCK)


def test_compiled_by_block_the_peak_is_what_the_budget_makes_it(by_block):
    for seed, share in enumerate((0.1, 0.5)):
        run = stored(BY_BLOCK, by_block, int(share * by_block.saved), seed=seed)
        assert run.stats["offloaded"]["tensors"] > 0
        assert run.stats["handed_over_peak"] < by_block.saved / small_gpt.BLOCKS * 1.5  # of one block
        assert "one compiled graph" not in run.report


def test_compiled_by_block_it_trains_where_plain_runs_out_of_memory(by_block):
    budget = by_block.saved // 10
    room = stored(BY_BLOCK, by_block, budget).bound
    assert room < by_block.peak
    assert runs_out_of_memory(BY_BLOCK, room)
    assert stored(BY_BLOCK, by_block, budget, seed=3, capacity=room).peak <= room


def test_compiled_whole_the_report_names_the_graph_and_the_cure(by_block):
    run = stored(WHOLE, plain(WHOLE), by_block.saved // 10)
    assert run.stats["handed_over_peak"] > by_block.saved / 2
    assert "one compiled graph of " in run.report
    assert "for block in model.blocks: block.compile()" in run.report
