"""compare.sh: its parts, and itself from end to end with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

import cli  # noqa: E402
import comparison  # noqa: E402
import contenders  # noqa: E402
import device  # noqa: E402
import peers  # noqa: E402
import subjects  # noqa: E402
import ways  # noqa: E402
from competition import Conditions, Outcome, Result  # noqa: E402

SIZES = subjects.Sizes(layers=2, width=128, tokens=64, batch=2)


def run(program, *options):
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'build/python'}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, BENCH / program, *options], capture_output=True, text=True, env=environment, timeout=600)


def test_compare_end_to_end(tmp_path):
    figures = tmp_path / "figures.json"
    options = ["--device=cpu", "--quick", "--layers=2", "--width=128", "--tokens=128", "--warmup=2", "--steps=2", f"--spill={tmp_path}", f"--json={figures}"]
    ran = run("compare.py", *options, "--contenders=checkpoint,torchtune,swap,ebbtide_10")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(figures.read_text())
    assert {"machine", "commit", "torch", "peers", "models", "rows"} <= set(result)
    (model,) = result["models"]
    entries = {entry["name"]: entry for entry in model["contenders"]}
    assert set(entries) == {"plain", "checkpoint", "torchtune", "swap", "ebbtide_10"}
    for name in ("plain", "checkpoint", "ebbtide_10"):
        assert entries[name]["exit"] == "ok" and len(entries[name]["step_s"]) == 4
        assert entries[name]["over_plain"] > 0 and entries[name]["peak_rss_bytes"] > entries[name]["memory_bytes"] > 0
    assert entries["plain"]["over_plain"] == 1
    assert entries["checkpoint"]["bitwise_equal"] is entries["ebbtide_10"]["bitwise_equal"] is True
    assert entries["ebbtide_10"]["budget_bytes"] == model["saved_bytes"] // 10
    assert entries["ebbtide_10"]["moved"]["disk_write"] > 0
    for name in ("torchtune", "swap"):
        assert entries[name]["exit"] == "unavailable" and entries[name]["reason"]
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["ebbtide_10.bitwise_equal"]["met"] is True and rows["checkpoint.over_plain"]["value"] > 0
    text = (tmp_path / "figures.md").read_text()
    assert "| Ebbtide 10% |" in text and comparison.NOT_MEASURED in text
    for picture in ("figures-gpt.png", "figures-step.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options, word",
    [
        (["--models=gpt,no-such"], "no-such"),
        (["--contenders=no-such"], "no-such"),
        (["--budgets=10,many"], "'many'"),
        (["--quick", "--full"], "one of them"),
        (["--largest"], "--memory"),
        (["--json=/no/such/folder/x.json"], "--json"),
        (["--spill=/no/such/folder"], "--spill"),
    ],
)
def test_compare_refuses_bad_input_in_one_line(options, word):
    refused = run("compare.py", "--device=cpu", *options)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.count("\n") == 1 and word in refused.stderr


@pytest.mark.parametrize("name", subjects.SUBJECTS)
def test_every_model_learns_from_its_batches(name):
    sizes = SIZES if name != "conv" else subjects.Sizes(1, 8, 16, 2)
    on = device.StepOn("cpu")
    model, batches, optimizer = subjects.training_parts(name, sizes, 0, on)
    seen, batch = batches.peek(), batches.next()
    assert all(torch.equal(a, b) for a, b in zip(seen, batch, strict=True))
    model(*batch).backward()
    optimizer.step()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert len(model.blocks) >= 1


@pytest.mark.parametrize("way", [ways.checkpoint, ways.selective, ways.save_on_cpu, ways.checkpoint_save_on_cpu])
def test_ways_of_torch_change_no_bit(way, tmp_path):
    def gradients(way):
        model, batches, _ = subjects.training_parts("llama-1b", SIZES, 0, device.StepOn("cpu"))
        with way(model, ways.Where("cpu", None, str(tmp_path), tmp_path)).around():
            loss = model(*batches.next())
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(way), gradients(ways.plain), strict=True))


@pytest.mark.parametrize("way", [peers.torchtune, peers.trl, peers.transformers, peers.trainstream, peers.axolotl_disk])
def test_a_peer_that_is_not_installed_says_so(way, tmp_path):
    with pytest.raises(ways.Unavailable, match="is not installed: --peers does"):
        way(None, ways.Where("cuda", None, str(tmp_path), tmp_path))


def test_one_bit_changes_the_digest_of_a_device():
    gradients = [torch.randn(device.CHUNK + 3).bfloat16(), torch.randn(7, 9)]
    before = device.bits_on_device(torch.tensor(1.0), gradients)
    assert before == device.bits_on_device(torch.tensor(1.0), gradients)
    gradients[0].view(torch.int16)[device.CHUNK + 1] ^= 1
    assert before != device.bits_on_device(torch.tensor(1.0), gradients)
    gradients[0].view(torch.int16)[device.CHUNK + 1] ^= 1
    gradients[1][[0, 1]] = gradients[1][[1, 0]]
    assert before != device.bits_on_device(torch.tensor(1.0), gradients)


def test_ratios_are_of_steps_side_by_side():
    conditions = Conditions("gpt", SIZES, "cpu", "/tmp", warmup=1, steps=3)
    table = contenders.table([0.1])
    plain, slow = (Result(table[name], steps=[{"seconds": 9.0}], over_plain=list(over)) for name, over in (("plain", [1, 1, 1]), ("checkpoint", [1.5, 1.2, 1.3])))
    plain.steps += [{"seconds": 2.0}] * 3
    outcome = Outcome(conditions, 1, {"plain": plain, "checkpoint": slow})
    assert comparison.over_plain(slow) == 1.3
    assert comparison.tokens_per_s(outcome, slow) == pytest.approx(2 * 64 / 2.6)


def test_budgets_are_shares():
    assert contenders.budgets("5,12.5%,auto") == [0.05, 0.125, "auto"]
    assert "ebbtide_12.5" in contenders.table(contenders.budgets("12.5"))
    with pytest.raises(cli.BadInput):
        contenders.budgets("120")


@pytest.mark.parametrize("limit", [0, 1, 3, 4, 5, 6, 15, 16, 100])
def test_the_largest_batch_is_found_by_halving(limit):
    import largest

    tried = []
    assert largest.search(lambda batch: tried.append(batch) or batch <= limit, start=4) == limit
    assert len(tried) <= 12 and len(set(tried)) == len(tried)
