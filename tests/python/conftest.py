"""A store from which everything leaves, which must be empty once its test is over."""

import gc
import sys
from pathlib import Path

import pytest
import torch

from support import MIN_BYTES

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import vector_functions

vector_functions.settle()


@pytest.fixture
def one_thread():
    """On a machine that is busy elsewhere, the threads of a small op wait for each other a thousand times as long as it takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path, one_thread):
    import ebbtide

    store = ebbtide.Store(device_budget=0, spill_to=tmp_path, min_bytes=MIN_BYTES)
    yield store
    gc.collect()
    stats = store.stats()
    assert stats["device"]["bytes"] == 0, "a record outlived its graph"
    assert stats["handed_over"] == 0, "a tensor outlived its node"
    store.close()  # a write that had begun frees its extent when it ends
    assert store.stats()["spill"]["bytes"] == 0, "an extent outlived its record"
