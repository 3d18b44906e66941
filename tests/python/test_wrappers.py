"""Tensors of wrapper classes are taken apart: what they hold leaves, and is put together again."""

import gc
import os
import sys

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import ebbtide
from ebbtide._wrappers import take_apart
from support import MIN_BYTES, assert_as_plain, leaf, same_bits


def two(seed=0):
    return TwoTensor(leaf(seed).detach(), leaf(seed + 1).detach()).requires_grad_()


def run_two(function):
    def run(scope):
        x = two()
        with scope:
            y = function(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        return [grad.a, grad.b]

    return run


def test_what_they_hold_leaves_and_comes_back(store):
    assert_as_plain(store, run_two(lambda x: (x * 2).sin() * (x * 3).exp()))
    gc.collect()
    stats = store.stats()
    assert "tensor subclass" not in stats["passed_through_reasons"]
    assert stats["spilled"]["tensors"] >= 4


def test_views_of_them(store):
    assert_as_plain(store, run_two(lambda x: (x * 2).view(64, 64).t().sin() * (x * 3).view(64, 64)[:, 1:-1].exp().sum()))


def test_one_that_several_nodes_save_is_one_record_each(store):
    x = two()
    with store:
        y = x * 2
        z = (y.sin() + y.cos() + y.exp()).sum()
    assert store.stats()["saved"]["tensors"] == 4  # y's two, and what exp made
    z.backward()


def test_kept_graphs_and_twice_differentiated(store):
    def run(scope):
        x = two()
        with scope:
            y = ((x * 2).sin() * (x * 3).exp()).sum()
        first = torch.autograd.grad(y, x, retain_graph=True)[0]
        again = torch.autograd.grad(y, x)[0]
        return [first.a, first.b, again.a, again.b]

    assert_as_plain(store, run)


def test_an_in_place_write_is_torchs_error(store):
    x = two()
    with store:
        y = x * 2
        z = y.sin().sum()
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


def test_what_they_hold_beside_tensors_stays():
    class Tagged(TwoTensor):
        tag = "left"

        def __tensor_flatten__(self):
            return ["a", "tag", "b"], None

        @staticmethod
        def __tensor_unflatten__(inner, context, size, stride):
            made = Tagged(inner["a"], inner["b"])
            made.tag = inner["tag"]
            return made

    tagged = Tagged(leaf(0).detach(), leaf(1).detach())
    tagged.tag = "right"
    inner, over = take_apart(tagged)
    assert [part is held for part, held in zip(inner, (tagged.a, tagged.b), strict=True)] == [True, True]
    made = over([tagged.b, tagged.a])
    assert made.a is tagged.b and made.b is tagged.a and made.tag == "right"


def test_by_pythons_own_hooks(store):
    x = two()
    with store.saved_tensors_hooks():
        y = ((x * 2).sin() * (x * 3).exp()).sum()
    (grad,) = torch.autograd.grad(y, x)
    x = two()
    (reference,) = torch.autograd.grad(((x * 2).sin() * (x * 3).exp()).sum(), x)
    assert same_bits(grad.a, reference.a) and same_bits(grad.b, reference.b)
    assert store.stats()["spilled"]["tensors"] + store.stats()["saved"]["tensors"] > 0


def test_in_a_region_they_are_made_again(store):
    runs = []

    def function(h):
        runs.append(1)
        return (h * 2).sin() * (h * 3).exp()

    assert_as_plain(store, run_two(lambda x: ebbtide.checkpoint(function, x * 1)))


def test_of_a_class_that_throws_the_error_arrives(store):
    class Fails(TwoTensor):
        @staticmethod
        def __tensor_unflatten__(*_):
            raise ValueError("cannot be put together")

    x = Fails(leaf().detach(), leaf(1).detach()).requires_grad_()
    with store:
        y = (x * 2).sin().sum()
    with pytest.raises(ValueError, match="cannot be put together"):
        y.backward()
    del y


def test_parameters_of_wrappers_stay(store):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(two().detach())

        def forward(self, x):
            return ((x * 1) * self.weight + x * self.weight.detach()).sin()

    net = Net()
    store.attach(net)
    y = net(two(7)).sum()
    reasons = store.stats()["passed_through_reasons"]
    assert reasons["parameter or buffer of an attached model"]["tensors"] == 2, "of the detached weight"
    y.backward()


TENSOR_PARALLEL = """
import gc, signal, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, SequenceParallel, parallelize_module
import ebbtide

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)
    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))

def work(rank, folder):
    signal.alarm(150)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    net = nn.Sequential(Block(), Block())
    for block in net:
        parallelize_module(block, mesh, {
            "norm": SequenceParallel(use_local_output=False),
            "up": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
            "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        })
    x = DTensor.from_local(torch.randn(4, 16, 64), mesh, [Shard(1)])
    def step(store=None):
        net.zero_grad()
        if store is None:
            loss = net(x).to_local().pow(2).mean()
        else:
            with store:
                loss = net(x).to_local().pow(2).mean()
        loss.backward()
        return [p.grad.to_local().clone() for p in net.parameters()]
    reference = step()
    assert all(torch.equal(a, b) for a, b in zip(step(), reference))

    seen = {}
    weights = {p.to_local().untyped_storage().data_ptr() for p in net.parameters()}
    def note(t):
        local = t._local_tensor if isinstance(t, DTensor) else None
        if local is not None and type(local) is torch.Tensor and local.untyped_storage().data_ptr() not in weights and local.untyped_storage().nbytes() >= 4096:
            seen[local.untyped_storage().data_ptr()] = local
        return t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = net(x).to_local().pow(2).mean()
    in_dtensors = sum(t.untyped_storage().nbytes() for t in seen.values())
    seen.clear()
    del loss

    store = ebbtide.Store(device_budget=0, spill_to=folder, min_bytes=4096, recompute=False)
    store.attach(net)
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(step(store), reference))
    gc.collect()
    stats = store.stats()
    assert in_dtensors > 100000, in_dtensors
    assert stats["saved"]["bytes"] >= 4 * in_dtensors, (stats["saved"], in_dtensors)
    assert stats["spilled"]["bytes"] > 0 and stats["device"]["bytes"] == 0 and stats["handed_over"] == 0
    print("in DTensors", in_dtensors, "records", stats["saved"]["bytes"] // 4, "spilled", stats["spilled"]["bytes"] // 4, stats["passed_through_reasons"])
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[1],), nprocs=2)
"""


def test_a_tensor_parallel_block(tmp_path, run):
    program = tmp_path / "program.py"
    program.write_text(TENSOR_PARALLEL)
    print(run(sys.executable, program, tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, timeout=240))
