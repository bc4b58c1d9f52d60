"""Test grids of cells: their tables, their keys, their records, and the checks before they start."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus

from fedexit import FedexitError, open_corpus
from fedexit.central import fine_tuning as central
from fedexit.central.fine_tuning import Recipe
from fedexit.central.masked_prediction import save_model
from fedexit.data.tasks import make_task
from fedexit.data.trials import make_trials
from fedexit.devices.dynamics import Faults
from fedexit.devices.policy import Need, Policy
from fedexit.devices.profiles import MIB
from fedexit.federated.clients import LocalTraining
from fedexit.lab import beam, cells, checks, grid, kept
from fedexit.lab.cells import Measured, run_cell
from fedexit.lab.grid import run_grid, run_grids, with_owners
from fedexit.lab.kept import is_finished, key_of, origin_of, read_cell, write_cell
from fedexit.lab.setting import CENTRAL, Cell, DataPart, FederationPart, ModelPart, Setting, StudyPart
from fedexit.model import ctc
from fedexit.model.backbone import load_backbone
from fedexit.runner import fingerprint
from fedexit.support import checkpoints
from fedexit.support.processes import on_workers, one_thread
from fedexit.support.reads import read_notes

CELLS = [Cell("voice", "homogeneous", 0, 3), Cell("voice", "stale", 0), Cell("voice", "layerwise", 0)]


CODE = "hash of the present code"


def setting(folder, rounds=2):
    return settings(folder, "voice", rounds=rounds, training=LocalTraining())


def settings(folder, task, **changes):
    plain = Setting(
        DataPart(str(folder), max_seconds=0.25, min_clips=4),
        FederationPart(2, "group", 0.5, LocalTraining(learning_rate=1e-3), evaluations=1),
        ModelPart("nano", (3, 6)),
        StudyPart(Recipe(epochs=2, crop=None)),
    )
    return plain.changed(**changes)


def key(setting, central):
    return key_of(setting, origin_of(setting), central)


def here(function, jobs, workers, desc):
    """Stand in for `on_workers`: the same jobs, one after the other in this process."""
    with one_thread():
        return [function(*job) for job in jobs]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Use a known code hash, a decoder without a library, and no other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "code_hash", lambda module: CODE, raising=False)
        patch.setattr(beam, "beam_search_available", lambda: True, raising=False)
        patch.setattr(beam, "beam_decoder", lambda words, labels: ctc.greedy)
        patch.setattr(grid, "on_workers", here)
        kept.present_code.cache_clear()
        yield
    kept.present_code.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "small", clips=10)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def whole(folder, stored):
    return run_grid(CELLS, setting(folder), stored, workers=1)


def test_tables_hold_every_exit_tier_and_method(whole):
    errors, traffic, items, spot = whole
    test = errors[errors["split"] == "test"]
    assert set(test.query("method == 'layerwise'")["exit"]) == {3, 6}
    assert set(test.query("method == 'homogeneous'")["exit"]) == {3}
    assert set(test["tier"]) == {"all", "depth 3", "depth 6"}
    counts = test.query("method == 'stale' and exit == 3").set_index("tier")["n"]
    assert counts["all"] == counts["depth 3"] + counts["depth 6"] == 40
    assert set(errors.query("split == 'dev' and method == 'stale'")["round"]) == {0, 2}
    assert set(traffic["method"]) == {"homogeneous", "stale", "layerwise"}
    assert set(items["split"]) == {"dev", "test"} and set(items["tier"]) == {"depth 3", "depth 6"}
    tested = items.query("split == 'test' and method == 'stale' and exit == 3")
    assert len(tested) == tested["clip"].nunique() == 40 and tested["cluster"].nunique() > 1
    assert (
        set(spot["round"]) == {2} and spot.groupby("method")["weights"].nunique().max() == 1
    )  # no average is taken here


def test_results_do_not_depend_on_the_number_of_workers(whole, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "on_workers", on_workers)
    assert_same(run_grid(CELLS, setting(folder), tmp_path, workers=2), whole)


def assert_same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        left, right = (table.drop(columns="seconds", errors="ignore") for table in (left, right))  # wall time differs
        pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_another_setting_does_not_get_stored_cells(whole, folder, tmp_path):
    """In JupyterLab the state folder stays the same when a parameter is changed."""
    run_grid(CELLS[:1], setting(folder, 1), tmp_path, workers=1)
    errors, *_ = run_grid(CELLS[:1], setting(folder), tmp_path, workers=1)
    assert errors.equals(whole[0][whole[0]["method"] == "homogeneous"].reset_index(drop=True))


def test_keys_depend_on_options_that_differ_from_their_defaults(folder):
    """An option that is added later, with a default, must not invalidate finished cells; a changed option must."""
    plain = setting(folder)
    for kind in (True, False):
        same, other = plain.changed(dev_clips=200, training=LocalTraining(epochs=1)), plain.changed(dev_clips=100)
        assert key(plain, kind) == key(same, kind) != key(other, kind)
    for changes, moved in (
        (dict(training=LocalTraining(epochs=2)), [False, True]),  # options of federations do not touch central cells
        (dict(central=Recipe(epochs=1)), [True, False]),
        (dict(rounds=3), [False, True]),
        (dict(shares=(0.2, 0.8)), [True, True]),  # both measure errors by tier
        (dict(max_seconds=0.2), [True, True]),
    ):
        assert [key(plain.changed(**changes), kind) != key(plain, kind) for kind in (True, False)] == moved, changes


def test_keys_do_not_depend_on_the_type_of_a_number(folder):
    plain = settings(folder, "voice", shares=(0.25, 0.75))
    numpy = plain.changed(
        depths=list(np.array([3, 6])), shares=np.array([0.25, 0.75]), speeds=[np.float64(1.0)], rounds=np.int64(2)
    )
    assert key(numpy, False) == key(plain, False)
    assert Cell("voice", "stale", np.int64(3), np.int32(6)) == Cell("voice", "stale", 3, 6)
    with pytest.raises(FedexitError, match=r"seed must be a whole number, not 1\.5"):
        Cell("voice", "stale", 1.5)


def test_keys_depend_on_the_content_of_the_backbone_and_not_on_its_path(folder, tmp_path):
    for name in ("one", "two"):
        save_model(load_backbone("nano", seed=1).truncated(6).model, tmp_path / name)
    one, two = (setting(folder).changed(backbone=str(tmp_path / name)) for name in ("one", "two"))
    before = key(one, False)
    assert before == key(two, False) != key(setting(folder), False)
    config = tmp_path / "two" / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-05', '"layer_norm_eps": 1e-03'))
    assert key(two, False) != before
    save_model(load_backbone("nano", seed=2).truncated(6).model, tmp_path / "one")
    assert key(one, False) != before


def test_keys_depend_on_the_present_audio_of_the_corpus(folder, tmp_path):
    """A file may change in place between two grids of one session, under the same manifest."""
    corpus = tmp_path / "small"
    shutil.copytree(folder, corpus)
    before = [key(setting(corpus), kind) for kind in (True, False)]
    assert before == [key(setting(folder), kind) for kind in (True, False)]  # equal content at another place
    shutil.copyfile(corpus / "clips/ANN1-0.flac", corpus / "clips/ANN1-1.flac")
    assert not {*before} & {key(setting(corpus), kind) for kind in (True, False)}


def test_a_setting_refuses_a_field_that_no_part_has(folder):
    with pytest.raises(FedexitError, match="a setting has no field 'epochs'"):
        setting(folder).changed(epochs=3, rounds=2)


# ---- what a kept cell records about itself -----------------------------------------------------------------------


def place_of(folder, stored, cell=CELLS[0]):
    return stored / key(setting(folder), cell.method == CENTRAL), cell


def test_a_kept_cell_records_what_made_it(whole, folder, stored):
    place, cell = place_of(folder, stored)
    entry = json.loads((place / f"{cell.name}.json").read_text())
    assert entry["code"] == CODE
    assert entry["cell"] == {"task": "voice", "method": "homogeneous", "seed": 0, "depth": 3}
    assert entry["setting"]["federation"]["training"]["batch_size"] == 8  # defaults too
    assert entry["setting"]["model"]["depths"] == [3, 6]
    assert entry["corpus"] == {"name": "small", "checksum": open_corpus(folder).checksum}
    assert entry["backbone"] == {"name": "nano", "checksum": "nano"}
    assert entry["versions"].keys() == {*fingerprint.VERSIONS} and entry["versions"]["torch"] != "none"
    assert entry["processor"]["model"] and isinstance(entry["processor"]["bfloat16"], bool)
    assert entry["seconds"] > 0 and set(entry["tables"]) == {"errors", "ledger", "items", "spot"}
    assert len(entry["weights"]) == 64 and len(entry["finished"]) == 10


def other_code(place, cell, patch):
    patch.setattr(kept, "present_code", lambda: "hash of other code")


def no_entry(place, cell, patch):
    (place / f"{cell.name}.json").unlink()


def unknown_code(place, cell, patch):
    entry = place / f"{cell.name}.json"
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"code": ""}))


def damaged_entry(place, cell, patch):
    (place / f"{cell.name}.json").write_text("{")


def changed_table(place, cell, patch):
    file = place / f"{cell.name}.errors.csv.gz"
    pd.read_csv(file).assign(value=0.0).to_csv(file, index=False)


@pytest.mark.parametrize("change", [other_code, no_entry, unknown_code, damaged_entry, changed_table])
def test_a_cell_of_other_code_is_read_and_called_unverified(change, whole, folder, stored, tmp_path, monkeypatch):
    state, notes = tmp_path / "state", tmp_path / "notes"
    shutil.copytree(stored, state)
    monkeypatch.setenv("FEDEXIT_READS", str(notes))
    monkeypatch.setenv("FEDEXIT_RESULTS", str(tmp_path))
    place, cell = place_of(folder, state)
    [checksum] = [note["checksum"] for note in noted(place, cell, notes)]
    change(place, cell, monkeypatch)
    with pytest.warns(UserWarning, match="unverified: 1 of 1 kept cells"):
        found = run_grid([cell], setting(folder), state, workers=1)
    assert len(found.errors) == len(whole.errors.query("method == 'homogeneous'"))
    [(name, note)] = read_notes(notes)["cell"].items()
    assert name == f"state/{place.name}/{cell.name}"
    assert note["code"] == (CODE if change is other_code else "")
    assert (note["checksum"] == checksum) == (change is not changed_table)


def noted(place, cell, notes):
    _, verified = read_cell(place, cell)
    assert verified
    found = list(read_notes(notes)["cell"].values())
    notes.unlink()
    return found


def test_a_verified_cell_is_noted_with_its_code_and_without_a_warning(whole, folder, stored, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_READS", str(tmp_path / "notes"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_grid(CELLS, setting(folder), stored, workers=1)
    notes = read_notes(tmp_path / "notes")["cell"]
    assert len(notes) == 3 and {note["code"] for note in notes.values()} == {CODE}


def test_a_damaged_table_is_named(whole, folder, stored, tmp_path):
    shutil.copytree(stored, tmp_path / "state")
    place, cell = place_of(folder, tmp_path / "state")
    table = place / f"{cell.name}.items.csv.gz"
    table.write_bytes(table.read_bytes()[:40])
    with pytest.raises(FedexitError, match=r"voice-homogeneous3-seed0\.items\.csv\.gz is damaged"):
        read_cell(place, cell)


@pytest.mark.parametrize("names", [["0003", "12"], ["NA", "nan"], ["", "None"], ["a\rb", 'x,"y"\n'], ["1e5", " "]])
def test_names_of_clients_survive_storing(names, folder, tmp_path):
    numbers = [0.1 + 0.2, np.nan, 1 / 3, 5e-324, np.inf, 123456789.12345678]
    rates = pd.DataFrame({"tier": "all", "value": numbers, "n": range(6)})
    ledger = pd.DataFrame({"client": names, "loss": [1 / 3, np.nan]})
    measured = Measured(rates, ledger, rates, rates.assign(weights="NA"))
    write_cell(tmp_path, CELLS[0], measured, setting(folder), origin_of(setting(folder)), 1.0)
    found, verified = read_cell(tmp_path, CELLS[0])
    assert_same(found, measured)
    assert verified and is_finished(tmp_path, CELLS[0])


def test_equal_tables_give_equal_bytes(folder, tmp_path):
    table = pd.DataFrame({"value": [1.0], "weights": ["sum"]})
    measured = Measured(table, table, table, table)
    for name in ("one", "two"):
        write_cell(tmp_path / name, CELLS[0], measured, setting(folder), origin_of(setting(folder)), 1.0)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 5


# ---- in this process: what cells do ------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Return a folder for corpora and state, with a cache of its own."""
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    return tmp_path


