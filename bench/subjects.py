"""The models that compare.sh trains. A new one takes a line in SUBJECTS, and a module that builds it.

A model has `blocks`, the modules that contenders checkpoint and compile, and maps a batch to the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cli
import text


@dataclass(frozen=True)
class Sizes:
    """`tokens` are the pixels of a side where the model sees images, and `width` its first channels."""

    layers: int
    width: int
    tokens: int
    batch: int

    def __str__(self) -> str:
        return f"{self.layers} layers, width {self.width}, {self.batch} x {self.tokens}"


@dataclass(frozen=True)
class Subject:
    """`build(sizes, fused)` is the model: with `fused` norms and activations that save less, where it has any.

    `mixed`: on a GPU, bfloat16 autocast over fp32 weights; else all is bfloat16 there. On the CPU all is fp32.
    """

    meaning: str
    build: Callable
    cpu: Sizes
    cuda: Sizes
    quick: Sizes | None = None
    fuses: bool = False
    mixed: bool = False
    adamw: bool = False  # else plain SGD: the optimizer is nobody's subject here
    images: bool = False
    least_batch: int | None = None  # a batch of its own size in each step, from this one

    def sizes(self, device: str, quick: bool = False, shrink: int = 1, **asked: int | None) -> Sizes:
        """`asked`: what the command line says, None where it says nothing. `shrink` divides a GPU's width and tokens, and leaves 3 layers."""
        sizes = self.quick if quick and self.quick else self.cuda if device == "cuda" or shrink > 1 else self.cpu
        if shrink > 1:
            width = sizes.width // shrink if self.images else max(128, sizes.width // shrink // 128 * 128)
            tokens = max(16 if self.images else 32, sizes.tokens // shrink)
            sizes = Sizes(min(sizes.layers, 3), max(8, width), tokens, sizes.batch)
        return replace(sizes, **{name: value for name, value in asked.items() if value is not None})


def gpt(sizes: Sizes, fused: bool):
    from gpt import Gpt

    return Gpt(sizes.layers, sizes.width, sizes.tokens)


def llama(sizes: Sizes, fused: bool):
    from llama import Llama

    return Llama(sizes.layers, sizes.width, sizes.tokens, head_width=128 if sizes.width % 128 == 0 else 64, fused=fused)


def moe(sizes: Sizes, fused: bool):
    from moe import MixtureOfExperts

    return MixtureOfExperts(sizes.layers, sizes.width)


def conv(sizes: Sizes, fused: bool):
    from convnet import ConvNet

    return ConvNet(sizes.width, depth=sizes.layers)


def lora(sizes: Sizes, fused: bool):
    from lora import with_adapters

    return with_adapters(llama(sizes, fused))


LLAMA_ON_CPU = Sizes(4, 1024, 512, 2)
SUBJECTS = {
    "gpt": Subject(
        "the demo's GPT, fp32 with AdamW", gpt, Sizes(12, 768, 512, 4), Sizes(24, 1024, 1024, 8), Sizes(6, 384, 256, 4), mixed=True, adamw=True
    ),
    "llama-1b": Subject("blocks as in Llama 1B", llama, LLAMA_ON_CPU, Sizes(12, 2048, 4096, 2), Sizes(4, 512, 256, 2), fuses=True),
    "llama-7b": Subject("blocks as in Llama 7B, 4k tokens", llama, Sizes(2, 4096, 256, 1), Sizes(12, 4096, 4096, 1), fuses=True),
    "llama-7b-16k": Subject("blocks as in Llama 7B, 16k tokens", llama, Sizes(2, 1024, 2048, 1), Sizes(6, 4096, 16384, 1), fuses=True),
    "llama-7b-32k": Subject("blocks as in Llama 7B, 32k tokens", llama, Sizes(2, 512, 4096, 1), Sizes(4, 4096, 32768, 1), fuses=True),
    "llama-wide": Subject("Llama blocks of width 8192, 4k tokens", llama, Sizes(1, 4096, 256, 1), Sizes(4, 8192, 4096, 1), fuses=True),
    "llama-short": Subject("short sequences, where offload should lose", llama, Sizes(4, 1024, 64, 1), Sizes(12, 4096, 256, 1), fuses=True),
    "moe": Subject(
        "a mixture of experts; batches and experts' shares vary", moe, Sizes(6, 512, 256, 8), Sizes(8, 2048, 2048, 8), least_batch=4
    ),
    "conv": Subject("a residual convolutional net", conv, Sizes(1, 32, 96, 16), Sizes(2, 64, 256, 32), images=True),
    "lora": Subject("LoRA of rank 16 on Llama blocks", lora, LLAMA_ON_CPU, Sizes(12, 4096, 4096, 1), fuses=True),
}


def subject(name: str) -> Subject:
    if name not in SUBJECTS:
        raise cli.BadInput(f"no model {name!r}: there are {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


class ImageBatches:
    """Noise as images, with labels; the same for all that have the same seed."""

    def __init__(self, side: int, batch: int, seed: int, device, dtype):
        import torch

        self._torch, self._device, self._dtype = torch, device, dtype
        self._draw = torch.Generator().manual_seed(seed)
        self._batch, self._side = batch, side

    def next(self) -> tuple:
        from convnet import CLASSES, COLOURS

        images = self._torch.randn(self._batch, COLOURS, self._side, self._side, generator=self._draw)
        labels = self._torch.randint(CLASSES, (self._batch,), generator=self._draw)
        return images.to(self._device, self._dtype), labels.to(self._device)

    def peek(self) -> tuple:
        state = self._draw.get_state()
        batch = self.next()
        self._draw.set_state(state)
        return batch


def _built(chosen: Subject, sizes: Sizes, fused: bool, device, dtype):
    """Made where it will be, as it will be: several processes at once would not have room for fp32 first."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return chosen.build(sizes, fused)
    finally:
        torch.set_default_dtype(before)


def training_parts(name: str, sizes: Sizes, seed: int, on, fused: bool = False) -> tuple:
    """The model, its batches and its optimizer, on the device of `on`. Errors: BadInput where there is no text."""
    import torch

    from training import TextBatches

    chosen = subject(name)
    half = on.device.type == "cuda" and not chosen.mixed
    data = b"" if chosen.images else text.load_text(text.DEFAULT_TEXT, sizes.tokens)
    torch.manual_seed(seed)
    model = _built(chosen, sizes, fused, on.device, torch.bfloat16 if half else torch.float32)
    if chosen.images:
        batches = ImageBatches(sizes.tokens, sizes.batch, seed, on.device, torch.bfloat16 if half else torch.float32)
    else:
        batches = TextBatches(data, sizes.tokens, sizes.batch, seed, on.device, chosen.least_batch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4) if chosen.adamw else torch.optim.SGD(trained, lr=1e-3)
    return model, batches, optimizer
