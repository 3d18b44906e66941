"""Telling stores before parameters change, so that what they would make again from them is made while they are what they were."""

import threading

from torch.optim.optimizer import register_optimizer_step_pre_hook

from . import _ebbtide

_lock = threading.Lock()
_watches = []  # one a store that a model was attached to
_hook = None


def watch(store):
    """`store`, of the C++ module, is told of every step of an optimizer from now on, for as long as its records live."""
    global _hook
    with _lock:
        _watches[:] = [known for known in _watches if known.store_lives()]
        if not any(known.watches(store) for known in _watches):
            _watches.append(_ebbtide.ParameterWatch(store))
        if _hook is None:
            _hook = register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer, args, kwargs):
    before_change([parameter for group in optimizer.param_groups for parameter in group["params"]], by_optimizer=True)


def before_change(parameters, by_optimizer=False):
    """`parameters` are about to be written to."""
    for known in tuple(_watches):
        known.before_change(parameters, by_optimizer)
