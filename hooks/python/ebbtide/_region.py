"""Parts of a model: named for the report, or computed again instead of kept."""

import contextlib
import sys

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _pytree
from torch.utils._device import DeviceContext

from . import _ebbtide
from ._errors import ConfigError
from ._scope import Entered


@torch._disable_dynamo  # as torch's own; `torch.compiler.disable` would import dynamo here, which takes a second
def checkpoint(fn, *args, **kwargs):
    """Returns `fn(*args, **kwargs)`, whose insides need not be kept for the backward.

    Without a store they are computed again there, as with `torch.utils.checkpoint(use_reentrant=False)`: random numbers, autocast and the number of threads are
    those of the first run, and only as far as is needed. Inside a store they stay while the budget has room, or are moved or computed again, as the rule or the plan
    finds; tensors among the arguments, however nested, are saved as any other. Regions nest.
    `torch.compile` around it leaves `fn` as it is: compile the block that runs in it (`block.compile()`).

    Raises:
        CheckpointError: in the backward, where `fn` saves other tensors than the first time.
    """
    leaves, form = _pytree.tree_flatten((args, kwargs))
    tensors, places = [], {}  # each once, and where it is given
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in places:
                tensors.append(leaf)
            places.setdefault(id(leaf), []).append(place)
            leaves[place] = None
    places = list(places.values())
    parts = [_PythonPart(tensor) for tensor in tensors]
    device = next((mode for mode in reversed(_get_current_function_mode_stack()) if isinstance(mode, DeviceContext)), None)

    def again(tensors):
        values = list(leaves)
        for tensor, part, given in zip(tensors, parts, places):
            tensor = part.given_to(tensor)
            for place in given:
                values[place] = tensor
        arguments, keywords = _pytree.tree_unflatten(values, form)
        with device if device is not None else contextlib.nullcontext():
            fn(*arguments, **keywords)

    return _ebbtide.checkpoint(lambda: fn(*args, **kwargs), again, tensors, _several_processes())


class _PythonPart:
    """What Python adds to a tensor: its class and its attributes. The hooks around a region know tensors without either."""

    def __init__(self, tensor):
        self._kind = type(tensor)
        self._attributes = dict(tensor.__dict__)

    def given_to(self, tensor):
        """`tensor`, or another on its memory."""
        if type(tensor) is not self._kind:
            tensor = torch.Tensor._make_subclass(self._kind, tensor, tensor.requires_grad)
        if self._attributes and not tensor.__dict__:  # a wrapper has its parts there, and what was not saved has all that it had
            tensor.__dict__.update(self._attributes)
        return tensor


def _several_processes():
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class region(contextlib.ContextDecorator):
    """`with ebbtide.region("decoder.3"):` names what is saved inside, for the report and the plan.

    Args:
        name: a text.
        policy: what becomes of it, whatever the rule or the plan would do: "keep", "offload" (off the device), "spill" (to disk; for CPU tensors the same), or
            "recompute" (what has a recipe is computed again; for whole blocks there is `checkpoint`). Default: "auto".

    Regions nest, and the innermost counts; it comes before the paths that attached models' submodules go by. One object may be entered again, and by several threads.

    Raises:
        ConfigError: a name or a policy is not valid.
    """

    def __init__(self, name, policy=None):
        self._name, self._policy = name, "auto" if policy is None else policy
        for what, value, accepted in (("name", self._name, "a text"), ("policy", self._policy, "'auto', 'keep', 'offload', 'spill' and 'recompute'")):
            if not isinstance(value, str):
                raise ConfigError(f"{what}={value!r} is not valid: accepted {'is' if what == 'name' else 'are'} {accepted}")
        _ebbtide.check_region(self._name, self._policy)
        self._entered = Entered(f"region {name!r}")

    def __enter__(self):
        self._entered.push(_ebbtide.Region(self._name, self._policy))
        return self

    def __exit__(self, *error):
        self._entered.pop()
