"""What other projects do with activations, or with disks: their own code, installed from PyPI into .cache/peers by `compare.sh --peers` and
`run.sh nvme -- --peers`, and never copied here.

Only the file with the mechanism is loaded, out of a package installed without what else that asks for, where nothing of that takes part: quantized
weights, logging, other hardware. What it imports of such things is stood in for.
"""

import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from machine import ROOT
from training import Way
from ways import Unavailable, Where, wrap_blocks

FOLDER = ROOT / ".cache/peers"


@dataclass(frozen=True)
class Peer:
    """`packages` are installed as they are, or `whole`, with what they ask for (which must not be torch)."""

    packages: tuple[str, ...]
    whole: bool = False


PEERS = {
    "torchtune": Peer(("torchtune", "psutil")),
    "trl": Peer(("trl", "psutil")),
    "transformers": Peer(("transformers>=5.17",), whole=True),
    "trainstream": Peer(("trainstream",)),
    "axolotl": Peer(("axolotl",)),
}

# What nvme_bench.py puts tensors on a disk with. The one of KvikIO asks for a CUDA toolkit and CuPy, which its compatibility mode does not use.
DISK_PEERS = {
    "safetensors": Peer(("safetensors",)),
    "kvikio-cu13": Peer(("kvikio-cu13", "libkvikio-cu13", "rapids-logger", "cuda-pathfinder")),
}


def install(folder: Path = FOLDER, which: dict[str, Peer] = PEERS) -> None:
    """Each peer into a folder of its own, where it is not there yet. What cannot be installed is said, and its row tells it."""
    for name, peer in which.items():
        if version(name, folder):
            continue
        print(f"peers: installing {name} into {folder / name}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder / name]
        ran = subprocess.run([*command, *([] if peer.whole else ["--no-deps"]), *peer.packages], stdout=sys.stderr)
        if ran.returncode:
            print(f"peers: pip could not install {name}; it is left out", file=sys.stderr)


def version(name: str, folder: Path = FOLDER) -> str | None:
    """Of the peer that is installed there; None if it is not."""
    found = importlib.metadata.distributions(name=name, path=[str(folder / name)])
    return next((distribution.version for distribution in found), None)


def versions(folder: Path = FOLDER) -> dict[str, str]:
    return {name: found for name in PEERS if (found := version(name, folder))}


def torchtune(model, where: Where) -> Way:
    file = _file(where, "torchtune", "torchtune/training/_activation_offloading.py")
    _need_gpu(where)
    absent = type("Absent", (), {})
    stand_ins = {
        "torchao": {},
        "torchao.dtypes": {},
        "torchao.dtypes.nf4tensor": {"NF4Tensor": absent},
        "torchtune": {},
        "torchtune.modules": {"TiedLinear": absent},
        "torchtune.utils": {"get_logger": lambda level=None: logging.getLogger("torchtune")},
    }
    offload = _load(where, "torchtune", file, stand_ins).OffloadActivations(use_pin_memory=True, use_streams=True)
    return Way(lambda: offload)


def trl(model, where: Where) -> Way:
    file = _file(where, "trl", "trl/models/activation_offloading.py")
    _need_gpu(where)
    stand_ins = {
        "accelerate": {},
        "accelerate.logging": {"get_logger": logging.getLogger},
        "accelerate.utils": {},
        "accelerate.utils.versions": {"is_torch_version": lambda relation, other: True},  # torch is newer than all that it asks about
        "transformers": {"is_torch_npu_available": lambda: False},
    }
    offload = _load(where, "trl", file, stand_ins).OffloadActivations(use_pin_memory=True, use_streams=True)
    offload.update_model_params(model)
    return Way(lambda: offload)


def transformers(model, where: Where) -> Way:
    """`gradient_checkpointing_kwargs={"offload": True}` of its Trainer ends in this call."""
    if not version("transformers", where.peers):
        raise Unavailable("transformers is not installed: --peers does")
    sys.path.append(str(where.peers / "transformers"))
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Layer(GradientCheckpointingLayer):
        def __init__(self, forward):
            super().__init__()
            self.run = forward

        def forward(self, *arguments):
            return self.run(*arguments)

    class Stack(PreTrainedModel):
        config_class = PreTrainedConfig
        supports_gradient_checkpointing = True
        main_input_name = "hidden_states"

        def __init__(self):
            super().__init__(PreTrainedConfig())
            self.layers = nn.ModuleList(Layer(block.forward) for block in model.blocks)

    if not hasattr(Stack, "activation_checkpointing_enable"):
        raise Unavailable(f"transformers {version('transformers', where.peers)} has no offload for checkpoints")
    stack = Stack()
    stack.activation_checkpointing_enable(offload=True)
    for block, layer in zip(model.blocks, stack.layers):
        block.forward = functools.partial(layer)  # a module itself would become a part of the block
    return Way(note="" if where.device == "cuda" else "copies within the same memory: there is no other device here")


def trainstream(model, where: Where) -> Way:
    if not version("trainstream", where.peers):
        raise Unavailable("trainstream is not installed: --peers does")
    _need_gpu(where)
    sys.path.append(str(where.peers / "trainstream"))
    try:
        from trainstream import ActivationOffloader  # compiles itself, with the CUDA toolkit
    except Exception as error:
        raise Unavailable(f"trainstream: {_last_line(error)}") from None
    offloader = ActivationOffloader(model, model.blocks, 1.0)
    return Way(note=f"every block but the last moves ({len(offloader.blocks)} blocks)")


def axolotl_disk(model, where: Where) -> Way:
    """Its checkpoint that keeps each block's input in a file."""
    file = _file(where, "axolotl", "axolotl/monkeypatch/gradient_checkpointing/offload_disk.py")
    _need_gpu(where)
    stand_ins = {"axolotl": {}, "axolotl.utils": {}, "axolotl.utils.logging": {"get_logger": logging.getLogger}}
    disco = _load(where, "axolotl", file, stand_ins).Disco
    wrap_blocks(model, lambda forward: lambda *arguments: disco.apply(forward, *arguments))
    return Way()


def _need_gpu(where: Where) -> None:
    if where.device != "cuda":
        raise Unavailable("moves what is on a GPU, and nothing else")


def _file(where: Where, name: str, inside: str) -> Path:
    file = where.peers / name / inside
    if not file.exists():
        installed = version(name, where.peers)
        raise Unavailable(f"{name} {installed} has no {inside}" if installed else f"{name} is not installed: --peers does")
    return file


def _load(where: Where, name: str, file: Path, stand_ins: dict[str, dict]) -> types.ModuleType:
    """The module in `file`. The stand-ins leave again, so that nobody takes them for the packages."""
    sys.path.append(str(where.peers / name))
    modules = {}
    for module_name, attributes in stand_ins.items():
        module = modules[module_name] = types.ModuleType(module_name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(module_name, None, is_package=True)
        vars(module).update(attributes)
    spec = importlib.util.spec_from_file_location(f"peer_{name}", file)
    module = importlib.util.module_from_spec(spec)
    before = {module_name: sys.modules.get(module_name) for module_name in modules}
    sys.modules.update(modules)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Unavailable(f"{name} {version(name, where.peers)} cannot be loaded: {_last_line(error)}") from None
    finally:
        for module_name, old in before.items():
            if old is None:
                del sys.modules[module_name]
            else:
                sys.modules[module_name] = old
    return module


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
