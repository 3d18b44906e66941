"""Taking tensors of wrapper classes (DTensor) apart, so that what they hold can leave."""

import sys

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def take_apart(tensor):
    """What `tensor` holds, and a function that makes it again over tensors in their place. None: it is no wrapper, or stays whole.

    What says itself how it is taken apart (`__tensor_flatten__`) is; but not nested tensors, which know their lengths by the very tensor that holds them, and not the
    result of a collective that may still be under way.
    """
    if not is_traceable_wrapper_subclass(tensor) or tensor.is_nested:
        return None
    collectives = sys.modules.get("torch.distributed._functional_collectives")
    if collectives is not None and isinstance(tensor, collectives.AsyncCollectiveTensor):
        return None
    names, context = tensor.__tensor_flatten__()
    held = {name: getattr(tensor, name) for name in names}
    inner = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
    others = {name: value for name, value in held.items() if name not in inner}  # such as a DTensor's mesh
    places, kind, size, stride = list(inner), type(tensor), tensor.size(), tensor.stride()
    return list(inner.values()), lambda over: kind.__tensor_unflatten__({**others, **dict(zip(places, over))}, context, size, stride)