def corpus_like(folder, name, change):
    table = change(pd.read_csv(folder / "manifest.csv", keep_default_na=False))
    shutil.copytree(folder, name)
    table.to_csv(name / "manifest.csv", index=False)
    return name


def people(table):
    """Return ten speakers whose labels alternate, with short texts."""
    kind = [f"{row.speaker}{row.group[3:-4]}" for row in table.itertuples()]
    table["speaker"] = [{"DOT3": "DOT1", "DOT4": "DOT2"}.get(name, name) for name in kind]
    table["label"] = [("low", "high")[n % 2] for n in range(len(table))]
    table["text"] = [("yes", "no we", "it's")[n % 3] for n in range(len(table))]
    return table


def test_items_of_central_cells_add_up_to_their_error_rates(folder, small):
    both = [Cell("voice", "central", 0, 3), CELLS[0]]
    errors, ledger, items, _ = run_grid(both, settings(folder, "voice"), small / "state", workers=1)
    central = errors[errors["method"] == "central"]
    assert (
        set(central["exit"]) == {3} and set(central["round"]) == {0, 1, 2} and set(central["split"]) == {"dev", "test"}
    )
    assert set(central["tier"]) == {"all", "depth 3", "depth 6"}
    assert set(ledger["method"]) == {"homogeneous"}  # centrally no local round is made
    assert ledger["round"].dtype.kind == ledger["depth"].dtype.kind == "i"
    items = items[items["split"] == "test"]
    assert len(items) == 80 and set(items["n"]) == {1}
    for name, rows in items.groupby("method"):
        test = errors[(errors["method"] == name) & (errors["split"] == "test") & (errors["tier"] == "all")]
        assert test["value"].item() * test["n"].item() == pytest.approx(rows["errors"].sum())
    assert not list((small / "state").rglob("*.safetensors"))  # a finished cell needs no checkpoint


