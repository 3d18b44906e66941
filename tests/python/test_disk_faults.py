"""A disk that loses bytes, returns others or fills up: an error that says so, or training as if nothing were, and never a wrong gradient."""

import contextlib
import os
import re
import resource
import time

import pytest

import ebbtide
from support import MIN_BYTES, assert_same_bits, build, chain, leaf


@pytest.fixture
def store(tmp_path, one_thread):
    return ebbtide.Store(device_budget=0, spill_to=tmp_path, spill_budget="64MiB", min_bytes=MIN_BYTES, recompute=False, on_full="keep")


@contextlib.contextmanager
def spill_file(folder):
    """Its descriptor, opened once more: as another program or a broken disk comes to the bytes."""
    (path,) = (path for fd in os.listdir("/proc/self/fd") if os.path.exists(path := f"/proc/self/fd/{fd}") and os.readlink(path).startswith(f"{folder}/"))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def test_wrong_bytes_are_an_error_and_no_gradient(store, tmp_path):
    x = leaf()
    with store:
        y = chain(x)
    with spill_file(tmp_path) as fd:
        rest = os.pread(fd, store.stats()["spill"]["peak_bytes"], 0)
        os.pwrite(fd, bytes(byte ^ 1 if at % 4096 == 1234 else byte for at, byte in enumerate(rest)), 0)
        os.fsync(fd)
    with pytest.raises(ebbtide.CorruptTensor, match=re.escape(str(tmp_path))):
        y.backward()
    assert x.grad is None


def test_lost_bytes_are_an_error_that_names_folder_offset_and_errno(store, tmp_path):
    x = leaf()
    with store:
        y = chain(x)
    with spill_file(tmp_path) as fd:
        os.ftruncate(fd, 0)
    with pytest.raises(ebbtide.SpillError, match=rf"offset \d+ of the spill file in {re.escape(str(tmp_path))} failed: .* \(5\)"):
        y.backward()
    assert x.grad is None


@contextlib.contextmanager
def files_limited_to(size):
    """Writes beyond it fail with EFBIG, which is as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_in_the_forward_changes_no_bit_and_is_used_again(store, caplog):
    model, x = build("mlp")

    def train(scope, in_the_middle=contextlib.nullcontext):
        model.zero_grad()
        with scope, contextlib.ExitStack() as later:
            y = model[:3](x)
            later.enter_context(in_the_middle())
            y = model[3:](y).pow(2).mean()
        y.backward()
        return [y.detach().clone(), *(parameter.grad.clone() for parameter in model.parameters())]

    reference = train(contextlib.nullcontext())
    assert_same_bits(train(store, lambda: files_limited_to(4096)), reference)
    full = store.stats()
    assert full["kept"]["tensors"] > 0 and "stays in memory" in caplog.text
    deadline = time.monotonic() + 10
    while store.stats()["spilled"]["tensors"] == full["spilled"]["tensors"]:
        assert time.monotonic() < deadline, "the disk is not used again"
        assert_same_bits(train(store), reference)
