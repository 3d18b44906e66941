"""Reaching what torch's selective checkpointing keeps.

It keeps results of ops beside autograd. Where it is told to (`respect_saved_tensors_hooks=True`, torch 2.14 and newer) it hands them to Python's saved-tensor hooks, which a
store's are none of: where there are no others, it is told of ours.
"""

import sys

from . import _ebbtide

_ASKS = "_current_user_saved_tensors_hooks"


def watch():
    """Called where a scope begins. Does nothing where torch has no such thing, or it is done."""
    checkpoint = sys.modules.get("torch.utils.checkpoint")
    asks = getattr(checkpoint, _ASKS, None)
    if asks is None or getattr(asks, "of_ebbtide", False):
        return

    def current_hooks():
        hooks = asks()
        if hooks is not None or not _ebbtide.in_scope():
            return hooks
        return _ebbtide.pack_here, _ebbtide.HeldTensor.unpack

    current_hooks.of_ebbtide = True
    setattr(checkpoint, _ASKS, current_hooks)
