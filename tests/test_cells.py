"""Test single cells: yardsticks, spot checks, damaged side files, and the columns that every table of a cell has."""

import shutil

import pandas as pd
import pytest
from small_corpus import write_small_corpus

from fedexit import FedexitError
from fedexit.central.fine_tuning import Recipe
from fedexit.federated.clients import LocalTraining
from fedexit.federated.regime import Regime
from fedexit.lab import beam
from fedexit.lab.cells import ITEMS, run_cell
from fedexit.lab.setting import Cell, DataPart, FederationPart, ModelPart, Setting, StudyPart
from fedexit.lab.spots import COLUMNS as SPOT_COLUMNS
from fedexit.lab.spots import Spots
from fedexit.support.files import read_checked, write_checked


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


# ---- damaged side files ------------------------------------------------------------------------------------------


FEDERATED, CENTRAL = Cell("voice", "layerwise", 0), Cell("voice", "central", 0, 3)
SIDES = [(FEDERATED, ".spot.csv"), (CENTRAL, ".spot.csv"), (CENTRAL, ".curve.csv")]


def flipped(content: bytes) -> bytes:
    place = len(content) * 3 // 4
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def with_other_columns(content: bytes) -> bytes:
    return content.replace(b"round,", b"epoch,", 1)


def header(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[: 1 + content.startswith(b"#")])


DAMAGES = {
    "flipped bit": flipped,
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "other columns": with_other_columns,
    "header alone": header,
    "not UTF-8": lambda content: content + b"\xff",
}


def as_before(content: bytes) -> bytes:
    """Return the content of a side file as an older version wrote it, without the line of the checksum."""
    line, _, text = content.partition(b"\n")
    assert line.startswith(b"# sha256 ")
    return text


@pytest.fixture(scope="module")
def wholes(setting, tmp_path_factory):
    """Return what the two cells measure without an interruption."""
    return {cell: run_cell(cell, setting, tmp_path_factory.mktemp("whole")) for cell in (FEDERATED, CENTRAL)}


@pytest.fixture(scope="module")
def interrupted(setting, tmp_path_factory):
    """Return a folder with the state of two cells that stopped after round or epoch 2."""
    state = tmp_path_factory.mktemp("interrupted") / "state"
    for cell in (FEDERATED, CENTRAL):
        run_cell(cell, setting, state, stop_after=2)
    return state


def refused(cell, ending, setting, state):
    """Return the file that the refusal of a damaged side file names."""
    file = state / f"{cell.name}{ending}"
    with pytest.raises(FedexitError) as caught:
        run_cell(cell, setting, state)
    text = str(caught.value)
    assert text.startswith(f"{file.name} is damaged") and "\n" not in text
    assert text.endswith(f"; delete {cell.name}.* in {state} and run again to measure the cell")
    return file


def assert_as(found, whole):
    for name in ("errors", "ledger", "items", "spot"):
        own, other = (getattr(one, name).drop(columns="seconds", errors="ignore") for one in (found, whole))
        pd.testing.assert_frame_equal(own, other, check_dtype=False, check_exact=True)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_curve_of_an_interrupted_cell_is_refused_by_name(damage, setting, interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "state")
    curve = tmp_path / "state" / f"{CENTRAL.name}.curve.csv"
    curve.write_bytes(DAMAGES[damage](curve.read_bytes()))
    before = {file: file.read_bytes() for file in (tmp_path / "state").iterdir()}
    refused(CENTRAL, ".curve.csv", setting, tmp_path / "state")
    assert {file: file.read_bytes() for file in (tmp_path / "state").iterdir()} == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_notes_of_an_early_round_are_refused_by_name(damage, interrupted, tmp_path):
    file = tmp_path / f"{FEDERATED.name}.spot.csv"
    content = (interrupted / file.name).read_bytes()
    file.write_bytes(content)
    assert list(Spots([], [], [], file).rows()) == SPOT_COLUMNS
    file.write_bytes(DAMAGES[damage](content))
    with pytest.raises(FedexitError, match=r"^voice-layerwise-seed0\.spot\.csv is damaged[^\n]*; delete voice-.*$"):
        Spots([], [], [], file).rows()


@pytest.mark.parametrize(("cell", "ending"), SIDES)
def test_a_cell_that_was_refused_is_measured_again_as_the_message_says(
    cell, ending, setting, interrupted, wholes, tmp_path
):
    state = tmp_path / "state"
    shutil.copytree(interrupted, state)
    file = state / f"{cell.name}{ending}"
    file.write_bytes(flipped(file.read_bytes()))
    assert refused(cell, ending, setting, state) == file
    for own in state.glob(f"{cell.name}.*"):
        own.unlink()
    assert_as(run_cell(cell, setting, state), wholes[cell])


@pytest.mark.parametrize("cell", [FEDERATED, CENTRAL])
def test_an_interrupted_cell_resumes_also_from_side_files_without_checksums(
    cell, setting, interrupted, wholes, tmp_path
):
    for old in (False, True):
        state = tmp_path / f"old {old}"
        shutil.copytree(interrupted, state)
        for file in [*state.glob("*.csv")] * old:
            file.write_bytes(as_before(file.read_bytes()))
        assert_as(run_cell(cell, setting, state), wholes[cell])


@pytest.mark.parametrize("damage", ["empty", "other columns", "header alone", "not UTF-8"])
@pytest.mark.parametrize("ending", [".spot.csv", ".curve.csv"])
def test_side_files_of_an_older_version_are_refused_where_their_form_is_wrong(
    ending, damage, setting, interrupted, tmp_path
):
    state = tmp_path / "state"
    shutil.copytree(interrupted, state)
    file = state / f"{CENTRAL.name}{ending}"
    file.write_bytes(DAMAGES[damage](as_before(file.read_bytes())))
    refused(CENTRAL, ending, setting, state)


def test_notes_that_are_gone_are_missed(setting, interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "state")
    (tmp_path / "state" / f"{FEDERATED.name}.spot.csv").unlink()
    refused(FEDERATED, ".spot.csv", setting, tmp_path / "state")


def test_no_flipped_bit_of_a_checked_text_is_silent(tmp_path):
    """A bit in the line of the checksum can make the text look like an older one, which its columns then tell."""
    file = tmp_path / "a.spot.csv"
    write_checked(file, ",".join(SPOT_COLUMNS) + '\n2,ab,3,clip,"yes, we"\n2,ab,3,other,é\n')
    content = file.read_bytes()
    whole = Spots([], [], [], file).rows()
    assert whole["answer"].tolist() == ["yes, we", "é"]
    for place in range(0, 8 * len(content), 3):  # each bit of a byte comes up
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(FedexitError, match=r"^a\.spot\.csv is damaged") as caught:
            Spots([], [], [], file).rows()
        assert "\n" not in str(caught.value), place


def test_a_checked_text_keeps_all_its_characters_and_a_missing_one_is_named(tmp_path):
    for text in ("", "a", "a\r\nb\n\n", "# sha256 of nothing\n"):
        write_checked(tmp_path / "a", text)
        assert read_checked(tmp_path / "a", "fix") == text
    with pytest.raises(FedexitError, match=r"^b is damaged or missing \(No such file or directory\); fix it$"):
        read_checked(tmp_path / "b", "fix it")
