"""Stores of several processes that go by one plan: whatever differs between them, none waits for another, and gradients stay the same to the last bit."""

import os
import sys

import pytest

import ebbtide

# What all of them need. A process that hangs is ended by its alarm, which fails the test.
BEGIN = """
import contextlib, logging, os, signal, sys, time
import torch, torch.distributed as dist, torch.multiprocessing as mp
import ebbtide

SIZE = 8192

def begin(rank, folder, world):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)

def block(h):
    return (h.sin().exp() * h.cos()).tanh() * h.sigmoid()

def gradient(net, x, store=None):
    if store is None:
        return torch.autograd.grad(net(x * 2).sum(), x)[0]
    with store:
        y = net(x * 2).sum()
    return torch.autograd.grad(y, x)[0]

def within_a_minute_or_two(work, *arguments):
    signal.alarm(150)
    torch.set_num_threads(1)
    work(*arguments)

def start(work, world, *arguments, slow=()):
    context = mp.get_context("spawn")
    processes = []
    for rank in range(world):
        if rank in slow:
            os.environ["LD_PRELOAD"], os.environ["EBBTIDE_SLOW_DISK_US"] = sys.argv[2], "3000"
        processes.append(context.Process(target=within_a_minute_or_two, args=(work, rank, world, *arguments)))
        processes[-1].start()
        os.environ.pop("LD_PRELOAD", None)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world
"""


@pytest.fixture
def several(tmp_path, run, build_dir):
    """Runs a program that starts some processes in a folder."""

    def start(program):
        path = tmp_path / "program.py"
        path.write_text(BEGIN + program)
        run(sys.executable, path, tmp_path, build_dir / "tests/support/libslow_disk.so", env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, timeout=240)

    return start


ONE_PLAN = """
BUDGETS = ["192KiB", 0, "192KiB", "1GiB"]

def work(rank, world, folder):
    begin(rank, folder, world)
    runs = 0
    def summed(h):
        nonlocal runs
        runs += 1
        y = h.sin().exp()
        total = y.detach().clone()
        dist.all_reduce(total)
        return (y * total).tanh()
    def together(h):
        return block(ebbtide.checkpoint(block, ebbtide.checkpoint(summed, block(h)))).exp()
    def alone(h):
        return ebbtide.checkpoint(block, block(block(h)))

    x = (torch.linspace(0, 1, SIZE) + rank).requires_grad_()
    expected = gradient(together, x), gradient(alone, x)
    runs = 0
    store = ebbtide.Store(process_group=dist.group.WORLD, device_budget=BUDGETS[rank], spill_to=folder, min_bytes=4096)
    plans, passes = [], 0
    def step():
        nonlocal passes
        passes += 1
        assert torch.equal(gradient(together, x, store), expected[0])
        plans.append([record["action"] for record in store.plan()])
    for number in range(6):
        step()
        for _ in range((rank + number) % 3):  # as many as each likes
            assert torch.equal(gradient(alone, x, store), expected[1])
    for _ in range(3):  # what rank 0 has made by the first is published in the second, and there for the third
        dist.barrier()
        step()
    assert runs == passes, "a region that ran a collective was run again"
    assert store._plans._known > 0, "none was published or taken over"
    history = [None] * world
    dist.all_gather_object(history, plans)
    if rank == 0:
        assert plans[-1], "rank 0 has a plan"
        assert history[1][-1] and "keep" not in history[1][-1], history[1][-1]
        if world > 2:
            assert history[2][-1] in plans, (history[2][-1], plans)
    dist.barrier()
    store.close()
    dist.destroy_process_group()

if __name__ == "__main__":
    start(work, WORLD, sys.argv[1], slow=(1,))
"""


@pytest.mark.parametrize("world", [2, 4])
def test_one_plan_within_different_budgets_at_different_speeds(several, world):
    several(ONE_PLAN.replace("WORLD, sys", f"{world}, sys"))