def test_a_cell_follows_the_shares_skew_and_drop_outs_of_its_setting(folder, small):
    plain = settings(folder, "voice", shares=(1.0, 0.0))
    given = plain.changed(partition="dirichlet", alpha=0.05, drop_out=0.5, fraction=1.0)
    cell = Cell("voice", "masked", 0)
    one, other = run_cell(cell, plain, small / "one"), run_cell(cell, given, small / "other")
    assert set(one.ledger["depth"]) == set(other.ledger["depth"]) == {3}
    assert len(other.ledger) < 2 * other.ledger["client"].nunique()  # some updates did not arrive
    sizes = [dict(zip(m.ledger["client"], m.ledger["examples"], strict=True)) for m in (one, other)]
    assert any(sizes[0][name] != sizes[1][name] for name in set(sizes[0]) & set(sizes[1]))


def test_a_policy_sets_depths_round_by_round(folder, small):
    needs = {3: Need(50 * MIB, 1e6, 1e6), 6: Need(1500 * MIB, 1e6, 1e6)}
    policy, faulty = (Policy(needs, faults=Faults(killed=killed)) for killed in (0.0, 1.0))
    given = settings(folder, "voice", policy=policy, fleet=("phone low", "phone low"), fraction=1.0)
    cell = Cell("voice", "masked", 0)
    steady = run_cell(cell, given, small / "steady").ledger
    assert set(steady["tier"]) == {"depth 3", "depth 6"} and set(steady["depth"]) == {
        3
    }  # the depth that its device allows
    assert run_cell(cell, given.changed(policy=faulty), small / "faulty").ledger.empty


