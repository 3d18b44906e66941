"""Arrows point down: who may include whom, and only hooks/ knows torch."""

import re
from pathlib import Path

import pytest

# A room, and the rooms whose headers its files may include.
MAY_INCLUDE = {
    "pinned_pool": {"pinned_pool"},
    "nvme": {"nvme", "pinned_pool"},
    "transfer": {"transfer", "pinned_pool"},
    "store": {"store", "transfer", "nvme", "pinned_pool"},
    "hooks": {"hooks", "store", "transfer", "nvme", "pinned_pool"},
}
UMBRELLAS = {"core.h": "store", "ebbtide.h": "hooks"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
TORCH = re.compile(r"^(torch|ATen|c10|caffe2|pybind11)/|^Python\.h$")


def files(root: Path, room: str) -> list[Path]:
    return sorted(file for file in (root / room).rglob("*") if file.suffix in {".h", ".cpp"})


def wrong_includes(root: Path, room: str) -> list[str]:
    wrong = []
    for file in files(root, room):
        for bracket, included in INCLUDE.findall(file.read_text()):
            where = f"{file.relative_to(root)} includes {included}"
            if bracket == '"':
                wrong.append(f"{where}: own headers are spelled <ebbtide/FOLDER/file.h>")
            elif TORCH.search(included) and room != "hooks":
                wrong.append(f"{where}: only hooks/ includes torch")
            elif included.startswith("ebbtide/"):
                name = included.removeprefix("ebbtide/")
                target = UMBRELLAS.get(name) or name.split("/")[0]
                if target not in MAY_INCLUDE[room]:
                    wrong.append(f"{where}: {room} may include {sorted(MAY_INCLUDE[room])}")
    return wrong


@pytest.mark.parametrize("room", MAY_INCLUDE)
def test_includes_point_down(root, room):
    assert files(root, room), f"{room}/ has no sources"
    assert wrong_includes(root, room) == []


@pytest.mark.parametrize(
    "room, line",
    [
        ("transfer", "#include <ebbtide/nvme/spill_tier.h>"),
        ("nvme", "# include <ebbtide/transfer/device.h>"),
        ("pinned_pool", "#include <ebbtide/core.h>"),
        ("store", "#include <ebbtide/hooks/engine.h>"),
        ("store", "#include <ATen/core/Tensor.h>"),
        ("store", '#include "../hooks/engine.h"'),
    ],
)
def test_a_wrong_include_is_seen(tmp_path, room, line):
    (tmp_path / room).mkdir()
    (tmp_path / room / "a.h").write_text(f"#pragma once\n{line}\n")
    assert len(wrong_includes(tmp_path, room)) == 1