OTHER_STAGES = """
def work(rank, world, folder):
    begin(rank, folder, world)
    def net(h):
        for _ in range(3 + rank):  # a pipeline's stages
            h = block(h)
        return h
    x = torch.linspace(0, 1, SIZE).requires_grad_()
    expected = gradient(net, x)
    store = ebbtide.enable(torch.nn.Identity(), process_group=dist.group.WORLD, device_budget="128KiB", spill_to=folder, min_bytes=4096)
    for _ in range(6):
        assert torch.equal(gradient(net, x, store), expected)
        dist.barrier()
    records = len(store.plan())
    assert records > 0
    counts = [None] * world
    dist.all_gather_object(counts, records)
    assert len(set(counts)) == world, "each has a plan of its own"
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    start(work, 2, sys.argv[1])
"""


def test_what_is_not_the_same_on_rank_0_has_a_plan_of_its_own(several):
    several(OTHER_STAGES)


GONE = """
def work(rank, world, folder):
    port = f"{folder}/port"
    if rank == 0:
        keys = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
        with open(port + ".new", "w") as file:
            file.write(str(keys.port))
        os.rename(port + ".new", port)
    else:
        while not os.path.exists(port):
            time.sleep(0.01)
        keys = dist.TCPStore("127.0.0.1", int(open(port).read()), world, is_master=False)
    dist.init_process_group("gloo", store=keys, rank=rank, world_size=world)
    warned = []
    class Note(logging.Handler):
        def emit(self, record):
            warned.append(record.getMessage())
    logging.getLogger("ebbtide").addHandler(Note())
    x = torch.linspace(0, 1, SIZE).requires_grad_()
    net = lambda h: block(block(h))
    expected = gradient(net, x)
    store = ebbtide.Store(process_group=dist.group.WORLD, device_budget="64KiB", spill_to=folder, min_bytes=4096)
    for _ in range(4):
        assert torch.equal(gradient(net, x, store), expected)
    dist.barrier()
    if rank == 0:
        os._exit(0)  # with the keys
    while not gone(keys):
        pass
    for _ in range(4):
        assert torch.equal(gradient(net, x, store), expected)
    assert len([text for text in warned if "no longer shared" in text]) == 1, warned
    os._exit(0)

def gone(keys):
    try:
        keys.add("there", 1)
        return False
    except Exception:
        return True

if __name__ == "__main__":
    start(work, 2, sys.argv[1])
"""


SUMMED_IN_PLACE = """
class Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        dist.all_reduce(y)  # torch counts no version
        return y
    @staticmethod
    def backward(ctx, gradient):
        return gradient

def in_place(y):
    dist.all_reduce(y)
    return y

def work(rank, world, folder):
    begin(rank, folder, world)
    store = ebbtide.Store(device_budget=0, spill_to=folder, min_bytes=4096)
    store._store.follow_plans(False)
    def gradients(summed, scope):
        torch.manual_seed(rank)
        x, gate, weight = (torch.randn(*shape, requires_grad=True) for shape in ((512, 64), (64,), (64, 64)))
        def loss():
            return (summed(x.sin() * gate) @ weight).sum()
        with scope:
            made = loss()
        return torch.autograd.grad(made, (weight, gate, x))
    gradients(lambda y: y, store)  # what the product makes is made again
    redone = store.stats()["recomputed_ops"]["mul"]["tensors"]
    for summed in (Summed.apply, in_place):
        for _ in range(2):
            expected = gradients(summed, contextlib.nullcontext())
            for a, b in zip(gradients(summed, store), expected):
                assert torch.equal(a, b)
    assert store.stats()["recomputed_ops"]["mul"]["tensors"] == redone
    assert store.stats()["unequal_redos"] == {}
    dist.barrier()
    store.close()
    dist.destroy_process_group()

if __name__ == "__main__":
    start(work, 2, sys.argv[1])
"""


def test_what_processes_sum_in_place_is_not_made_by_the_op_before(several):
    several(SUMMED_IN_PLACE)



def test_when_the_one_that_holds_the_keys_is_gone_the_others_go_on(several):
    several(GONE)


def test_what_is_no_group_is_refused():
    with pytest.raises(ebbtide.ConfigError, match="process_group=-100 is not valid: accepted is a process group"):
        ebbtide.Store(process_group=-100)
    assert ebbtide.Store(process_group=None).stats()["passes"] == 0
