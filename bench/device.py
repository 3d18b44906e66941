"""Where the benchmarks train: on a GPU where there is one, else on the CPU; and what a fair step is there."""

import ctypes
import os

import cli

# A model whose saved tensors are too many for what the demo's readers have: a laptop's memory, a part of a GPU's.
DEFAULT_SIZES = {
    "cpu": {"layers": 12, "width": 768, "tokens": 512, "batch": 4},
    "cuda": {"layers": 24, "width": 1024, "tokens": 1024, "batch": 8},
}
CHOICES = ("auto", "cpu", "cuda")


def resolve(wanted: str) -> str:
    """"cpu" or "cuda". Errors: BadInput where CUDA is asked for and is not there."""
    if wanted == "cpu" or (wanted == "auto" and not _has_driver()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "auto":
        return "cpu"
    raise cli.BadInput("--device cuda: torch finds no GPU here")


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class StepOn:
    """What a training step needs to know of its device: precision, the end of its work, the peak of its memory."""

    def __init__(self, device: str):
        import torch

        self._torch = torch
        self.device = torch.device(device)
        if device == "cuda":
            # Two plain runs must be equal to the last bit, or nothing can be compared with them.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def precision(self):
        """float32 on the CPU, bfloat16 autocast on a GPU: what people train in."""
        return self._torch.autocast(self.device.type, dtype=self._torch.bfloat16, enabled=self.device.type == "cuda")

    def wait(self) -> None:
        if self.device.type == "cuda":
            self._torch.cuda.synchronize()

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            self._torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """The most that torch's allocator had given out; None on the CPU, where the resident set is what counts."""
        return self._torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
