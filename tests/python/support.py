"""What the Python tests share: small models, and runs that are compared to the last bit."""

import contextlib

import torch
from torch import nn

MIN_BYTES = 4096  # the smallest a store moves: the models here are small
SIZE = 4096  # floats: 16 KiB, over MIN_BYTES


def leaf(seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator).requires_grad_()


def chain(x):
    return ((x * 2).sin().exp().cos() * x.tanh()).sum()


def gradient(function, *inputs, **options):
    return torch.autograd.grad(function(*inputs), inputs, **options)


class Square(torch.autograd.Function):
    """A custom function that saves both what came in and what it made."""

    @staticmethod
    def forward(ctx, x):
        y = x * x
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * 2 * x + 0 * y


class CustomFunctionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 64)

    def forward(self, x):
        return self.second(Square.apply(torch.tanh(self.first(x))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(32, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 8)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def mlp():
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 256), nn.ReLU(inplace=True), nn.Linear(256, 16))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(10)
    )


def transformer():
    layer = nn.TransformerEncoderLayer(64, 4, dim_feedforward=256, dropout=0.1, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


# name -> (make the model, make its input)
MODELS = {
    "mlp": (mlp, lambda: torch.randn(64, 64)),
    "conv": (convolutional, lambda: torch.randn(8, 3, 24, 24)),
    "lstm": (Recurrent, lambda: torch.randn(8, 24, 32)),
    "transformer": (transformer, lambda: torch.randn(4, 32, 64)),
    "custom_function": (CustomFunctionNet, lambda: torch.randn(64, 64)),
}


def build(name):
    """The model and its input, the same each time."""
    torch.manual_seed(1)
    make_model, make_input = MODELS[name]
    model, x = make_model(), make_input()
    with torch.no_grad():
        model(x)  # lazy layers take their shapes
    return model, x


def train(model, x, context=contextlib.nullcontext, steps=2):
    """Losses and gradients of a few steps of SGD; the forward under `context()`."""
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        with context():
            loss = model(x).pow(2).mean()
        loss.backward()
        seen.append(loss.detach().clone())
        seen.extend(p.grad.clone() for p in model.parameters())
        optimizer.step()
    return seen


def same_bits(a, b):
    """Equal shape, dtype and bytes: NaN equals itself, and -0.0 is not 0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.numel() == 0:
        return True
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def assert_same_bits(run, reference):
    assert len(run) == len(reference)
    for index, (a, b) in enumerate(zip(run, reference)):
        assert same_bits(a, b), f"tensor {index} differs, shape {tuple(b.shape)}"


def assert_as_plain(store, run):
    """That `run(scope)`, with its forward under `scope`, returns with the store what it returns without, to the last bit; and that the store had something to do."""
    before = store.stats()["saved"]["tensors"]
    reference = run(contextlib.nullcontext())
    assert_same_bits(run(contextlib.nullcontext()), reference)  # else "the same as plain" would mean nothing
    assert_same_bits(run(store), reference)
    assert store.stats()["saved"]["tensors"] > before


def saved_bytes(model, x):
    """Bytes of the distinct storages that one pass saves and that may move."""
    import ebbtide

    with ebbtide.Store(device_budget="1TiB", min_bytes=MIN_BYTES) as store:
        loss = model(x).pow(2).mean()
    loss.backward()
    return store.stats()["saved"]["bytes"]