def test_a_changed_device_table_starts_the_cells_of_a_policy_anew(folder, small, monkeypatch):
    policed, plain = settings(folder, "voice", policy=Policy(NEEDS), fleet=("phone low", "server")), setting(folder)
    before = [key(own, False) for own in (policed, plain)]
    changed = {name: replace(device, free=device.free / 2) for name, device in kept.profiles().items()}
    monkeypatch.setattr(kept, "profiles", lambda: changed)
    after = [key(own, False) for own in (policed, plain)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


NEEDS = {3: Need(MIB, 1e6, 1e6), 6: Need(MIB, 1e6, 1e6)}
POLICED = dict(policy=Policy(NEEDS), fleet=("phone low", "server"))


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        (("voice", "masked", 0), POLICED | dict(drop_out=0.5), "leave out drop_out, or the policy"),
        (("voice", "masked", 0), POLICED | dict(fleet=("server",)), r"for each of \(3, 6\), not \('server',\)"),
        (
            ("voice", "masked", 0),
            POLICED | dict(fleet=("server", "toaster")),
            "unknown device 'toaster'; known: ",
        ),
        (
            ("voice", "all-shallow", 0),
            POLICED,
            "all-shallow sets the depths of its clients itself",
        ),
        (("voice", "heterofl", 0), POLICED, "heterofl has no depths by round"),
        (("voice", "masked", 0), dict(evaluations=0), "rounds must be >= 1 and evaluations >= 1, not 2 and 0"),
        (("voice", "masked", 0), dict(rounds=0), "rounds must be >= 1 and evaluations >= 1, not 0 and 1"),
        (("voice", "masked", 0), dict(partition="deal"), "unknown partition 'deal'; known: group"),
        (("voice", "masked", 0), dict(fraction=0.0), r"fraction must be in \(0, 1\]"),
        (("voice", "masked", 0), dict(depths=()), "depths are empty"),
        (("voice", "masked", 0), dict(depths=(3, 13)), "seed0: exit 13 does not exist; nano has layers 1 to 12"),
        (("voice", "masked", 0), dict(backbone="no-such-model"), "no-such-model"),
        (("voice", "masked", 0), dict(head="tail"), "unknown head 'tail'; known: pooled"),
        (("voice", "masked", 0), dict(speeds=()), "speeds must be > 0, with at least one"),
        (("voice", "masked", 0), dict(lora=-1), "LoRA needs a whole rank"),
        (("voice", "masked", 0), dict(min_clips=99), "no group of corpus small has 99 clips"),
        (("voice", "masked", 0), dict(shares=(1.0,)), "2 depths need as many shares"),
        (("voice", "masked", 0), dict(corpus="no-such-corpus"), "corpus 'no-such-corpus' is not there"),
        (("voice", "central", 0, 3), dict(max_seconds=0.0), "max_seconds and speeds must be > 0"),
        (("voice", "central", 0), {}, "a central cell needs a depth >= 1, not 0"),
        (("voice", "central", 0, 14), {}, "exit 14 does not exist"),
        (("voice", "homogeneous", 0), {}, "a homogeneous cell needs a depth >= 1, not 0"),
        (("voice", "fedsgd", 0), {}, "unknown method 'fedsgd'"),
        (("mood", "masked", 0), {}, "unknown task 'mood'; known: voice"),
        (("emotion", "masked", 0), {}, "corpus small has no|task emotion"),
    ],
)
def test_a_cell_that_cannot_run_is_refused_before_the_first_one_starts(
    cell, changes, message, folder, small, monkeypatch
):
    monkeypatch.setattr(grid, "on_workers", None)
    with pytest.raises(FedexitError, match=message):
        run_grid([CELLS[1], Cell(*cell)], settings(folder, "voice", **changes), small / "state", workers=1)
    assert not (small / "state").exists() and not (small / "data").exists()


