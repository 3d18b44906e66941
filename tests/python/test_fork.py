"""Processes that fork while a store is there, as data loaders do."""

import sys

PROGRAM = """
import os, sys
import torch, ebbtide
torch.set_num_threads(1)
store = ebbtide.Store(device_budget="8MiB", host_budget="128MiB", spill_to=sys.argv[1], recompute=False)
x = torch.ones(1 << 20, requires_grad=True)
for _ in range(2):
    with store:
        y = x
        for _ in range(24):
            y = (y * y).sin()
    y.sum().backward()
staging = store.stats()["host"]["bytes"]
child = os.fork()
if child == 0:
    lines = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup") if "kB" in line)
    print(staging, (int(lines["Private_Dirty:"]) + int(lines["Private_Clean:"])) << 10, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_shares_the_staging_memory(tmp_path, run):
    """What is pinned for a disk, which needs the right to lock memory, is copied by a fork and not shared."""
    staging, own = map(int, run(sys.executable, "-c", PROGRAM, tmp_path).split())
    assert staging >= 64 << 20
    assert own < 16 << 20
