"""The part `nvme`: the spill tier beside fio on the same disk in interleaved rounds, and beside other ways to put tensors on a disk.

Options after --: --size, --rounds, --folder, --peers.
"""

import importlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cli
import machine
import peers
from contender import Contender
from row import Row
from ways import Unavailable

GIB = 1 << 30
SLOWEST_PLAIN, SLOWEST_CHECKED = 0.98, 0.95  # of fio's speed
# Seconds a GiB. What bounds them, on two idle cores of an AMD EPYC with a virtio disk: a bare loop of io_uring over the same memory took 0.0035 in
# requests of 1 MiB and 0.0025 in requests of 4 MiB, a fifth of it telling the host; with memory not all in huge pages 0.008, and half the speed.
# Reading memory once took 0.026, XXH3 0.030 with AVX2 and 0.029 with AVX-512: memory is the limit. Beside other programs each is up to twice that.
CPU_PLAIN, CPU_CHECKED = 0.006, 0.11
SLOWEST_UNDER_LOAD = 3  # times the idle latency
PEER_ROUNDS = 3


def parse_arguments(options: list[str]):
    parser = cli.Parser(prog="nvme", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=cli.size, default="512MiB", help="bytes that each moves in a round (%(default)s)")
    parser.add_argument("--rounds", type=cli.positive, default=15, help="(%(default)s)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk to measure (%(default)s)")
    parser.add_argument("--peers", action="store_true", help=f"install {', '.join(peers.DISK_PEERS)} from PyPI into {peers.FOLDER.relative_to(machine.ROOT)} first")
    arguments = parser.parse_args(options)
    if not Path(arguments.folder).is_dir():
        raise cli.BadInput(f"--folder {arguments.folder}: no such folder")
    if arguments.size < 256 << 20:
        raise cli.BadInput("--size: 256 MiB at least, which is what is in flight")
    arguments.size = arguments.size // (16 << 20) * (16 << 20)
    return arguments


# ---- fio