def test_a_folder_that_cannot_be_written_is_refused_first(folder, small, monkeypatch):
    (small / "state").write_text("a file, no folder")
    monkeypatch.setattr(grid, "on_workers", None)
    with pytest.raises(FedexitError, match=r"cannot write to .*; choose a writable folder"):
        run_grid(CELLS, setting(folder), small / "state", workers=1)


def test_a_grid_needs_cells_and_workers(folder, small):
    with pytest.raises(FedexitError, match="a grid has no cells"):
        run_grid([], setting(folder), small / "state", workers=1)
    with pytest.raises(FedexitError, match="workers must be >= 1, not 0"):
        run_grid(CELLS, setting(folder), small / "state", workers=0)


def test_grids_side_by_side_share_their_cells_and_finished_ones(whole, folder, stored, tmp_path, monkeypatch):
    shutil.copytree(stored, tmp_path / "state")
    place, cell = place_of(folder, tmp_path / "state", CELLS[1])
    (place / f"{cell.name}.items.csv.gz").unlink()
    ran = []
    monkeypatch.setattr(
        grid, "on_workers", lambda function, jobs, *rest: ran.extend(jobs) or here(function, jobs, *rest)
    )
    both = run_grids({1: (CELLS[1:], setting(folder)), 2: (CELLS, setting(folder))}, tmp_path / "state", workers=1)
    assert_same(both[2], whole)
    assert [job[0] for job in ran] == [cell] and set(both[1].errors["method"]) == {"stale", "layerwise"}


