"""Torch's own list of operators (op_db, in its wheel), forward and backward: under a store from which all leaves they must give the bits that they give without.

A program, run by test_opinfo.py in a process of its own: what torch's list imports changes flags of the whole process.
"""

import argparse
import collections
import contextlib
import gc
import sys
import tempfile
import time
import warnings
import zlib

import torch

import ebbtide
from support import same_bits

# Where two plain runs differ, or what is compared is not theirs alone: operator -> why.
NOT_COMPARED = {}

DTYPES = (torch.float32, torch.complex64)
STORES = {"recomputed or spilled": {"verify": True}, "spilled": {"recompute": False}}


def is_tensor(value):
    return isinstance(value, torch.Tensor)


def tree_map(function, tree):
    return torch.utils._pytree.tree_map(lambda leaf: function(leaf) if is_tensor(leaf) else leaf, tree)


def tensors_of(tree):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if is_tensor(leaf)]


def plain_bits(tensor):
    """The same values as a plain strided tensor."""
    tensor = tensor.detach()
    if tensor.is_nested:
        tensor = torch.cat([row.flatten() for row in tensor.unbind()])
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


class Trial:
    """One operator with one sample of inputs."""

    def __init__(self, call, sample):
        self._call, self._sample = call, sample
        self._inputs = (sample.input, sample.args, sample.kwargs)

    def run(self, scope):
        """Results, then gradients of all inputs that have one."""
        leaves = []

        def fresh(tensor):
            if not tensor.requires_grad:
                return tensor.clone() if tensor.layout == torch.strided and not tensor.is_nested else tensor
            leaves.append(tensor.detach().requires_grad_())
            return leaves[-1].clone()  # a leaf itself stays, so that an operator which saves its input would have nothing to move

        def forward():
            """The loss alone outlives it: what a program still holds is not fetched."""
            value, args, kwargs = tree_map(fresh, self._inputs)
            out = self._sample.output_process_fn_grad(self._call(value, *args, **kwargs))
            results.extend(plain_bits(t) for t in tensors_of(out))
            generator = torch.Generator().manual_seed(1)
            parts = []
            for tensor in tensors_of(out):
                if tensor.requires_grad:
                    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
                    weight = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
                    parts.append((tensor * weight).sum().abs())
            return sum(parts) if parts else None

        results = []
        torch.manual_seed(0)
        with scope:
            loss = forward()
        if loss is None:
            return results
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        return results + [plain_bits(grad) for grad in grads if grad is not None]


def equal(a, b):
    return len(a) == len(b) and all(map(same_bits, a, b))


