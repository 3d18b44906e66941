"""`python -m ebbtide bench link | disk | hooks`: how fast this machine's links and folders are, and what hooks cost."""

import json
import time
from contextlib import nullcontext

from . import _ebbtide
from ._progress import progress, progress_of_links
from ._store import Store

_OPS = 2000  # a chain of them a round
_FLOATS = 1024  # 4 KiB: the smallest record
_ROUNDS = 20


def add_to(commands):
    parser = commands.add_parser("bench", help="measure links, folders to spill to, or what hooks cost", description="Not beside a training, which it would disturb.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    link = kinds.add_parser("link", help="copies between each accelerator and pinned host memory, each way alone and both at once")
    disk = kinds.add_parser("disk", help="writing to folders and reading back, as spilled tensors do")
    disk.add_argument("folders", metavar="FOLDER", nargs="+")
    disk.add_argument("--seconds", type=_positive, default=5.0, help="that each folder is written, and then read; what is written wears the disk (default: %(default)s)")
    hooks = kinds.add_parser("hooks", help="what a saved tensor that stays costs, beside hooks in Python that do nothing")
    for kind, run in ((link, _link), (disk, _disk), (hooks, _hooks)):
        kind.add_argument("--json", action="store_true", help="for programs: bytes a second, or seconds")
        kind.set_defaults(bench=run)
    parser.set_defaults(run=lambda parser, arguments: _run(arguments))


def _run(arguments):
    found, text = arguments.bench(arguments)
    print(json.dumps(found) if arguments.json else text)


def _positive(text):
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


_positive.__name__ = "positive number"  # argparse says it


def _speed(bytes_per_second):
    return _ebbtide.bytes_text(int(bytes_per_second)) + "/s"


def _rows(*rows):
    return "\n".join(f"{first:34}" + "".join(f"{cell:>16}" for cell in others) for first, *others in rows)


def _link(arguments):
    progress_of_links()
    devices = json.loads(_ebbtide.measure_links())["devices"]
    if not devices:
        return devices, "no accelerator of torch's here: there is no link to measure"
    rows = [("16 MiB a copy", "out", "in", "out, with in", "in, with out")]
    for device in devices:
        link = device["link"]
        rows.append((device["name"], *(_speed(link[way]) for way in ("out", "in", "out_with_in", "in_with_out"))) if link else (device["name"], device["refused"]))
    return devices, _rows(*rows)


def _disk(arguments):
    folders = []
    for folder in arguments.folders:
        progress(f"{folder}: {arguments.seconds:g} s of writing, {arguments.seconds:g} s of reading")
        folders += json.loads(_ebbtide.measure_folders([folder], arguments.seconds))["folders"]
    rows = [("4 MiB a record, 8 at once", "write", "read")]
    for folder in folders:
        rows.append((folder["path"], folder["refused"]) if folder["refused"] else (folder["path"], _speed(folder["write"]), _speed(folder["read"])))
        if folder["description"]:
            rows.append(("  " + folder["description"],))
    return folders, _rows(*rows)


def _hooks(arguments):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store = Store(device_budget="64GiB", min_bytes=4 * _FLOATS)
    contenders = {
        "no hooks": nullcontext,
        "hooks in Python that do nothing": lambda: torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
        "a store in which all stays": lambda: store,
    }
    best = {}
    try:
        progress(f"{_ROUNDS} rounds of {_OPS} ops")
        for _ in range(_ROUNDS):
            for name, context in contenders.items():
                now = _chain(torch, context)
                best[name] = tuple(map(min, best.get(name, now), now))
    finally:
        store.close()
        torch.set_num_threads(threads)
    plain = best["no hooks"]
    found = {name: {"pack_s": times[0] - plain[0], "unpack_s": times[1] - plain[1]} for name, times in best.items() if name != "no hooks"}
    found["no hooks"] = {"forward_s": plain[0], "backward_s": plain[1]}
    rows = [("an op (sin of 4 KiB) by itself", f"{plain[0] * 1e6:.2f} us", f"{plain[1] * 1e6:.2f} us"), ("a saved tensor adds", "pack", "unpack")]
    rows += [("  " + name, f"{of['pack_s'] * 1e6:.2f} us", f"{of['unpack_s'] * 1e6:.2f} us") for name, of in found.items() if "pack_s" in of]
    return found, _rows(*rows)


def _chain(torch, context):
    """Seconds an op, forward and backward, of this thread's own time: each op saves one tensor."""
    x = torch.ones(_FLOATS, requires_grad=True)
    start = time.thread_time()
    with context():
        y = x
        for _ in range(_OPS):
            y = y.sin()
    turned = time.thread_time()
    y.sum().backward()
    return (turned - start) / _OPS, (time.thread_time() - turned) / _OPS
