"""Ebbtide: an activation store for training. What autograd saves leaves memory while the forward runs and is back while the backward runs; bitwise the same
gradients, within the budgets you give."""

from ._check_torch import check_torch

check_torch()

from ._errors import ClosedError, ConfigError, CorruptTensor, Error, OutOfBudget, SpillError  # noqa: E402
from ._store import Store, enable  # noqa: E402

__all__ = ["ClosedError", "ConfigError", "CorruptTensor", "Error", "OutOfBudget", "SpillError", "Store", "enable"]