def attempt(function):
    """Its value, or the type of what it raised."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001: compared with plain's
        return error.with_traceback(None)  # which holds tensors


def variants(op):
    yield "", op
    if op.inplace_variant is not None:
        yield "in place", op.inplace_variant


def chosen(share, number, names):
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db:
        if names:
            if op.name in names or op.full_name in names:
                yield op
        elif zlib.crc32(op.full_name.encode()) % share == number % share:
            yield op


class Failures(list):
    def append(self, failure):
        print(f"FAILED {failure}", flush=True)
        super().append(failure)


class Tally:
    def __init__(self):
        self.counts = collections.Counter()
        self.stays = collections.Counter()
        self.nothing_left = []
        self.failures = Failures()
        self.unstable = set()


def some(samples, count):
    """So many of them, from all along the list; all where `count` is 0."""
    step = max(1, -(-len(samples) // count)) if count else 1
    return samples[::step]


def try_op(op, folder, tally, samples):
    dtypes = [dtype for dtype in DTYPES if dtype in op.supported_backward_dtypes("cpu")]
    if not op.supports_autograd or not dtypes:
        tally.counts["operators without a gradient"] += 1
        return
    tally.counts["operators"] += 1
    left = 0
    stores = {}
    for name, options in STORES.items():
        stores[name] = ebbtide.Store(device_budget=0, spill_to=folder, min_bytes=1, **options)
        stores[name]._store.follow_plans(False)  # a plan may find other ways cheaper
    for dtype in dtypes:
        for variant, call in variants(op):
            for sample in some(list(op.sample_inputs("cpu", dtype, requires_grad=True)), samples):
                if variant == "in place" and sample.broadcasts_input:
                    continue
                left += try_sample(op, f"{op.full_name} {dtype} {variant}".strip(), Trial(call, sample), stores, tally)
    for name, store in stores.items():
        gc.collect()
        stats = store.stats()
        if stats["device"]["bytes"] or stats["handed_over"]:
            tally.failures.append(f"{op.full_name}, {name}: {stats['device']['bytes']} bytes and {stats['handed_over']} handed over outlived its graphs")
        for what in ("saved", "kept", "spilled", "recomputed", "deduplicated"):
            tally.counts[what] += stats[what]["tensors"]
        for reason, counts in stats["passed_through_reasons"].items():
            tally.stays[reason] += counts["tensors"]
        store.close()
    if left == 0:
        tally.nothing_left.append(op.full_name)


def try_sample(op, name, trial, stores, tally):
    """How many records left."""
    plain, again = attempt(lambda: trial.run(contextlib.nullcontext())), attempt(lambda: trial.run(contextlib.nullcontext()))
    if isinstance(plain, Exception) or isinstance(again, Exception):
        tally.counts["samples that plain torch refuses"] += 1
        if type(plain) is not type(again):
            tally.unstable.add(op.full_name)
    elif not equal(plain, again):
        tally.counts["samples where two plain runs differ"] += 1
        tally.unstable.add(op.full_name)
    else:
        tally.counts["samples compared"] += 1
    left = 0
    for store_name, store in stores.items():
        before = store.stats()
        got = attempt(lambda: trial.run(store))
        after = store.stats()
        left += sum(after[what]["tensors"] - before[what]["tensors"] for what in ("spilled", "recomputed"))
        if isinstance(plain, Exception):
            if type(got) is not type(plain):
                tally.failures.append(f"{name}, {store_name}: plain raises {plain!r}, the store gives {got!r:.200}")
        elif isinstance(got, Exception):
            tally.failures.append(f"{name}, {store_name}: {type(got).__name__}: {got}")
        elif op.full_name not in tally.unstable and not equal(got, plain):
            where = [i for i, (a, b) in enumerate(zip(got, plain)) if not same_bits(a, b)]
            tally.failures.append(f"{name}, {store_name}: tensors {where} of {len(plain)} differ")
    return left


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=int, default=1, help="one operator in so many")
    parser.add_argument("--number", type=int, default=0, help="which of the shares")
    parser.add_argument("--samples", type=int, default=0, help="so many of an operator's samples of each kind (all)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no operator after that")
    parser.add_argument("--verbose", action="store_true", help="name each operator before it runs, and what never left")
    parser.add_argument("names", nargs="*", help="these operators only")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the samples are small
    began = time.monotonic()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        ops = list(chosen(arguments.share, arguments.number, arguments.names))
        for op in ops:
            if time.monotonic() - began > arguments.seconds:
                break
            tally.counts["looked at"] += 1
            if arguments.verbose:
                print(op.full_name, file=sys.stderr, flush=True)
            try_op(op, folder, tally, arguments.samples)
    print(f"sweep: every operator of torch: {tally.counts['looked at']} of {len(ops)}, {tally.counts['spilled'] + tally.counts['recomputed']} tensors left")
    for what, count in tally.counts.items():
        print(f"{what}: {count}")
    for reason, count in tally.stays.most_common():
        print(f"stayed, {reason}: {count}")
    print(f"operators of which nothing left: {len(tally.nothing_left)}: {' '.join(tally.nothing_left)}")
    unknown = sorted(tally.unstable - NOT_COMPARED.keys())
    print(f"plain runs differ: {' '.join(sorted(tally.unstable))}")
    if unknown:
        print(f"FAILED two plain runs differ, and no reason is known: {' '.join(unknown)}")
    return 1 if tally.failures or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
