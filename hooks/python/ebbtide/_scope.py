"""Where a forward's scope begins."""

from . import _ebbtide, _selective_checkpoint


def enter_scope(store, plans):
    """A scope of `store`, of the C++ module, on this thread. `plans`: SharedPlans; None where they are not shared."""
    if plans is not None:
        plans.exchange()
    _selective_checkpoint.watch()
    return _ebbtide.Scope(store)
