"""Weights in every form in which models have them: tied, viewed, computed from others, frozen, cast, freed and given back."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import ebbtide
from support import MIN_BYTES, assert_as_plain, leaf


class Tied(nn.Module):
    """One matrix as embedding and as head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 64)
        self.inner = nn.Linear(64, 64)
        self.head = nn.Linear(64, 256, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.inner(self.embedding(ids)).tanh())


class Viewed(nn.Module):
    """Its matrices are views of one flat parameter, as in flat-parameter sharding and fused kernels."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Parameter(torch.randn(3 * 64 * 64) / 8)

    def forward(self, x):
        first, second, third = self.flat.view(3, 64, 64).unbind()
        return (x @ first).sin() @ second.t() @ third.detach() + x @ third


class Shared(nn.Module):
    """One layer called many times."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        for _ in range(6):
            x = self.layer(x).tanh()
        return x


class LowRank(nn.Module):
    """A frozen layer, and a small trained one beside it."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(64, 256).requires_grad_(False)
        self.down, self.up = nn.Linear(64, 8, bias=False), nn.Linear(8, 256, bias=False)

    def forward(self, x):
        return self.frozen(x) + self.up(self.down(x))


def linear(wrap=lambda layer: layer):
    return nn.Sequential(wrap(nn.Linear(64, 128)), nn.GELU(), wrap(nn.Linear(128, 64)))


class Doubled(nn.Module):
    def forward(self, weight):
        return weight + weight.tanh()


def own_parametrisation(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def pruned(layer):
    from torch.nn.utils import prune

    return prune.l1_unstructured(layer, "weight", 0.3)


def lora():
    return nn.Sequential(LowRank(), nn.GELU(), nn.Linear(256, 64).requires_grad_(False))


def rows():
    return torch.randn(64, 64)


def ids():
    return torch.randint(256, (8, 32))


# name -> (make the model, make its input)
MODELS = {
    "tied": (Tied, ids),
    "views of one parameter": (Viewed, rows),
    "one layer six times": (Shared, rows),
    "weight norm": (lambda: linear(parametrizations.weight_norm), rows),
    "weight norm by hooks": (lambda: linear(nn.utils.weight_norm), rows),
    "spectral norm": (lambda: linear(parametrizations.spectral_norm), rows),
    "orthogonal": (lambda: linear(parametrizations.orthogonal), rows),
    "own parametrisation": (lambda: linear(own_parametrisation), rows),
    "pruned": (lambda: linear(pruned), rows),
    "frozen bases": (lora, rows),
}


def steps_of(model, x, scope, optimizer=torch.optim.SGD, around=contextlib.nullcontext):
    """Gradients of three steps; each forward under `scope`, each step in `around()`."""
    trained = [p for p in model.parameters() if p.requires_grad]
    update = optimizer(trained, lr=0.05)
    seen = []
    for _ in range(3):
        update.zero_grad()
        with around():
            with scope:
                loss = model(x).float().pow(2).mean()
            loss.backward()
        seen.extend(p.grad.clone() for p in trained)
        update.step()
    return seen


@pytest.mark.parametrize("attached", [False, True], ids=["", "attached"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_gradients_are_those_of_plain(store, name, attached):
    make_model, make_input = MODELS[name]

    def run(scope):
        torch.manual_seed(0)
        model, x = make_model(), make_input()
        if attached and scope is store:
            with store.attach(model):
                return steps_of(model, x, contextlib.nullcontext())
        return steps_of(model, x, scope)

    assert_as_plain(store, run)


@pytest.mark.parametrize("attached", [False, True], ids=["", "attached"])
@pytest.mark.parametrize("name", ["tied", "one layer six times", "frozen bases", "weight norm"])
def test_the_casts_that_autocast_keeps(store, name, attached):
    """A weight's copy in bfloat16 is made once and saved by each use; autocast holds it until it ends."""
    make_model, make_input = MODELS[name]

    def run(scope):
        torch.manual_seed(0)
        model, x = make_model(), make_input()
        around = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
        if attached and scope is store:
            with store.attach(model):
                return steps_of(model, x, contextlib.nullcontext(), around=around)
        return steps_of(model, x, scope, around=around)

    assert_as_plain(store, run)


def test_cached_parametrisations(store):
    """The weight is computed once for several uses."""

    def run(scope):
        torch.manual_seed(0)
        layer = parametrizations.weight_norm(nn.Linear(64, 64))
        x = rows()
        with scope, nn.utils.parametrize.cached():
            y = layer(layer(layer(x).tanh()).tanh()).pow(2).sum()
        y.backward()
        return [p.grad for p in layer.parameters()]

    assert_as_plain(store, run)


