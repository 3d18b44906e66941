"""The store, as Python programs use it."""

import contextlib
import os

import torch

from . import _ebbtide
from ._attach import Attachment
from ._errors import ConfigError
from ._scope import Entered, enter_scope


def _option_text(name, value):
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _folders(value):
    folders = [value] if isinstance(value, (str, os.PathLike)) else value
    return [os.fspath(folder) for folder in folders if folder != ""]


class Store:
    """Keeps what autograd saves within budgets: over `device_budget` it goes to disk, and it is back when the backward asks.

    A context manager around the forward, reusable and re-entrant; the backward may run inside or after. Several threads may use one store, each with its own
    `with`. What is not given as a keyword comes from the environment (`EBBTIDE_DEVICE_BUDGET` and so on).

    As with any hooks of torch's, what requires a gradient comes back in a custom function's `ctx.saved_tensors` without its Python class and attributes.

    Args:
        device_budget: bytes of saved tensors that may stay where they were computed: an int, a text such as "2GiB", or "30%" of what the model saves. Default:
            what memory and cgroup allow, less 1/16.
        device_memory: instead of `device_budget`, the peak that the process may have on each device (without an accelerator: of resident memory), from which
            the budget is derived. The peaks that torch counts are restarted in passes that are measured.
        host_budget: bytes of pooled memory that tensors come back into. Default: 5/4 of `device_budget`, from 64 MiB to 1 GiB.
        on_full: "keep" or "raise" (default where a budget is given) when nothing has room.
        spill_to: a folder on a disk, or several, striped over.
        spill_budget: bytes on disk. Default: 90% of the free space.
        spill_reserve: bytes left free for others on each spill folder's file system. Default: 1/32 of it, 1 GiB at most.
        spill_daily_writes: bytes written to spill folders in any 24 hours at most, since disks wear out. Default: no limit.
        spill_endurance: bytes that their disks are rated to take ("600TB"), for `stats` and `report`. Default: what NVMe drives say is left, where they may be asked.
        min_bytes: smaller tensors stay. Default: 64 KiB. Under 4 KiB, the unit of the spill tier, nothing is gained.
        recompute: what an op made that is cheap to run again (activation functions, norms, casts, pointwise products) is computed again where the budget
            needs its memory (default True).
        verify: compare each returned tensor with a fingerprint taken when it left.
        checksum: checksums on the spill tier (default True).
        numa: the NUMA node that host memory is taken from and that the store's threads keep to; "auto" (default): the nearest to each device; "off": nothing
            is bound.
        plan: a file that `save_plan` wrote: its plans are followed from the first step on, and no others are made. Budgets are held whatever it says.
        process_group: of torch.distributed. Its processes go by one plan, that of rank 0, each within its own budgets; passes that are none of rank 0's (of another
            stage of a pipeline) have plans of their own. No process waits for another for it.

    Raises:
        ConfigError: an option is unknown or its value wrong.
    """

    def __init__(self, **options):
        group = options.pop("process_group", None)
        if group is not None and not hasattr(group, "get_group_store"):
            raise ConfigError(f"process_group={group!r} is not valid: accepted is a process group of torch.distributed that this process is in, or None")
        spill_to = options.pop("spill_to", None)
        texts = [(name, _option_text(name, value)) for name, value in options.items() if value is not None]
        self._store = _ebbtide.Store(texts, _folders(spill_to) if spill_to is not None else None)
        self._plans = None
        self._enabled = None  # the attachment that `enable` made
        if group is not None:
            from ._shared_plans import SharedPlans

            self._plans = SharedPlans(self._store, group)
        self._entered = Entered("a store")

    def __enter__(self):
        self._entered.push(enter_scope(self._store, self._plans))
        return self

    def __exit__(self, error_type, error, traceback):
        scope = self._entered.pop()
        try:
            scope.leave()
        except Exception:
            if error_type is None:
                raise
            # The forward's own error is the one to see; what could not leave dies with its graph.

    def attach(self, model):
        """Runs every `model(...)` inside the store from now on; its parameters and buffers never move.

        What its submodules save is named by their paths ("blocks.3.mlp") in report, statistics, trace and plan, where no `ebbtide.region` names it: that comes first,
        around the call as well as inside. Inside what `torch.compile` or `module.compile()` made there are no names: it has that of the compiled module, or of its caller.
        The model is held weakly; its copies and pickles are not attached, and no submodule is edited.

        Returns:
            A handle: `handle.remove()`, or a context manager that removes at its end. A dropped handle changes nothing.
        """
        return Attachment(self, model)

    @contextlib.contextmanager
    def saved_tensors_hooks(self):
        """The same as a plain `torch.autograd.graph.saved_tensors_hooks`, for code that composes hooks itself. One Python object a tensor: slower than `with store`."""
        scope = _ebbtide.Scope.detached(self._store)
        try:
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _ebbtide.pack(scope, tensor), lambda held: held.unpack()):
                yield
        finally:
            scope.leave()

    def close(self):
        """Brings home the records that are alive and gives the spill files back. Idempotent. Entering a closed store is an error, and so is calling a model that is attached
        to it, but with gradients off. A model that `enable` attached is so no more, and can be called as if it had never been."""
        try:
            if self._enabled is not None:
                self._enabled.remove()
        finally:
            self._store.close()

    def stats(self):
        """A plain dict of ints and floats: bytes and seconds, cumulative over the store's life unless said otherwise."""
        return self._store.stats()

    def last_pass(self):
        """A flat dict of the last pass that ended, for loggers."""
        return self._store.last_pass()

    def report(self):
        """One screen of text: what was kept, moved and why."""
        return self._store.report()

    def plan(self):
        """What becomes of each record of a pass, as planned after the first passes: a list of dicts in order of packing, with `bytes`, `op` (the node that made
        it), `region`, `device`, `action` ("keep", "offload", "spill" or "recompute") and `why`. Empty where the last pass followed no plan: it fits, or is the
        first of its kind."""
        return self._store.plan()

    def save_profile(self, path):
        """Writes what is known of passes like the last, as JSON, for what-ifs. `ConfigError` where no pass has had a backward yet or the file cannot be written."""
        self._store.save_profile(os.fspath(path))

    def save_plan(self, path):
        """Writes the plans in force, for `Store(plan=path)`. `ConfigError` where there are none yet or the file cannot be written."""
        self._store.save_plan(os.fspath(path))

    def save_trace(self, path, steps=3):
        """Takes down what is done in the next `steps` passes, and writes it to `path` when the last of them has ended, or at `close()`: calls by thread, waits and
        why, transfers, passes, bytes by tier. For https://ui.perfetto.dev or chrome://tracing; `python -m ebbtide trace FILE` sums it up. `ConfigError` where the
        file cannot be written, or a trace is under way."""
        self._store.save_trace(os.fspath(path), steps)

    def trim(self):
        """Gives idle host memory back to the system (between phases of a job); returns how many bytes."""
        return self._store.trim()

    def _repr_html_(self):
        import html

        return "<pre>" + html.escape(self.report()) + "</pre>"


def enable(model, **options):
    """Makes a store, attaches it to `model` and returns it. Options as for `Store`. `close()` of that store ends it."""
    store = Store(**options)
    store._enabled = store.attach(model)
    return store
