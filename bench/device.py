"""Where the benchmarks train: on a GPU where there is one, else on the CPU; and what a fair step is there."""

import ctypes
import hashlib
import os
import struct

import cli
import vector_functions

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
    """What a training step needs to know of its device: precision, the end of its work, the peak of its memory, the bits of its results.

    With `deterministic`, two runs on a GPU are equal to the last bit, and so can be compared. `autocast`: bfloat16 autocast on a GPU.
    """

    def __init__(self, device: str, deterministic: bool = True, autocast: bool = True):
        import torch

        self._torch = torch
        self.device = torch.device(device)
        self._autocast = autocast and device == "cuda"
        self._peak, self._peak_reserved = 0, 0
        if device == "cpu":
            vector_functions.settle()
        if device == "cuda" and deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            # Else every new tensor is filled by a kernel of its own, which no training pays for.
            torch.utils.deterministic.fill_uninitialized_memory = False

    def precision(self):
        """float32 on the CPU, bfloat16 autocast on a GPU: what people train in."""
        return self._torch.autocast(self.device.type, dtype=self._torch.bfloat16, enabled=self._autocast)

    def wait(self) -> None:
        if self.device.type == "cuda":
            self._torch.cuda.synchronize()

    def forget_peak(self) -> None:
        self._peak, self._peak_reserved = 0, 0
        if self.device.type == "cuda":
            self._torch.cuda.empty_cache()
            self._torch.cuda.reset_peak_memory_stats()

    def note_peak(self) -> None:
        """What came since the last call counts, up to here."""
        if self.device.type == "cuda":
            self._peak = max(self._peak, self._torch.cuda.max_memory_allocated())
            self._peak_reserved = max(self._peak_reserved, self._torch.cuda.max_memory_reserved())

    def start_again(self) -> None:
        """What came since `note_peak` does not count."""
        if self.device.type == "cuda":
            self._torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """The most that torch's allocator had given out; None on the CPU, where the resident set is what counts."""
        return self._peak if self.device.type == "cuda" else None

    def peak_reserved_bytes(self) -> int | None:
        """The most that torch's allocator had taken from the device; None on the CPU."""
        return self._peak_reserved if self.device.type == "cuda" else None

    def pinned_bytes(self) -> int | None:
        """The most host memory that torch's own allocator of it had pinned; None on the CPU."""
        if self.device.type != "cuda":
            return None
        return self._torch.cuda.host_memory_stats().get("allocated_bytes.peak")

    def allow(self, share: float) -> None:
        """The most of the device's memory that this process gets."""
        if self.device.type == "cuda":
            self._torch.cuda.set_per_process_memory_fraction(share)

    def release(self) -> None:
        """Gives the device's unused memory to the other processes."""
        if self.device.type == "cuda":
            self._torch.cuda.empty_cache()

    def digest(self, loss, gradients) -> str:
        """Of the bits of loss and gradients, in their order."""
        fingerprint = bits_on_device if self.device.type == "cuda" else bits_on_host
        return fingerprint(loss, gradients)


def bits_on_host(loss, gradients) -> str:
    """128 bits of a cryptographic hash."""
    import torch

    digest = hashlib.blake2b(struct.pack("<f", loss.item()), digest_size=16)
    for gradient in gradients:
        digest.update(gradient.contiguous().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


CHUNK = 1 << 22  # elements
NEXT = 0x1E3779B97F4A7C15  # any odd number


def bits_on_device(loss, gradients) -> str:
    """64 bits of a sum in which each place has an odd weight of its own, modulo 2^64: one different bit always shows. To copy the gradients home would
    take longer than many a step."""
    import torch

    generator = torch.Generator(loss.device).manual_seed(1)
    weights = torch.randint(-(2**62), 2**62, (CHUNK,), device=loss.device, generator=generator) * 2 + 1
    total = torch.zeros((), dtype=torch.int64, device=loss.device)
    for gradient in (loss.detach().float().reshape(1), *gradients):
        words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[gradient.element_size()]
        for part in gradient.detach().contiguous().view(-1).view(words).split(CHUNK):
            total = total * NEXT + (part.long() * weights[: part.numel()]).sum()
    return f"{total.item() & (1 << 64) - 1:016x}"
