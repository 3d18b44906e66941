"""Where a forward's scope begins."""

import threading

from . import _ebbtide, _selective_checkpoint


def enter_scope(store, plans):
    """A scope of `store`, of the C++ module, on this thread. `plans`: SharedPlans; None where they are not shared."""
    if plans is not None:
        plans.exchange()
    _selective_checkpoint.watch()
    return _ebbtide.Scope(store)


class Entered:
    """What each thread has entered and not left, of one context manager that may be entered again and by several threads."""

    def __init__(self, what):
        self._what = what
        self._of_thread = threading.local()

    def push(self, entered):
        self._of_thread.__dict__.setdefault("entered", []).append(entered)

    def pop(self):
        """The innermost. Errors: RuntimeError where there is none: a generator that entered it may be closed by another thread."""
        entered = self._of_thread.__dict__.get("entered")
        if not entered:
            raise RuntimeError(f"ebbtide: {self._what} is left on a thread that has not entered it; the thread that has stays inside")
        return entered.pop()
