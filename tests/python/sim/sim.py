"""Pretend accelerators in Python: "sim:0" and "sim:1", torch devices whose streams run late, whose memory has a cap, and whose races are seen.

Import it before the first backward of the process: torch's engine counts the devices once. So the tests that use it run in a process of their own, see test_sim.py.
"""

import contextlib
import gc
import importlib.util
import os
import sys
import time
import types
from pathlib import Path

import torch

import ebbtide  # its library before the one that leans on it

DEVICE = "sim"


def _load():
    build = Path(os.environ.get("EBBTIDE_BUILD_DIR", Path(__file__).parents[3] / "build"))
    found = list(build.glob("tests/python/_ebbtide_sim.*.so"))
    assert len(found) == 1, f"{build} has no pretend accelerators for Python: run `bash setup.sh`, or set EBBTIDE_BUILD_DIR"
    spec = importlib.util.spec_from_file_location("_ebbtide_sim", found[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_sim = _load()
Pace, set_apart = _sim.Pace, _sim.set_apart


def _index(device):
    if device is None:
        return -1
    return device if isinstance(device, int) else -1 if (index := torch.device(device).index) is None else index


class _DeviceModule(types.ModuleType):
    """What torch looks for in `torch.sim`. Random numbers are the CPU's, so that models see the same ones there."""

    current_device = staticmethod(_sim.current_device)

    class device(contextlib.AbstractContextManager):
        def __init__(self, device):
            self.index = _index(device)

        def __enter__(self):
            self.before = _sim.exchange_device(self.index)

        def __exit__(self, *_):
            _sim.exchange_device(self.before)

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def is_initialized():
        return True

    @staticmethod
    def device_count():
        return _sim.DEVICES

    @staticmethod
    def set_device(device):
        _sim.exchange_device(_index(device))

    @staticmethod
    def _is_in_bad_fork():
        return False

    @staticmethod
    def manual_seed_all(seed):
        pass

    @staticmethod
    def get_rng_state(device=None):
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state, device=None):
        torch.set_rng_state(state)

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16, torch.float16]


torch.utils.rename_privateuse1_backend(DEVICE)
torch._register_device_module(DEVICE, _DeviceModule("torch.sim"))
sys.modules["torch.sim"] = torch.sim


@contextlib.contextmanager
def accelerators(**options):
    """One life of the devices (seed, pace, capacity). At its end nothing may be left on them, and nothing may have gone wrong.

    REQUIRES: tensors made inside are gone at its end, and so are stores.
    """
    life = _sim.Life(**options)
    try:
        yield life
        gc.collect()
        assert life.complaints() == []
        deadline = time.monotonic() + 10
        while left := sum(life.allocated(i) for i in range(_sim.DEVICES)):  # copies of a store that has died end by themselves
            assert time.monotonic() < deadline, f"{left} bytes outlived the test"
            life.run_all()
    finally:
        life.end()


@contextlib.contextmanager
def under(store, model):
    """The forward of `model` under the store, which knows the model's parameters and leaves its calls alone."""
    for tensor in (*model.parameters(), *model.buffers()):
        store._store.attach_tensor(tensor)
    with store:
        yield


def store(**options):
    """A store that serves the tensors of these devices."""
    opened = ebbtide.Store(**options)
    _sim.serve(opened._store)
    return opened
