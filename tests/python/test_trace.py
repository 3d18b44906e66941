"""`save_trace` on a model, and what `python -m ebbtide trace` makes of it."""

import copy
import json

import pytest
import torch

import ebbtide
import ebbtide.__main__ as command_line
from support import MIN_BYTES, assert_same_bits, build, train


def traced(tmp_path, steps=2, **options):
    model, x = build("transformer")
    reference = train(copy.deepcopy(model), x, steps=steps)
    path = tmp_path / "trace.json"
    store = ebbtide.Store(device_budget="64KiB", spill_to=tmp_path, min_bytes=MIN_BYTES, **options)
    store.save_trace(path, steps=steps)
    assert_same_bits(train(copy.deepcopy(model), x, lambda: store, steps=steps), reference)
    return store, path


def run(capsys, *arguments):
    command_line.main(["trace", *map(str, arguments)])
    return capsys.readouterr().out


def test_a_trace_holds_what_the_statistics_count(tmp_path, capsys):
    store, path = traced(tmp_path)
    summary = json.loads(run(capsys, path, "--json"))
    stats = store.stats()
    assert len(summary["passes"]) == stats["passes"] == 2
    assert all(one["forward_s"] > 0 and one["backward_s"] > 0 for one in summary["passes"])
    assert summary["calls"]["pack"]["times"] == stats["packed"]["tensors"] - stats["passed_through"]["tensors"]
    assert summary["transfers"]["disk write"]["bytes"] > 0
    assert 0 < summary["peak_bytes"]["device"] <= stats["device"]["peak_bytes"]
    waited = sum(total["seconds"] for total in summary["waits"].values())
    times = sum(total["times"] for total in summary["waits"].values())
    assert waited == pytest.approx(stats["stall_s"], abs=2e-6 * times)  # a trace is in whole microseconds


def test_its_text_names_passes_and_transfers(tmp_path, capsys):
    _, path = traced(tmp_path)
    text = run(capsys, path)
    assert "trace.json: 2 passes" in text
    assert "disk write" in text
    assert "Backward0" in text  # the ops that were run again


def test_stalls_have_causes_in_statistics_and_report(tmp_path):
    store, _ = traced(tmp_path)
    stats = store.stats()
    assert sum(waits["seconds"] for waits in stats["stalls"].values()) == pytest.approx(stats["stall_s"])
    assert set(stats["stalls"]) <= {"room", "host room", "copies", "return", "close"}
    if "return" in stats["stalls"]:
        assert "for what was asked for before it was back" in store.report()


def test_stalls_are_charged_to_regions(tmp_path):
    store = ebbtide.Store(device_budget=0, recompute=False, spill_to=tmp_path)
    x = torch.randn(1 << 18, requires_grad=True)
    with store, ebbtide.region("waves"):
        y = x.sin().sin().sin()
    y.sum().backward()
    stats = store.stats()
    assert set(stats["stalled_regions"]) == {"waves"}
    assert stats["stalled_regions"]["waves"]["seconds"] == pytest.approx(stats["stall_s"])
    assert "in waves" in store.report()
    store.close()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"traceEvents": 3}', '{"traceEvents": [{}]}'])
def test_a_file_that_is_no_trace_is_one_clear_error(text, tmp_path, capsys):
    path = tmp_path / "no_trace.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        run(capsys, path)
    assert stopped.value.code == 2
    assert "is no trace" in capsys.readouterr().err


def test_wrong_arguments(tmp_path, capsys):
    store = ebbtide.Store()
    with pytest.raises(ebbtide.ConfigError, match="accepted is 1 or more"):
        store.save_trace(tmp_path / "trace.json", steps=0)
    with pytest.raises(ebbtide.ConfigError, match="cannot write"):
        store.save_trace(tmp_path / "nowhere" / "trace.json")
    with pytest.raises(SystemExit):
        run(capsys, tmp_path / "missing.json")
    assert "No such file" in capsys.readouterr().err
