"""ebbtide.doctor(), its command, and `python -m ebbtide bench`."""

import json

import pytest
import torch

import ebbtide
from ebbtide import __main__, _bench_command


def test_measures_the_folders_it_is_given(tmp_path):
    found = ebbtide.doctor(tmp_path)
    (folder,) = found["folders"]
    assert folder["path"] == str(tmp_path) and folder["refused"] is None
    assert folder["write"] > 0 and folder["read"] > 0 and folder["free_bytes"] > 0
    assert found["memory"][0]["left_bytes"] >= 0 and found["device_budget_bytes"] > 0
    assert str(tmp_path) in str(found)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_said():
    found = ebbtide.doctor("/nowhere/at/all")
    assert found["folders"][0]["refused"] and found["folders"][0]["write"] is None
    assert any("/nowhere/at/all" in sentence for sentence in found["advice"])


def test_takes_folders_from_the_environment(monkeypatch):
    monkeypatch.setenv("EBBTIDE_SPILL_TO", "/nowhere/a:/nowhere/b")
    assert [folder["path"] for folder in ebbtide.doctor()["folders"]] == ["/nowhere/a", "/nowhere/b"]


def test_command(capsys):
    __main__.main(["doctor"])
    text = capsys.readouterr().out
    assert "host memory" in text and text.endswith("\n")
    __main__.main(["doctor", "--json", "/nowhere"])
    assert json.loads(capsys.readouterr().out)["folders"][0]["path"] == "/nowhere"


def test_command_says_what_it_measures(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("EBBTIDE_SPILL_TO", "/nowhere/a:/nowhere/b")
    link, *folders = ("cuda:0: ", "/nowhere/a: ", "/nowhere/b: ")
    for arguments, begins in ((["doctor"], (link, *folders)), (["doctor", "/nowhere/c", "--json"], (link, "/nowhere/c: ")), (["bench", "link"], (link,))):
        __main__.main(arguments)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == len(begins) and all(line.startswith(begin) for line, begin in zip(said, begins))


def run(capsys, *arguments):
    __main__.main([*map(str, arguments)])
    return capsys.readouterr().out


def test_bench_disk(tmp_path, capsys):
    (folder,) = json.loads(run(capsys, "bench", "disk", tmp_path, "--seconds", "0.05", "--json"))
    assert folder["path"] == str(tmp_path) and folder["write"] > 0 and folder["read"] > 0
    assert "/nowhere" in run(capsys, "bench", "disk", "/nowhere", "--seconds", "0.05")


def test_bench_link(capsys):
    devices = json.loads(run(capsys, "bench", "link", "--json"))
    assert all(device["link"] or device["refused"] for device in devices)
    assert len([device for device in devices if device["link"]]) == torch.cuda.device_count()


def test_bench_hooks(capsys, monkeypatch):
    monkeypatch.setattr(_bench_command, "_ROUNDS", 2)
    threads = torch.get_num_threads()
    found = json.loads(run(capsys, "bench", "hooks", "--json"))
    assert found["no hooks"]["forward_s"] > 0
    assert found["hooks in Python that do nothing"]["pack_s"] > 0
    assert set(found["a store in which all stays"]) == {"pack_s", "unpack_s"}
    assert torch.get_num_threads() == threads
    assert "a saved tensor adds" in run(capsys, "bench", "hooks")


@pytest.mark.parametrize("wrong", [["disk"], ["disk", "/tmp", "--seconds", "0"], ["disk", "/tmp", "--seconds", "nan"], ["moon"], []])
def test_bench_says_what_is_wrong(wrong, capsys):
    with pytest.raises(SystemExit) as exit:
        __main__.main(["bench", *wrong])
    assert exit.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
