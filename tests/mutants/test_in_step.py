"""The mutants and the sources are in step: each matches, and no order is without one."""

import shutil

import pytest
from mutants import MUTANTS
from orders import unlisted
from weave import ROOMS, weave


def test_every_mutant_matches(root):
    _, wrong = weave(root)
    advice = "bring tests/mutants/mutants.py up to date: give the text that is there now, or drop the mutant with the order that is gone"
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items()) + f"\n{advice}"


def test_names_are_unique():
    names = [mutant.name for mutant in MUTANTS]
    assert sorted(set(names)) == sorted(names)


def test_every_order_and_every_hold_is_on_a_list(root):
    advice = (
        "give each a mutant in tests/mutants/mutants.py, and see it caught by mutants_test; or, if its removal can put nothing out of order, "
        "a line in EXEMPT of tests/mutants/orders.py that says why; lines that are gone go from there"
    )
    found = unlisted(root)
    assert not found, "\n".join(found) + f"\n{advice}"


@pytest.mark.parametrize(
    ("file", "after", "line"),
    [
        ("transfer/copy_lane.cpp", "  lock.unlock();\n", "  (void)device_.wait(stream_, job->event_);\n"),
        ("store/returning.cpp", "    Work work(*this);\n", "    (void)host_.device->record(stream);\n"),
        ("store/leaving.cpp", "    Work work(*this);\n", "    const std::shared_ptr<DeviceStorage> parked = buried_.back();\n"),
        ("store/device_leaving.cpp", "    memory = nullptr;\n", "    auto late = [memory = record->lower_.memory] {};\n"),
    ],
)
def test_a_new_order_is_found(root, tmp_path, file, after, line):
    for room in ROOMS:
        shutil.copytree(root / room, tmp_path / room)
    assert unlisted(tmp_path) == []
    text = (tmp_path / file).read_text()
    assert after in text
    (tmp_path / file).write_text(text.replace(after, after + line, 1))
    found = unlisted(tmp_path)
    assert len(found) == 1 and line.strip() in found[0]