@pytest.mark.parametrize("folds", [False, True])
def test_items_by_tier_add_up_to_the_errors_of_the_tiers(folder, small, folds):
    task = "emotion" if folds else "voice"
    source = corpus_like(folder, small / "people", people) if folds else folder
    given = settings(source, task)
    both = run_grid([Cell(task, "masked", seed) for seed in (0, 1)], given, small / "state", workers=1)
    items = with_owners(both.items)
    shared = set(items.query("seed == 0")["item"]) & set(items.query("seed == 1")["item"])
    assert bool(shared) == (not folds)
    sums = items.groupby(["seed", "tier", "exit"])[["errors", "n"]].sum()
    rates = both.errors.query("split == 'test' and tier != 'all'").set_index(["seed", "tier", "exit"])
    assert (sums["errors"] / sums["n"]).sort_index().to_dict() == pytest.approx(rates["value"].sort_index().to_dict())
    assert items["group"].notna().all()


class Interrupted(Exception):
    pass


def test_damaged_notes_of_a_spot_check_are_refused_before_the_training_resumes(folder, small, monkeypatch):
    state, cell = small / "state", Cell("voice", "layerwise", 0)
    plan = setting(folder, rounds=3)
    own = state / key(plan, central=False)
    run_cell(cell, plan, own, stop_after=2)
    notes = own / f"{cell.name}.spot.csv"
    whole = notes.read_bytes()
    notes.write_bytes(whole[:-3])
    trained = []
    monkeypatch.setattr(grid, "run_cell", lambda *given, **named: trained.append(given) or run_cell(*given, **named))
    with pytest.raises(
        FedexitError, match=r"^voice-layerwise-seed0\.spot\.csv is damaged [^\n]*; delete voice-[^\n]*$"
    ):
        run_grid([cell], plan, state, workers=1)
    assert not trained
    notes.write_bytes(whole)
    assert set(run_grid([cell], plan, state, workers=1).spot["round"]) == {2, 3} and trained


