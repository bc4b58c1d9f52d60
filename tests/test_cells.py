"""Test single cells: yardsticks, spot checks, and the columns that every table of a cell has."""

import pandas as pd
import pytest
from small_corpus import write_small_corpus

from fedexit.central.fine_tuning import Recipe
from fedexit.federated.clients import LocalTraining
from fedexit.federated.regime import Regime
from fedexit.lab import beam
from fedexit.lab.cells import ITEMS, run_cell
from fedexit.lab.setting import Cell, DataPart, FederationPart, ModelPart, Setting, StudyPart


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = write_small_corpus(tmp_path_factory.mktemp("corpus") / "small", clips=10)
    return Setting(
        DataPart(str(folder), max_seconds=0.25, min_clips=4),
        FederationPart(3, "group", 0.5, LocalTraining(learning_rate=1e-3), evaluations=1),
        ModelPart("nano", (3, 6)),
        StudyPart(Recipe(epochs=3, crop=None)),
    )


@pytest.mark.parametrize("method", ["guessing", "log-mel"])
def test_yardsticks_have_no_ledger_and_one_exit(method, setting, tmp_path):
    found = run_cell(Cell("voice", method, 0), setting, tmp_path)
    assert found.ledger.empty and found.spot.empty and not list(tmp_path.iterdir())
    assert set(found.items["exit"]) == {0} and set(found.items["split"]) == {"dev", "test"}
    test = found.errors.query("split == 'test' and tier == 'all'")
    counts = found.items.query("split == 'test'")
    assert test["value"].item() == counts["errors"].sum() / counts["n"].sum() and test["round"].item() == 0


def test_log_mel_beats_guessing(setting, tmp_path):
    errors = {
        m: run_cell(Cell("voice", m, 0), setting, tmp_path).items["errors"].mean() for m in ("log-mel", "guessing")
    }
    assert errors["log-mel"] < errors["guessing"]  # the voices of the small corpus differ in pitch


@pytest.mark.parametrize("cell", [Cell("voice", "layerwise", 0), Cell("voice", "central", 0, 3)])
def test_a_spot_check_repeats_the_first_rounds(cell, setting, tmp_path):
    whole = run_cell(cell, setting, tmp_path / "whole")
    assert list(whole.items.columns) == ITEMS and set(whole.spot["round"]) == {2, 3}
    spot = run_cell(cell, setting, tmp_path / "spot", stop_after=2)
    early = whole.spot[whole.spot["round"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(spot.spot, early, check_dtype=False)
    assert spot.errors.empty and whole.spot["weights"].nunique() == 2


def test_a_spot_check_of_heads_alone_repeats_them_all(setting, tmp_path):
    heads = setting.changed(rounds=0, regime=Regime(heads_rounds=2))
    cell = Cell("voice", "layerwise", 0)
    whole = run_cell(cell, heads, tmp_path / "whole").spot
    spot = run_cell(cell, heads, tmp_path / "spot", stop_after=2).spot
    assert set(whole["round"]) == {0} and len(whole)
    pd.testing.assert_frame_equal(spot, whole, check_dtype=False)


def test_a_resumed_cell_keeps_the_notes_of_its_early_rounds(setting, tmp_path, monkeypatch):
    cell = Cell("voice", "layerwise", 0)
    whole = run_cell(cell, setting, tmp_path / "whole")
    run_cell(cell, setting, tmp_path / "cut", stop_after=2)  # the checkpoint of round 2 is stored
    monkeypatch.setattr(beam, "beam_search_available", lambda: False)
    pd.testing.assert_frame_equal(run_cell(cell, setting, tmp_path / "cut").spot, whole.spot, check_dtype=False)


def test_a_deliberately_changed_rule_changes_the_spot(setting, tmp_path, monkeypatch):
    cell = Cell("voice", "layerwise", 0)
    before = run_cell(cell, setting, tmp_path / "one", stop_after=2).spot["weights"]
    monkeypatch.setattr("fedexit.federated.rounds.check_exponent", lambda exponent: exponent + 1)
    after = run_cell(cell, setting, tmp_path / "two", stop_after=2).spot["weights"]
    assert before.nunique() == after.nunique() == 1 and before[0] != after[0]