def fio(file: Path, size: int, direction: str) -> dict[str, float]:
    """Seconds and CPU seconds of one pass over the file, whose blocks are there already but for the first time."""
    command = ["fio", "--name=x", f"--filename={file}", f"--size={size}", f"--rw={direction}", "--bs=1M", "--iodepth=256", "--ioengine=io_uring"]
    ran = subprocess.run([*command, "--direct=1", "--mem=mmap", "--fallocate=posix", "--output-format=json"], stdout=subprocess.PIPE, text=True, check=True)
    job = json.loads(ran.stdout)["jobs"][0]
    seconds = job[direction]["total_ios"] * (1 << 20) / job[direction]["bw_bytes"]
    return {"seconds": seconds, "cpu_seconds": (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000}


def fio_is_there() -> bool:
    try:
        return subprocess.run(["fio", "--version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


# ---- ratios


def interval(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """The ratio of their median time to ours, which is that of our speed to theirs, and its 95% bootstrap interval over rounds."""
    ratio = lambda rounds: statistics.median(theirs[i] for i in rounds) / statistics.median(ours[i] for i in rounds)  # noqa: E731
    rounds = range(len(ours))
    chance = random.Random(1)
    drawn = sorted(ratio(chance.choices(rounds, k=len(ours))) for _ in range(2000))
    return ratio(rounds), drawn[50], drawn[1949]


def ratio_rows(name: str, ours: list[float], theirs: list[float], least: float) -> Iterator[Row]:
    """Met where the interval reaches the goal."""
    ratio, low, high = interval(ours, theirs)
    yield Row("nvme", name, ratio, "x", f"{least:.4g} within {low:.3f} to {high:.3f}, or less", high >= least)


# ---- the tier and fio


def tier(name: str, size: int, *how: str) -> Contender:
    """A spill tier that has written `size` bytes when it is told so."""
    program = machine.ROOT / "build/bench/nvme_bench"
    if not program.exists():
        raise cli.BadInput(f"{program} is missing: `bash setup.sh` builds it")
    return Contender(name, [str(program), str(size), *how])


def measure(arguments, folder: str) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    """Of each contender and direction an answer a round, in an order of each round's own; and the latencies."""
    halves = [tempfile.mkdtemp(dir=folder) for _ in range(2)]
    with ExitStack() as stack:
        start = lambda name, *how: stack.enter_context(tier(name, arguments.size, *how))  # noqa: E731
        tiers = {"plain": start("plain", "plain", folder), "checksum": start("checksum", "checksum", folder)}
        tiers["two_folders"] = start("two_folders", "plain", *halves)
        for one in tiers.values():
            one.wait_ready()
            one.ask("write")  # the first of a place costs more
        ways: dict[str, Callable[[str], dict]] = {name: one.ask for name, one in tiers.items()}
        if fio_is_there():
            file = Path(folder) / "fio"
            fio(file, arguments.size, "write")
            ways["fio"] = lambda direction: fio(file, arguments.size, direction)
        answers: dict[str, list[dict]] = {}
        order = random.Random(1)
        for number in range(arguments.rounds):
            print(f"nvme: round {number + 1} of {arguments.rounds}", file=sys.stderr)
            for name in order.sample(list(ways), len(ways)):
                for direction in ("write", "read"):
                    answers.setdefault(f"{name}.{direction}", []).append(ways[name](direction))
        latencies = {"idle": [], "load": []}
        for _ in range(3):
            for load in latencies:
                latencies[load].append(tiers["checksum"].ask(load))
    return answers, {load: min(several, key=lambda one: one["median"]) for load, several in latencies.items()}


def tier_rows(arguments, answers: dict[str, list[dict]], latencies: dict[str, dict]) -> Iterator[Row]:
    gib = arguments.size / GIB
    seconds = {name: [one["seconds"] for one in several] for name, several in answers.items()}
    for name, several in seconds.items():
        yield Row("nvme", f"{name}", gib / statistics.median(several), "GiB/s")
    for direction in ("write", "read"):
        for name, least in (("plain", SLOWEST_PLAIN), ("checksum", SLOWEST_CHECKED)):
            if f"fio.{direction}" in seconds:
                yield from ratio_rows(f"{name}.{direction}.over_fio", seconds[f"{name}.{direction}"], seconds[f"fio.{direction}"], least)
        yield from ratio_rows(f"two_folders.{direction}.over_one", seconds[f"two_folders.{direction}"], seconds[f"plain.{direction}"], 1)
        for name, most in (("plain", CPU_PLAIN), ("checksum", CPU_CHECKED)):
            cpu = statistics.median(one["cpu_seconds"] for one in answers[f"{name}.{direction}"]) / gib
            yield Row.at_most("nvme", f"{name}.{direction}.cpu", cpu, "s/GiB", most)
        if f"fio.{direction}" in answers:
            yield Row("nvme", f"fio.{direction}.cpu", statistics.median(one["cpu_seconds"] for one in answers[f"fio.{direction}"]) / gib, "s/GiB")
    if "fio.write" not in seconds:
        yield Row("nvme", "fio (not installed)", None)
    for load, latency in latencies.items():
        for which, value in latency.items():
            yield Row("nvme", f"demand_read.{load}.{which}", 1000 * value, "ms")
    yield Row.at_most("nvme", "demand_read.load_over_idle", latencies["load"]["median"] / latencies["idle"]["median"], "x", SLOWEST_UNDER_LOAD)


# ---- other ways to put tensors on a disk


def flush(folder: str) -> None:
    """All that was written there is durable."""
    subprocess.run(["sync", "--file-system", folder], check=True)


def forget(file: Path) -> None:
    """What was read or written is not in memory."""
    with open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Ebbtide:
    """With checksums. Its file is there already, as it is from a training's second step on."""

    name = "ebbtide"

    def __init__(self, size: int, folder: str, stack: ExitStack):
        self.tier = stack.enter_context(tier(self.name, size, "checksum", folder))
        self.tier.wait_ready()
        self.tier.ask("write")

    def write(self, file: Path) -> None:
        self.tier.ask("write")

    def read(self, file: Path) -> bool:
        self.tier.ask("read")  # ends the program where bytes are wrong
        return True


class TorchSave:
    name = "torch.save"

    def __init__(self, size: int, *_):
        torch = importlib.import_module("torch")
        self.tensor = torch.arange(size // 4, dtype=torch.int32)
        self.torch = torch

    def write(self, file: Path) -> None:
        self.torch.save(self.tensor, file)

    def read(self, file: Path) -> bool:
        return bool(self.torch.equal(self.torch.load(file), self.tensor))


class SafeTensors(TorchSave):
    name = "safetensors"

    def __init__(self, size: int, *_):
        super().__init__(size)
        self.files = import_peer("safetensors", "safetensors.torch")

    def write(self, file: Path) -> None:
        self.files.save_file({"x": self.tensor}, file)

    def read(self, file: Path) -> bool:
        return bool(self.torch.equal(self.files.load_file(file)["x"], self.tensor))


class Memmap:
    name = "numpy.memmap"

    def __init__(self, size: int, *_):
        self.numpy = importlib.import_module("numpy")
        self.array = self.numpy.arange(size // 4, dtype="int32")

    def write(self, file: Path) -> None:
        mapped = self.numpy.memmap(file, "int32", "w+", shape=self.array.shape)
        mapped[:] = self.array
        mapped.flush()

    def read(self, file: Path) -> bool:
        return bool(self.numpy.array_equal(self.numpy.memmap(file, "int32", "r"), self.array))


class KvikIO(Memmap):
    """In compatibility mode: without GPUDirect Storage, and from and into host memory. It asks the CUDA driver whose memory it is given, all the same."""

    name = "kvikio"

    def __init__(self, size: int, *_):
        super().__init__(size)
        os.environ["KVIKIO_COMPAT_MODE"] = "ON"
        self.kvikio = import_peer("kvikio-cu13", "kvikio")
        version = peers.version("kvikio-cu13")
        try:
            with tempfile.NamedTemporaryFile() as file, self.kvikio.CuFile(file.name, "w") as opened:
                opened.write(self.array[:1024])
        except RuntimeError as error:
            raise Unavailable(f"{version}: {re.sub(r'^KvikIO failure at: [^ ]+ ', '', str(error).strip())}") from None

    def write(self, file: Path) -> None:
        with self.kvikio.CuFile(file, "w") as opened:
            opened.write(self.array)

    def read(self, file: Path) -> bool:
        into = self.numpy.empty_like(self.array)
        with self.kvikio.CuFile(file, "r") as opened:
            opened.read(into)
        return bool(self.numpy.array_equal(into, self.array))


def import_peer(name: str, module: str):
    """Of the environment, or of where --peers has put it."""
    sys.path.append(str(peers.FOLDER / name))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(str(error) if peers.version(name, peers.FOLDER) else "not installed: -- --peers does") from None


def peer_rows(size: int, folder: str) -> Iterator[Row]:
    """Durable when written and cold when read; the comparison with what was written is in the time, as our checksum is."""
    for make in (Ebbtide, TorchSave, SafeTensors, Memmap, KvikIO):
        with ExitStack() as stack:
            try:
                peer = make(size, folder, stack)
            except Unavailable as why:
                yield Row("nvme", f"{make.name} ({why})", None)
                continue
            yield from rows_of_peer(peer, size, folder)


def rows_of_peer(peer, size: int, folder: str) -> Iterator[Row]:
    seconds: dict[str, list[float]] = {"write": [], "read": []}
    file = Path(folder) / "peer"
    for _ in range(PEER_ROUNDS):
        begin = time.perf_counter()
        peer.write(file)
        flush(folder)
        seconds["write"].append(time.perf_counter() - begin)
        if file.exists():
            forget(file)
        begin = time.perf_counter()
        if not peer.read(file):
            raise SystemExit(f"nvme: {peer.name} returned other bytes")
        seconds["read"].append(time.perf_counter() - begin)
        file.unlink(missing_ok=True)
    for direction, several in seconds.items():
        yield Row("nvme", f"{peer.name}.{direction}", size / GIB / statistics.median(several), "GiB/s")


def rows(options: list[str]) -> Iterator[Row]:
    arguments = parse_arguments(options)
    if arguments.peers:
        peers.install(which=peers.DISK_PEERS)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="ebbtide-bench-") as folder:
        yield from tier_rows(arguments, *measure(arguments, folder))
        yield from peer_rows(arguments.size, folder)
