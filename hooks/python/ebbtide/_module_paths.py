"""Naming what submodules save by their paths, while a call of an attached model runs.

The hooks are torch's global ones, so that no submodule is edited; they are there during such calls alone, so that other models pay nothing and are compiled as ever.
"""

import sys
import threading
import warnings
import weakref

import torch
from torch.nn.modules import module as _torch_modules

from . import _ebbtide

# The same each time, in dicts that torch keeps by number: what dynamo compiled under hooks of other numbers it would compile again.
_KEY = -0xEBB71DE
_lock = threading.Lock()
_calls = 0  # of attached models, under way on any thread; guarded by _lock


class _Naming(threading.local):
    """The paths of the models whose calls this thread is in, the outermost first. None where there are none."""

    models = None


_naming = _Naming()


class ModulePaths:
    """The paths of one model's submodules; it holds none of them."""

    def __init__(self, model):
        self._model = weakref.ref(model)
        self._paths = {}  # id -> (weak reference, path or None)
        self._learn()
        _expect_compiled_submodules(model)

    def of(self, module):
        """Its `_ebbtide.ModulePath`; None for the model itself and for what is none of its submodules."""
        known = self._paths.get(id(module))
        if known is None:
            self._learn()  # it came after attach(), or is of another model
            if id(module) not in self._paths:
                self._note(module, None)
            known = self._paths[id(module)]
        return known[1]

    def _learn(self):
        model = self._model()
        for name, module in model.named_modules() if model is not None else ():
            if id(module) not in self._paths:
                path = ".".join(part for part in name.split(".") if part != "_orig_mod")
                self._note(module, _ebbtide.ModulePath(path) if path else None)

    def _note(self, module, path):
        number, paths = id(module), self._paths
        paths[number] = (weakref.ref(module, lambda _: paths.pop(number, None)), path)  # forgotten before another can have its id

    def enter(self):
        """A call of the model begins on this thread. Returns what `leave` takes."""
        global _calls
        with _lock:
            _calls += 1
            if _calls == 1:
                _torch_modules._global_forward_pre_hooks[_KEY] = _before
                _torch_modules._global_forward_hooks[_KEY] = _after
                _torch_modules._global_forward_hooks_always_called[_KEY] = True
        _naming.models = [*(_naming.models or ()), self]
        return _ebbtide.ModulePath.depth()

    def leave(self, depth):
        """The call is over, however it ended."""
        global _calls
        _ebbtide.ModulePath.leave_to(depth)
        models = _naming.models
        last = len(models) - 1 - models[::-1].index(self)
        _naming.models = models[:last] + models[last + 1 :] or None
        with _lock:
            _calls -= 1
            if _calls == 0:
                for hooks in (_torch_modules._global_forward_pre_hooks, _torch_modules._global_forward_hooks, _torch_modules._global_forward_hooks_always_called):
                    hooks.pop(_KEY, None)


def _path_of(module):
    for paths in _naming.models:
        path = paths.of(module)
        if path is not None:
            return path
    return None


def _before(module, arguments):
    # Dynamo traces hooks into its graph: there is nothing of this one in it.
    if torch.compiler.is_compiling() or _naming.models is None:
        return
    path = _path_of(module)
    if path is not None:
        path.enter()


def _after(module, arguments, result):
    if torch.compiler.is_compiling() or _naming.models is None:
        return
    path = _path_of(module)
    if path is not None:
        path.leave()


def _expect_compiled_submodules(model):
    """torch warns of global hooks where what `torch.compile(module)` returned is called, for they see two modules. Ours give both one name."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # where nothing was compiled yet, it is not loaded
    if dynamo is None or not any(isinstance(module, dynamo.OptimizedModule) for module in model.modules()):
        return
    if not _torch_modules._has_any_global_hook():
        warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