def test_a_weight_that_is_swapped_between_forward_and_backward(store):
    """`weight.data = other`, as loaders and quantisers do: what was saved is the old memory, in torch too."""

    def run(scope):
        torch.manual_seed(0)
        layer, x = nn.Linear(64, 64), leaf()
        with scope:
            y = layer((x * 2).view(64, 64)).sin().pow(2).sum()
        layer.weight.data = torch.zeros_like(layer.weight)
        y.backward()
        return [x.grad, layer.weight.grad]

    assert_as_plain(store, run)


class BeforeItsBackward(torch.autograd.Function):
    """Calls `function` when the gradient passes here."""

    @staticmethod
    def forward(ctx, x, function):
        ctx.function = function
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.function()
        return grad, None


def freed_and_given_back(scope):
    """As FSDP2 does with unsharded parameters: once a layer has run, the storages of its weight and bias are resized to nothing behind every
    view that was saved of them, and filled again before its backward."""
    torch.manual_seed(0)
    shards = [(torch.randn(64, 64) / 8, torch.randn(64)) for _ in range(4)]
    layers = [tuple(shard.clone().requires_grad_() for shard in layer) for layer in shards]

    def gather(i):
        for whole, shard in zip(layers[i], shards[i], strict=True):
            with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(whole):
                whole.untyped_storage().resize_(shard.untyped_storage().nbytes())
                whole.copy_(shard)

    def free(i):
        for whole in layers[i]:
            whole.untyped_storage().resize_(0)

    for i in range(4):
        free(i)
    x = leaf()
    with scope:
        hidden = (x * 2).view(64, 64)
        for i, (weight, bias) in enumerate(layers):
            gather(i)
            hidden = BeforeItsBackward.apply(F.linear(hidden.sin(), weight, bias), lambda i=i: gather(i))
            free(i)
        y = hidden.pow(2).sum()
    y.backward()
    return [x.grad, *(tensor.grad for layer in layers for tensor in layer)]


def test_storages_that_are_freed_after_the_forward_and_back_in_the_backward(store):
    assert_as_plain(store, freed_and_given_back)


def test_a_freed_storage_is_not_read_for_a_recipe(one_thread):
    """Where nothing can leave, matmuls are run again, and their biases copied for that: those that are there."""
    store = ebbtide.Store(device_budget=0, on_full="keep", min_bytes=MIN_BYTES)
    assert_as_plain(store, freed_and_given_back)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """A process group of this process alone."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    rendezvous = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield distributed
    distributed.destroy_process_group()


@pytest.mark.parametrize("reshard", [True, False], ids=["resharded", "kept whole"])
def test_fully_sharded(store, one_rank, reshard):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))

    def run(scope):
        torch.manual_seed(0)
        model, x = nn.Sequential(*(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(3))), rows()
        for block in model:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
        return [gradient.to_local() for gradient in steps_of(model, x, scope)]

    assert_as_plain(store, run)


@pytest.mark.parametrize("original", [True, False], ids=["original parameters", "flat parameters"])
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")  # of one rank
def test_flat_parameters(store, one_rank, original):
    """FullyShardedDataParallel lays parameters into one, of which modules read views."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    def run(scope):
        torch.manual_seed(0)
        blocks = (nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(3))
        wrapped = [FullyShardedDataParallel(block, use_orig_params=original, device_id=torch.device("cpu")) for block in blocks]
        model = FullyShardedDataParallel(nn.Sequential(*wrapped), use_orig_params=original, device_id=torch.device("cpu"))
        return steps_of(model, rows(), scope)

    assert_as_plain(store, run)


def test_data_parallel(store, one_rank):
    """DistributedDataParallel's gradients are views of its buckets."""

    def run(scope):
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(linear(), gradient_as_bucket_view=True)
        return steps_of(model, rows(), scope)

    assert_as_plain(store, run)


def test_distributed_tensors(store, one_rank):
    """A DTensor's inner tensor is torch's own business: it stays."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (1,))

    def run(scope):
        x = DTensor.from_local(leaf().detach().view(64, 64), mesh, [Shard(0)]).requires_grad_()
        plain = leaf(1)
        with scope:
            y = (x.sin() * x.exp()).sum().to_local() + (plain * 2).sin().sum()
        y.backward()
        return [x.grad.to_local(), plain.grad]

    assert_as_plain(store, run)
