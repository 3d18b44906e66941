"""Ebbtide: an activation store for training. What autograd saves leaves memory while the forward runs and is back while the backward runs; bitwise the same
gradients, within the budgets you give."""

import atexit

from ._check_torch import check_torch

check_torch()

from ._doctor import doctor  # noqa: E402
from ._errors import CheckpointError, ClosedError, ConfigError, CorruptTensor, DeviceError, Error, OutOfBudget, SpillError  # noqa: E402
from ._region import checkpoint, region  # noqa: E402
from ._store import Store, enable  # noqa: E402
from ._wrappers import take_apart  # noqa: E402
from . import _ebbtide  # noqa: E402

# A write that ends on its own thread while the interpreter ends must not run what a storage's owner in Python left to do.
atexit.register(_ebbtide.leak_storages)
_ebbtide.take_apart_by(take_apart)

__all__ = ["CheckpointError", "ClosedError", "ConfigError", "CorruptTensor", "DeviceError", "Error", "OutOfBudget", "SpillError", "Store", "checkpoint", "doctor", "enable", "region"]
