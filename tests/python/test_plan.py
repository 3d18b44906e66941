"""Steps that repeat follow a plan made of the first ones. What is planned, and what changes under way, changes no bit."""

import copy
import json
import subprocess
import sys

import pytest
import torch

import ebbtide
import ebbtide.__main__ as command_line
from support import MIN_BYTES, MODELS, assert_same_bits, build, saved_bytes, train


def planned_store(model, x, budget, tmp_path, **options):
    bytes_ = int(budget * saved_bytes(copy.deepcopy(model), x))
    return ebbtide.Store(device_budget=bytes_, spill_to=tmp_path, min_bytes=MIN_BYTES, **options)


@pytest.mark.parametrize("budget", [0, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("name", MODELS)
def test_planned_steps_are_bitwise_those_of_plain(name, budget, tmp_path):
    model, x = build(name)
    reference = train(copy.deepcopy(model), x, steps=7)
    store = planned_store(model, x, budget, tmp_path, verify=True)
    assert_same_bits(train(copy.deepcopy(model), x, lambda: store, steps=7), reference)

    stats, last, plan = store.stats(), store.last_pass(), store.plan()
    assert stats["plans"] >= 2  # one of the second pass, one of the medians of three
    assert 0 < stats["lower_bound_step_s"] <= stats["predicted_step_s"]
    assert stats["measured_step_s"] > 0
    assert len(plan) == last["saved_tensors"]
    assert sum(record["bytes"] for record in plan) == last["saved_bytes"]
    assert {record["action"] for record in plan} <= {"keep", "offload", "spill", "recompute"}
    assert all(record["why"] and record["device"] for record in plan)
    assert "predicted to take" in store.report()


def test_what_fits_is_not_planned_for(tmp_path):
    model, x = build("mlp")
    store = planned_store(model, x, 2, tmp_path)
    train(copy.deepcopy(model), x, lambda: store, steps=5)
    assert store.stats()["plans"] == 0
    assert store.plan() == []
    assert "predicted" not in store.report()


def test_shapes_that_alternate_and_a_pass_without_backward(tmp_path):
    model, x = build("transformer")
    other = torch.randn(4, 48, 64)
    store = planned_store(model, x, 0.1, tmp_path)
    plain, stored = copy.deepcopy(model), copy.deepcopy(model)
    for step in range(12):
        batch = x if step % 2 == 0 else other
        torch.manual_seed(step)
        expected = plain(batch).pow(2).mean()
        torch.manual_seed(step)
        with store:
            loss = stored(batch).pow(2).mean()
        if step == 7:
            del loss  # a pass that is dropped
            with torch.no_grad(), store:
                stored(x)
            continue
        for m, l in ((plain, expected), (stored, loss)):
            m.zero_grad()
            l.backward()
        assert_same_bits([p.grad for p in stored.parameters()], [p.grad for p in plain.parameters()])
    assert store.stats()["plans"] >= 4
    assert len(store.plan()) == store.last_pass()["saved_tensors"]


def test_a_shape_that_is_new_in_every_step(tmp_path):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64), torch.nn.LayerNorm(64))
    store = ebbtide.Store(device_budget="64KiB", spill_to=tmp_path, min_bytes=MIN_BYTES)
    stored = copy.deepcopy(model)
    for rows in (64, 150, 333, 90, 512, 77, 260, 401, 64, 1000, 64, 65):
        x = torch.randn(rows, 64)
        model.zero_grad()
        stored.zero_grad()
        model(x).sum().backward()
        with store:
            loss = stored(x).sum()
        loss.backward()
        assert_same_bits([p.grad for p in stored.parameters()], [p.grad for p in model.parameters()])
    assert store.stats()["device"]["bytes"] == 0


def test_a_budget_that_holds_two_micro_batches(tmp_path):
    model, x = build("mlp")
    store = planned_store(model, x, 0.5, tmp_path)
    plain, stored = copy.deepcopy(model), copy.deepcopy(model)
    for _ in range(6):
        for m, context in ((plain, None), (stored, store)):
            m.zero_grad()
            losses = []
            for half in (x[:32], x[32:]):
                if context is None:
                    losses.append(m(half).sum())
                else:
                    with context:
                        losses.append(m(half).sum())
            for loss in losses:
                loss.backward()
        assert_same_bits([p.grad for p in stored.parameters()], [p.grad for p in plain.parameters()])


