"""Running a model's forwards inside a store."""

import sys
import threading
import weakref

import torch

from . import _parameters
from ._module_paths import ModulePaths
from ._scope import enter_scope
from ._wrappers import take_apart

_CALL = torch.nn.Module._call_impl.__code__


class _NoHook:
    """What a module hook is once it is copied or pickled: the copy of an attached model is not attached."""

    def __call__(self, module, *rest):
        pass

    @property
    def __name__(self):
        # TorchScript, which compiles hooks with their module, asks for it first.
        raise AttributeError("ebbtide: TorchScript cannot compile the hooks of an attached model, nor of its copies: `remove()` what `attach` returned before the model is scripted or copied")


class _Hook(_NoHook):
    def __init__(self, call, model):
        self._call = call
        self._model = weakref.ref(model)

    @torch._disable_dynamo  # it would trace what is called here, and fails
    def __call__(self, module, *rest):
        if module is self._model():
            self._call(module)

    def __deepcopy__(self, memo):
        return _NoHook()

    def __copy__(self):
        return _NoHook()

    def __reduce__(self):
        return (_NoHook, ())


def _calls_under_way(model):
    """How many calls of the model this thread is in."""
    count, frame = 0, sys._getframe()
    while frame is not None:
        count += frame.f_code is _CALL and frame.f_locals.get("self") is model
        frame = frame.f_back
    return count


def _before_load(model):
    _parameters.before_change(list(model.parameters()))


def _attach_tensor(store, tensor):
    store.attach_tensor(tensor)
    parts = take_apart(tensor)
    for inner in parts[0] if parts is not None else ():
        _attach_tensor(store, inner)


class _Call:
    """One that runs inside a store, and what its submodules save is named."""

    def __init__(self, store, plans, paths):
        self._scope = enter_scope(store, plans)
        self._paths = paths
        self._depth = paths.enter()

    def leave(self):
        self._paths.leave(self._depth)
        self._scope.leave()


class Attachment:
    """A model whose forwards run inside a store. `remove()` it, or use it as a context manager; dropping it changes nothing."""

    def __init__(self, store, model):
        self._store = store._store
        self._modules = [weakref.ref(module) for module in model.modules()]
        self._norms = [(weakref.ref(module), None) for module in model.modules() if type(module) is torch.nn.LayerNorm and module.weight is not None]
        self._tell_tensors()
        self._tell_norms()
        _parameters.watch(store._store)
        self._plans = store._plans
        self._paths = ModulePaths(model)
        self._entered = threading.local()
        self._handles = (
            model.register_forward_pre_hook(_Hook(self._enter, model), prepend=True),
            model.register_forward_hook(_Hook(self._leave, model), always_call=True),
            model.register_load_state_dict_pre_hook(_Hook(_before_load, model)),
        )

    def remove(self):
        """Ends it. Idempotent; what was saved is not touched."""
        for handle in self._handles:
            handle.remove()
        while self._calls():
            self._calls().pop().leave()

    def _calls(self):
        return self._entered.__dict__.setdefault("calls", [])

    def _tell_tensors(self):
        """Each time: `.to(device)`, `.half()` and `load_state_dict(assign=True)` put other memory in their place. Plain loops, for `model.parameters()` takes ten times as long."""
        tensors = []
        for reference in self._modules:
            if (module := reference()) is not None:
                tensors += module._parameters.values()
                tensors += module._buffers.values()
        new = self._store.not_attached([tensor for tensor in tensors if tensor is not None])
        for tensor in new:
            _attach_tensor(self._store, tensor)
        if new:  # weights of norms may be among them
            self._norms = [(norm, None) for norm, _ in self._norms]

    def _tell_norms(self):
        """torch keeps the eps of an op that has run nowhere, and what a layer norm made may be made again."""
        for place, (norm, told) in enumerate(self._norms):
            if (module := norm()) is not None and module.weight is not None and module.eps != told:
                self._store.attach_layer_norm(module.weight, module.eps)
                self._norms[place] = (norm, module.eps)

    def _enter(self, model):
        if self._store.closed() and not torch.is_grad_enabled():
            return  # an evaluation after the training
        calls = self._calls()
        # torch calls no hook for a KeyboardInterrupt: a forward that it broke off has left its scope behind.
        while calls and len(calls) >= _calls_under_way(model):
            calls.pop().leave()
        self._tell_tensors()
        self._tell_norms()
        calls.append(_Call(self._store, self._plans, self._paths))

    def _leave(self, model):
        # Called too when a hook before ours threw, so that ours never entered.
        calls = self._calls()
        if calls and len(calls) >= _calls_under_way(model):
            calls.pop().leave()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.remove()