@pytest.mark.parametrize("method", ["central", "stale"])
def test_an_interrupted_cell_resumes_with_bit_identical_results(method, folder, small, monkeypatch):
    cell, state = Cell("voice", method, 1, 3 if method == "central" else 0), small / "state"
    whole = run_cell(cell, settings(folder, "voice"), small / "whole")
    module = central if method == "central" else checkpoints
    save = module.save_checkpoint

    def save_and_stop(*arguments):
        save(*arguments)
        raise Interrupted

    monkeypatch.setattr(module, "save_checkpoint", save_and_stop)
    for _ in range(2):  # each time one epoch or round is done
        with pytest.raises(Interrupted):
            run_cell(cell, settings(folder, "voice"), state)
    monkeypatch.setattr(module, "save_checkpoint", None)  # nothing is left to train
    assert_same(run_cell(cell, settings(folder, "voice"), state), whole)


@pytest.mark.parametrize("head", ["", "ctc-bilstm"])
def test_asr_cells_give_cer_and_wer_with_the_chosen_head(head, folder, small, monkeypatch):
    corpus, models = corpus_like(folder, small / "spoken", people), []
    true_start = cells.start
    monkeypatch.setattr(cells, "start", lambda *arguments: models.append(true_start(*arguments)) or models[-1])
    for method, depth in (("layerwise", 0), ("central", 3)):
        measured = run_cell(Cell("asr", method, 0, depth), settings(corpus, "asr", head=head), small / "state")
        test = measured.errors[measured.errors["split"] == "test"]
        assert set(test["metric"]) == {"CER", "WER", "CER beam", "WER beam"}
        assert set(test["tier"]) == {"all", "no client"}
        assert set(test["exit"]) == ({3} if depth else {3, 6})
        known = measured.errors[measured.errors["split"] == "known"]
        assert set(known["round"]) == {0, test["round"].max()}  # before and after
        rates = test.query("tier == 'all' and exit == 3").set_index("metric")["value"]
        errors = measured.items.query("exit == 3 and split == 'test'").groupby("metric")[["errors", "n"]].sum()
        assert (errors["errors"] / errors["n"]).to_dict() == pytest.approx(rates[["CER", "WER"]].to_dict())
        assert models[-1].head == (head or "ctc")
        kinds = {type(module).__name__ for module in models[-1].modules()}
        assert ("LSTM" in kinds) == (head == "ctc-bilstm")


def test_training_uses_clips_at_every_speed_and_evaluation_only_once(folder, small, monkeypatch):
    plain, twice = settings(folder, "voice"), settings(folder, "voice", speeds=(1.0, 1.25))
    once, both = (run_cell(CELLS[1], given, small / str(given.data.speeds)) for given in (plain, twice))
    assert (both.ledger["examples"] == 2 * once.ledger["examples"]).all()
    assert both.items[["item", "n"]].equals(once.items[["item", "n"]])
    used = []

    def noted(model, data, exits, recipe, seed, checkpoint, on_epoch):
        used.append([clip.shape[1] for clip, _ in data])
        on_epoch(0, model)

    monkeypatch.setattr(cells, "fine_tune", noted)
    run_cell(Cell("voice", "central", 0, 3), twice, small / "central")
    frames = np.array(used[0]).reshape(2, -1)  # all clips at one speed, then at the other
    assert (frames[1] < frames[0]).all()