def test_a_profile_is_saved(tmp_path):
    model, x = build("mlp")
    store = planned_store(model, x, 0.2, tmp_path)
    with pytest.raises(ebbtide.ConfigError, match="no pass of this store has had a backward"):
        store.save_profile(tmp_path / "early.json")
    train(copy.deepcopy(model), x, lambda: store, steps=5)
    store.save_profile(tmp_path / "profile.json")
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert len(profile["records"]) == store.last_pass()["saved_tensors"]
    assert any(record["op"] for record in profile["records"])
    with pytest.raises(ebbtide.ConfigError, match="No such file or directory"):
        store.save_profile(tmp_path / "no" / "such" / "folder.json")


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """Of a transformer that is short of memory: it knows recipes, and a disk."""
    folder = tmp_path_factory.mktemp("profile")
    model, x = build("transformer")
    store = planned_store(model, x, 0.2, folder)
    train(copy.deepcopy(model), x, lambda: store, steps=5)
    store.save_profile(folder / "profile.json")
    return folder / "profile.json", store.stats(), store.plan()


@pytest.fixture
def what_if(capsys):
    """`python -m ebbtide plan ...` in this process; its stdout."""

    def what_if(*arguments):
        command_line.main(["plan", *map(str, arguments)])
        return capsys.readouterr().out

    return what_if


def test_a_what_if_says_what_the_store_would_plan(profile, what_if):
    path, stats, plan = profile
    (answer,) = json.loads(what_if(path, "--device-budget", stats["device"]["budget_bytes"], "--json"))["answers"]
    (device,) = answer["devices"]
    assert device["budget_bytes"] == stats["device"]["budget_bytes"]
    assert device["saved_bytes"] == sum(record["bytes"] for record in plan)
    assert device["over_bytes"] == 0
    assert answer["compute_s"] <= answer["lower_bound_s"] <= answer["step_s"]
    assert [record["bytes"] for record in answer["records"]] == [record["bytes"] for record in plan]
    assert {record["action"] for record in answer["records"]} - {"keep"}


def test_a_what_if_without_a_budget_is_a_table(profile, what_if):
    path, stats, plan = profile
    answers = json.loads(what_if(path, "--json"))["answers"]
    saved = sum(record["bytes"] for record in plan)
    assert [answer["devices"][0]["budget_bytes"] for answer in answers] == [int(saved * share) for share in (1, 0.75, 0.5, 0.3, 0.2, 0.1, 0.05, 0)]
    assert answers[0]["step_s"] == answers[0]["compute_s"]
    assert answers[-1]["step_s"] > answers[0]["step_s"]
    lines = what_if(path).splitlines()
    assert len(lines) == 2 + 8 and lines[1].startswith("device_budget") and lines[2].startswith("100%") and lines[9].startswith("  0%")


