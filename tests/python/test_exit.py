"""The end of a process with a store at any moment of its life: the exit code is the program's own, within a second or two, and no file stays."""

import json
import subprocess
import sys

import pytest

# Each end is that of a fork, made before anything has run: torch takes seconds to import.
PROGRAM = """
import atexit, gc, json, os, sys, threading
import torch, ebbtide
def net(x):
    for _ in range(8):
        x = (x * 2).sin() * x.exp()
    return x.sum()
folder, ends = sys.argv[1], json.loads(sys.argv[2])
for name, body in ends.items():
    said = os.path.join(folder, name)
    child = os.fork()
    if child == 0:
        break
    print(json.dumps({name: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}), flush=True)
if child == 0:
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
    x = torch.ones(1 << 16, requires_grad=True)
    spill = folder + "/spill"
    torch.set_num_threads(1)
    store = ebbtide.Store(device_budget=0, spill_to=spill, min_bytes=4096)
    with store:
        y = net(x)
    y.backward()
    assert store.stats()["saved"]["tensors"] > 0
    exec(body)
"""

# name -> (what the program does, its exit code)
ENDS = {
    "inside the scope": ("store.__enter__(); y = net(x)", 0),
    "sys.exit inside the scope": ("with store:\n    y = net(x)\n    sys.exit(7)", 7),
    "an exception inside the scope": ("with store:\n    y = net(x)\n    raise ValueError", 1),
    "graph after store": ("with store: y = net(x)\ndel store", 0),
    "store after graph": ("with store: y = net(x)\ndel y", 0),
    "a cycle that holds the graph": ("with store: y = net(x)\nclass Ring: pass\nring = Ring(); ring.me, ring.y = ring, y\ndel y, ring, store", 0),
    "backward at exit": ("with store: y = net(x)\natexit.register(lambda: y.backward())", 0),
    "close at exit": ("with store: y = net(x)\natexit.register(store.close)", 0),
    "forward at exit": ("def last():\n    with store: net(x).backward()\natexit.register(last)", 0),
    "a global that is deleted late": ("with store: y = net(x)\nsys.modules['keeps'] = type('Keeps', (), {'y': y, 'store': store})", 0),
    "an object whose end runs a backward in a forward's scope": (
        "class Late:\n    def __init__(self, y): self.y = y\n    def __del__(self): self.y.backward()\nwith store:\n    late = Late(net(x))\n    net(x)\n    del late",
        0,
    ),
    "a thread in its scope": (
        "inside = threading.Event()\n"
        "def work():\n    store.__enter__(); work.y = net(x); inside.set(); threading.Event().wait()\n"
        "threading.Thread(target=work, daemon=True).start(); inside.wait()",
        0,
    ),
    "a thread that goes on training": (
        "begun = threading.Event()\n"
        "def work():\n    while True:\n        with store: y = net(x)\n        y.backward(); begun.set()\n"
        "threading.Thread(target=work, daemon=True).start(); begun.wait()",
        None,  # a daemon thread inside torch may end its process in any way, with or without a store
    ),
    "os._exit": ("with store: y = net(x)\nos._exit(5)", 5),
    "many stores": ("for _ in range(8):\n    store = ebbtide.Store(device_budget=0, spill_to=spill, min_bytes=4096)\n    with store: x = net(x) * x", 0),
    "an attached model": (
        "model = torch.nn.Sequential(torch.nn.Linear(64, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 64))\n"
        "store.attach(model); y = model(torch.ones(256, 64)).sum()",
        0,
    ),
    "its own hooks": ("with store.saved_tensors_hooks(): y = net(x)", 0),
    "a kept graph": ("with store: y = net(x)\ny.backward(retain_graph=True)", 0),
    "a double backward under way": ("with store:\n    (g,) = torch.autograd.grad(net(x), x, create_graph=True)", 0),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Folder of what each has said on stderr, and the exit codes."""
    folder = tmp_path_factory.mktemp("ends")
    (folder / "spill").mkdir()
    bodies = {name: body for name, (body, _) in ENDS.items()}
    ran = subprocess.run([sys.executable, "-c", PROGRAM, folder, json.dumps(bodies)], stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    codes = {}
    for line in ran.stdout.splitlines():
        codes |= json.loads(line)
    return folder, codes


@pytest.mark.parametrize("name", ENDS)
def test_the_exit_code_is_the_programs_own(ended, name):
    folder, codes = ended
    expected = ENDS[name][1]
    said = (folder / name).read_text()
    if expected is not None:
        assert codes[name] == expected, said
        assert ("Traceback" in said) == (expected == 1), said


def test_no_file_stays(ended):
    folder, codes = ended
    assert codes.keys() == ENDS.keys()
    assert list((folder / "spill").iterdir()) == []