def test_folds_test_the_speakers_of_the_cells_seed(folder, small):
    corpus = corpus_like(folder, small / "acted", people)
    for seed in (0, 3):
        measured = run_cell(Cell("emotion", "stale", seed), settings(corpus, "emotion"), small / "state")
        rows = make_task("emotion", open_corpus(corpus), fold=seed).rows
        assert set(measured.items["item"]) == set(range((rows["split"] == "test").sum()))
        assert set(measured.ledger["client"]) <= set(rows.query("split == 'train'")["speaker"])


def test_speakers_are_verified_if_there_is_a_trial_list(folder, small, monkeypatch):
    listed = make_trials(open_corpus(folder).select("test"), 30)
    monkeypatch.setattr(cells, "trials_of", lambda corpus: listed)
    errors = run_cell(CELLS[1], settings(folder, "voice"), small / "state").errors
    trials = errors[errors["split"] == "trials"]
    assert set(trials["metric"]) == {"EER", "minDCF"} and set(trials["exit"]) == {3, 6} and set(trials["n"]) == {60}
    assert trials.query("metric == 'EER'")["value"].between(0, 0.5).all() and set(trials["round"]) == {2}


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_training_in_bfloat16_warns_where_the_processor_lacks_it(capability, warned, folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    half = settings(folder, "voice", training=LocalTraining(bfloat16=True))  # and the central recipe without
    task = make_task("voice", open_corpus(folder))
    for cell, expected in ((Cell("voice", "masked", 0), warned), (Cell("voice", "central", 0, 3), False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checks.warn(cell, half, task)
        assert ["lacks bfloat16" in str(warning.message) for warning in caught] == [True] * expected


def test_asr_cells_run_without_the_library_of_beam_search(folder, small, monkeypatch):
    monkeypatch.setattr(beam, "beam_search_available", lambda: False, raising=False)
    monkeypatch.setattr(beam, "beam_decoder", None)
    corpus = corpus_like(folder, small / "spoken", people)
    with pytest.warns(UserWarning, match="flashlight-text is not installed: error rates by beam search are left out"):
        measured = run_cell(Cell("asr", "central", 0, 3), settings(corpus, "asr"), small / "state")
    assert set(measured.errors.query("split == 'test'")["metric"]) == {"CER", "WER"}


def test_impossible_cells_and_texts_are_refused(folder, small):
    def without_dev(table):
        return table.assign(split=table["split"].replace("dev", "train"))

    undeveloped = corpus_like(folder, small / "undeveloped", without_dev)
    with pytest.raises(FedexitError, match="undeveloped has no clips of split dev for task voice"):
        run_cell(CELLS[1], settings(undeveloped, "voice"), small / "state")
    spoken = corpus_like(folder, small / "spoken", people)
    with pytest.raises(FedexitError, match=r"0\.1 s cannot spell its . characters"):
        run_cell(Cell("asr", "stale", 0), settings(spoken, "asr", max_seconds=0.1), small / "state")


KILLED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import test_grid as t
t.fingerprint.code_hash = lambda module: t.CODE
if __name__ == "__main__":
    t.run_grid(t.CELLS[:2], t.setting({folder!r}, 4), Path({state!r}), workers=2)
"""


def test_sigkill_leaves_no_worker_and_the_rest_resumes_bit_identically(folder, tmp_path):
    script = tmp_path / "killed.py"
    state = tmp_path / "state"
    script.write_text(KILLED.format(tests=os.path.dirname(__file__), folder=str(folder), state=str(state)))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    while not list(state.glob("*/*.safetensors")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    group = process.pid
    for _ in range(100):  # the workers notice that their parent is gone
        if not _alive(group):
            break
        time.sleep(0.1)
    assert not _alive(group)
    resumed = run_grid(CELLS[:2], setting(folder, 4), state, workers=1)
    fresh = run_grid(CELLS[:2], setting(folder, 4), tmp_path / "fresh", workers=1)
    assert_same(resumed, fresh)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
