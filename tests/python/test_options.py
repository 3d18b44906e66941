"""Keywords and the environment: which of them counts."""

import pytest

import ebbtide

NOTHING = [("spill_to", "/nowhere/at/all", ""), ("spill_to", "/nowhere/at/all", []), ("on_full", "moon", "auto"), ("plan", "/nowhere/at/all", "")]


@pytest.mark.parametrize("name, elsewhere, given", NOTHING)
def test_a_keyword_wins_also_where_it_asks_for_what_is_so_by_default(monkeypatch, name, elsewhere, given):
    monkeypatch.setenv(f"EBBTIDE_{name.upper()}", elsewhere)
    for options in ({}, {name: None}):
        with pytest.raises(ebbtide.ConfigError, match=elsewhere):
            ebbtide.Store(**options)
    ebbtide.Store(**{name: given}).close()


def test_folders_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EBBTIDE_SPILL_TO", f"{tmp_path}::{tmp_path}")
    assert ebbtide.Store().stats()["spill"]["budget_bytes"] > 0
    assert ebbtide.Store(spill_to=[]).stats()["spill"]["budget_bytes"] == 0