def test_a_what_if_of_another_machine(profile, what_if):
    path, _, _ = profile
    options = ("--device-budget", "5%", "--no-recompute", "--json")
    fast, slow = (json.loads(what_if(path, *options, "--disk-write", speed, "--disk-read", speed))["answers"][0] for speed in ("50GB/s", "50MB/s"))
    assert slow["step_s"] > fast["step_s"]
    assert fast["recompute_s"] == 0 and fast["spill_peak_bytes"] > 0
    text = what_if(path, "--device-budget", "5%")
    assert "what becomes of it" in text and "no plan takes less than" in text
    nowhere = what_if(path, "--device-budget", 0, "--spill-budget", 0)
    assert "this budget cannot be held" in nowhere


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["missing.json"], "missing.json: No such file or directory"),
        (["other.json"], "other.json: this is no profile of ebbtide"),
        (["newer.json"], "its format is 'ebbtide profile 2', not 'ebbtide profile 1'"),
        (["PROFILE", "--device-budget", "lots"], "device_budget='lots' is not valid: accepted is a size"),
        (["PROFILE", "--host-budget", "-1"], "host_budget='-1' is not valid"),
        (["PROFILE", "--disk-write", "fast"], "disk_write='fast' is not valid: accepted is bytes a second"),
        (["PROFILE", "--link-bandwidth", "25GB/s"], "link_bandwidth: there is no link"),
        (["PROFILE", "--sideways"], "--sideways"),
        ([], "PROFILE"),
    ],
)
def test_a_what_if_that_makes_no_sense_is_one_line(profile, tmp_path, monkeypatch, capsys, arguments, says):
    (tmp_path / "other.json").write_text("{\n}\n")
    (tmp_path / "newer.json").write_text(profile[0].read_text().replace("ebbtide profile 1", "ebbtide profile 2"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command_line.main(["plan", *(str(profile[0]) if argument == "PROFILE" else argument for argument in arguments)])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("python -m ebbtide"), err
    assert says in err


def test_the_command_line_from_a_shell(profile):
    command = [sys.executable, "-m", "ebbtide", "plan"]
    assert "device_budget" in subprocess.run([*command, str(profile[0])], text=True, capture_output=True, check=True).stdout
    assert subprocess.run([*command, "missing.json"], capture_output=True).returncode == 2


@pytest.mark.parametrize("budget", [0, 0.2])
@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_plan_is_followed_from_the_first_step_on(name, budget, tmp_path):
    model, x = build(name)
    learned = planned_store(model, x, budget, tmp_path)
    train(copy.deepcopy(model), x, lambda: learned, steps=5)
    learned.save_plan(tmp_path / "plan.json")
    reference = train(copy.deepcopy(model), x, steps=3)

    store = planned_store(model, x, budget, tmp_path, plan=tmp_path / "plan.json", verify=True)
    trained = copy.deepcopy(model)
    first = train(trained, x, lambda: store, steps=1)
    assert_same_bits(first, reference[: len(first)])
    assert [record["action"] for record in store.plan()] == [record["action"] for record in learned.plan()]
    assert store.stats()["predicted_step_s"] > 0
    assert f"the plan is frozen, from {tmp_path / 'plan.json'}\n" in store.report()

    assert_same_bits(train(copy.deepcopy(model), x, lambda: store, steps=3), reference)
    assert store.stats()["plans"] == 0
    assert store.stats()["device"]["bytes"] == 0


@pytest.mark.parametrize("budget", [0, 0.05, 0.6])
def test_a_frozen_plan_for_another_budget_and_without_recompute(budget, tmp_path):
    model, x = build("transformer")
    learned = planned_store(model, x, 0.3, tmp_path)
    train(copy.deepcopy(model), x, lambda: learned, steps=5)
    learned.save_plan(tmp_path / "plan.json")
    reference = train(copy.deepcopy(model), x, steps=3)
    for recompute in (True, False):
        store = planned_store(model, x, budget, tmp_path, plan=tmp_path / "plan.json", recompute=recompute, verify=True)
        assert_same_bits(train(copy.deepcopy(model), x, lambda: store, steps=3), reference)
        kept = sum(record["bytes"] for record in store.plan() if record["action"] == "keep" and "else" not in record["why"])
        assert kept <= store.stats()["device"]["budget_bytes"]
        assert recompute or store.last_pass()["recomputed_tensors"] == 0


def test_a_frozen_plan_of_another_model_is_not_followed(tmp_path, monkeypatch):
    model, x = build("mlp")
    learned = planned_store(model, x, 0.2, tmp_path)
    with pytest.raises(ebbtide.ConfigError, match="no plan is in force"):
        learned.save_plan(tmp_path / "early.json")
    train(copy.deepcopy(model), x, lambda: learned, steps=5)
    learned.save_plan(tmp_path / "plan.json")
    model, x = build("conv")
    monkeypatch.setenv("EBBTIDE_PLAN", str(tmp_path / "plan.json"))
    store = planned_store(model, x, 0.2, tmp_path)
    assert_same_bits(train(copy.deepcopy(model), x, lambda: store, steps=4), train(copy.deepcopy(model), x, steps=4))
    assert store.plan() == [] and store.stats()["plans"] == 0
    assert "followed none" in store.report()


def test_a_plan_file_that_is_none_is_an_error_that_names_it(tmp_path):
    for content in (None, "", "{}", '{"format":"ebbtide plan 2"'):
        path = tmp_path / "plan.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ebbtide.ConfigError, match=f"plan='{path}' is not valid: accepted is a file that save_plan wrote"):
            ebbtide.Store(plan=path)
