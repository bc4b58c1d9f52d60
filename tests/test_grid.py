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
from fedexit.data.tasks import make_task
from fedexit.data.trials import make_trials
from fedexit.devices.dynamics import Faults
from fedexit.devices.policy import Need, Policy
from fedexit.devices.profiles import MIB
from fedexit.federated import rounds as federation
from fedexit.federated.clients import LocalTraining
from fedexit.lab import cells, grid
from fedexit.lab.cells import run_cell
from fedexit.lab.grid import run_grid, run_grids, with_owners
from fedexit.lab.setting import Cell, Setting
from fedexit.support.checkpoints import options_set

CELLS = [Cell("voice", "homogeneous", 0, 3), Cell("voice", "stale", 0), Cell("voice", "layerwise", 0)]


def setting(folder, rounds=2):
    by_task = dict(rounds={"voice": rounds}, partition={"voice": "group"}, max_seconds={"voice": 0.25})
    return Setting(
        str(folder), "nano", (3, 6), **by_task, fraction=0.5, training=LocalTraining(), min_clips=4, evaluations=1
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "small", clips=10)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return run_grid(CELLS, setting(folder), tmp_path_factory.mktemp("state"), workers=1)


def test_tables_hold_every_exit_tier_and_method(whole):
    errors, traffic, _ = whole
    test = errors[errors["split"] == "test"]
    assert set(test.query("method == 'layerwise'")["exit"]) == {3, 6}
    assert set(test.query("method == 'homogeneous'")["exit"]) == {3}
    assert set(test["tier"]) == {"all", "depth 3", "depth 6"}
    counts = test.query("method == 'stale' and exit == 3").set_index("tier")["n"]
    assert counts["all"] == counts["depth 3"] + counts["depth 6"] == 40
    assert set(errors.query("split == 'dev' and method == 'stale'")["round"]) == {0, 2}
    assert set(traffic["method"]) == {"homogeneous", "stale", "layerwise"}


def test_the_number_of_workers_changes_no_bit(whole, folder, tmp_path):
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


def test_finished_cells_are_found_by_what_is_set_alone(folder):
    """An option that is added later, with a default, must not orphan hours of cells; a changed one must."""
    plain = setting(folder)
    for kind in (True, False):
        same, other = replace(plain, dev_clips=200, training=LocalTraining(epochs=1)), replace(plain, dev_clips=100)
        assert grid._key(plain, kind) == grid._key(same, kind) != grid._key(other, kind)
    told = dict(training=LocalTraining(epochs=2)), dict(central=Recipe(epochs=1))
    changed = [[grid._key(replace(plain, **one), c) != grid._key(plain, c) for c in (True, False)] for one in told]
    assert changed == [[False, True], [True, False]]  # the options of the one do not touch the other
    assert "spec_augment" not in str(options_set(plain)) and "'fraction': 0.5" in str(options_set(plain))


# ---- in this process: what cells do ------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A folder for corpora and state, with a cache of its own."""
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    return tmp_path


def corpus_like(folder, name, change):
    table = change(pd.read_csv(folder / "manifest.csv", keep_default_na=False))
    shutil.copytree(folder, name)
    table.to_csv(name / "manifest.csv", index=False)
    return name


def people(table):
    """Ten speakers with a label each other clip, and short texts."""
    kind = [f"{row.speaker}{row.group[3:-4]}" for row in table.itertuples()]
    table["speaker"] = table["group"] = [{"DOT3": "DOT1", "DOT4": "DOT2"}.get(name, name) for name in kind]
    table["label"] = [("low", "high")[n % 2] for n in range(len(table))]
    table["text"] = [("yes", "no we", "it's")[n % 3] for n in range(len(table))]
    return table


def settings(folder, task, **changes):
    by_task = dict(rounds={task: 2}, partition={task: "group"}, max_seconds={task: 0.25})
    training = LocalTraining(learning_rate=1e-3)
    rest = dict(fraction=0.5, training=training, min_clips=4, evaluations=1, central=Recipe(epochs=2, crop=None))
    return Setting(str(folder), "nano", (3, 6), **{**by_task, **rest, **changes})


def test_central_cells_stand_beside_federations_and_their_items_give_their_rates(folder, small, monkeypatch):
    def here(function, jobs, workers, desc):
        return [function(*job) for job in jobs]

    monkeypatch.setattr(grid, "on_workers", here)
    both = [Cell("voice", "central", 0, 3), CELLS[0]]
    errors, ledger, items = run_grid(both, settings(folder, "voice"), small / "state", workers=1)
    central = errors[errors["method"] == "central"]
    assert set(central["exit"]) == {3} and set(central["round"]) == {2} and set(central["split"]) == {"dev", "test"}
    assert set(central["tier"]) == {"all", "depth 3", "depth 6"}
    assert set(ledger["method"]) == {"homogeneous"}  # centrally no local round is made
    assert ledger["round"].dtype.kind == ledger["depth"].dtype.kind == "i"
    assert len(items) == 80 and set(items["n"]) == {1}
    for name, rows in items.groupby("method"):
        test = errors[(errors["method"] == name) & (errors["split"] == "test") & (errors["tier"] == "all")]
        assert test["value"].item() * test["n"].item() == pytest.approx(rows["errors"].sum())
    assert not list((small / "state").rglob("*.safetensors"))  # a finished cell needs no checkpoint


def test_a_cell_has_the_settings_shares_skew_and_drop_outs(folder, small):
    plain = settings(folder, "voice", shares=(1.0, 0.0))
    given = replace(plain, partition={"voice": "dirichlet"}, alpha=0.05, drop_out=0.5, fraction=1.0)
    cell = Cell("voice", "masked", 0)
    one, other = run_cell(cell, plain, small / "one"), run_cell(cell, given, small / "other")
    assert set(one.ledger["depth"]) == set(other.ledger["depth"]) == {3}
    assert len(other.ledger) < 2 * other.ledger["client"].nunique()  # somebody did not arrive
    sizes = [dict(zip(m.ledger["client"], m.ledger["examples"], strict=True)) for m in (one, other)]
    assert any(sizes[0][name] != sizes[1][name] for name in set(sizes[0]) & set(sizes[1]))


def test_a_policy_sets_depths_round_by_round(folder, small):
    needs = {3: Need(50 * MIB, 1e6, 1e6), 6: Need(1500 * MIB, 1e6, 1e6)}
    policy, faulty = (Policy(needs, faults=Faults(killed=killed)) for killed in (0.0, 1.0))
    given = settings(folder, "voice", policy=policy, fleet=("phone low", "phone low"), fraction=1.0)
    cell = Cell("voice", "masked", 0)
    steady = run_cell(cell, given, small / "steady").ledger
    assert set(steady["tier"]) == {"depth 3", "depth 6"} and set(steady["depth"]) == {3}  # what its device bears
    assert run_cell(cell, replace(given, policy=faulty), small / "faulty").ledger.empty


def test_a_changed_device_table_starts_the_cells_of_a_policy_anew(folder, small, monkeypatch):
    policed, plain = settings(folder, "voice", policy=Policy(NEEDS), fleet=("phone low", "server")), setting(folder)
    before = [grid._key(own, False) for own in (policed, plain)]
    changed = {name: replace(device, free=device.free / 2) for name, device in grid.profiles().items()}
    monkeypatch.setattr(grid, "profiles", lambda: changed)
    after = [grid._key(own, False) for own in (policed, plain)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


@pytest.mark.parametrize("names", [["0003", "12"], ["NA", "nan"]])
def test_names_of_clients_come_back_as_they_are(names, folder, small, monkeypatch):
    rates = pd.DataFrame({"tier": ["all"] * 2, "value": [0.1 + 0.2, np.nan], "n": [3, 4]})
    measured = cells.Measured(rates, pd.DataFrame({"client": names, "loss": [1 / 3, np.nan]}), rates)
    monkeypatch.setattr(grid, "run_cell", lambda *_: measured)
    assert_same(grid._stored_cell(CELLS[0], setting(folder), small), measured)


NEEDS = {3: Need(MIB, 1e6, 1e6), 6: Need(MIB, 1e6, 1e6)}
POLICED = dict(policy=Policy(NEEDS), fleet=("phone low", "server"))


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("masked", POLICED | dict(drop_out=0.5), "leave out drop_out, or the policy"),
        ("masked", POLICED | dict(fleet=("server",)), r"for each of \(3, 6\), not \('server',\)"),
        ("masked", POLICED | dict(fleet=("server", "toaster")), "unknown device 'toaster'; known: .*server"),
        ("all-shallow", POLICED, "method all-shallow sets the depths of its clients; leave out the policy"),
        ("heterofl", POLICED, "heterofl knows no depths by round"),
        ("masked", dict(evaluations=0), "evaluations must be >= 1, not 0"),
        ("masked", dict(rounds={"asr": 2}), "no rounds for task 'voice'"),
        ("masked", dict(partition={}), "no partition for task 'voice'"),
        ("central", dict(max_seconds={}), "no max_seconds for task 'voice'"),
        ("fedsgd", {}, "unknown method 'fedsgd'"),
    ],
)
def test_a_setting_that_cannot_be_is_told_before_anything_is_computed(method, changes, says, folder, small):
    with pytest.raises(FedexitError, match=says):
        run_grid([Cell("voice", method, 0, 3)], settings(folder, "voice", **changes), small / "state", workers=1)
    assert not (small / "state").exists() and not (small / "data").exists()


def test_a_grid_needs_cells_and_workers(folder, small):
    with pytest.raises(FedexitError, match="a grid has no cells"):
        run_grid([], setting(folder), small / "state", workers=1)
    with pytest.raises(FedexitError, match="workers must be >= 1, not 0"):
        run_grid(CELLS, setting(folder), small / "state", workers=0)


def test_grids_side_by_side_are_the_grids_and_share_their_cells(whole, folder, tmp_path, monkeypatch):
    ran = []

    def here(function, jobs, workers, desc):
        ran.extend(jobs)
        return [function(*job) for job in jobs]

    monkeypatch.setattr(grid, "on_workers", here)
    both = run_grids({1: (CELLS[1:], setting(folder)), 2: (CELLS, setting(folder))}, tmp_path, workers=1)
    assert_same(both[2], whole)
    assert len(ran) == len(CELLS) and set(both[1].errors["method"]) == {"stale", "layerwise"}


@pytest.mark.parametrize("folds", [False, True])
def test_items_have_owners_and_tiers_that_give_the_tiers_errors(folder, small, folds):
    task = "emotion" if folds else "voice"
    source = corpus_like(folder, small / "people", people) if folds else folder
    given = settings(source, task, folds=folds)
    both = run_grid([Cell(task, "masked", seed) for seed in (0, 1)], given, small / "state", workers=1)
    items = with_owners(both.items, given)
    shared = set(items.query("seed == 0")["item"]) & set(items.query("seed == 1")["item"])
    assert bool(shared) == (not folds)
    sums = items.groupby(["seed", "tier", "exit"])[["errors", "n"]].sum()
    told = both.errors.query("split == 'test' and tier != 'all'").set_index(["seed", "tier", "exit"])
    assert (sums["errors"] / sums["n"]).sort_index().to_dict() == pytest.approx(told["value"].sort_index().to_dict())
    assert items["group"].notna().all()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", ["central", "stale"])
def test_an_interrupted_cell_goes_on_to_the_same_bits(method, folder, small, monkeypatch):
    cell, state = Cell("voice", method, 1, 3 if method == "central" else 0), small / "state"
    whole = run_cell(cell, settings(folder, "voice"), small / "whole")
    module = central if method == "central" else federation
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
def test_asr_cells_give_cer_and_wer_with_the_head_that_is_asked_for(head, folder, small, monkeypatch):
    corpus, models = corpus_like(folder, small / "spoken", people), []
    true_start = cells._start
    monkeypatch.setattr(cells, "_start", lambda *arguments: models.append(true_start(*arguments)) or models[-1])
    for method, depth in (("layerwise", 0), ("central", 3)):
        measured = run_cell(Cell("asr", method, 0, depth), settings(corpus, "asr", head=head), small / "state")
        test = measured.errors[measured.errors["split"] == "test"]
        assert set(test["metric"]) == {"CER", "WER", "CER beam", "WER beam"}
        assert set(test["tier"]) == {"all", "no client"}
        assert set(test["exit"]) == ({3} if depth else {3, 6})
        known = measured.errors[measured.errors["split"] == "known"]
        assert set(known["round"]) == {0, test["round"].max()}  # before and after
        rates = test.query("tier == 'all' and exit == 3").set_index("metric")["value"]
        errors = measured.items.query("exit == 3").groupby("metric")[["errors", "n"]].sum()
        assert (errors["errors"] / errors["n"]).to_dict() == pytest.approx(rates[["CER", "WER"]].to_dict())
        assert models[-1].head == (head or "ctc")
        kinds = {type(module).__name__ for module in models[-1].modules()}
        assert ("LSTM" in kinds) == (head == "ctc-bilstm")


def test_training_clips_are_heard_at_every_speed_and_all_others_once(folder, small, monkeypatch):
    plain, twice = settings(folder, "voice"), settings(folder, "voice", speeds=(1.0, 1.25))
    once, both = (run_cell(CELLS[1], given, small / str(given.speeds)) for given in (plain, twice))
    assert (both.ledger["examples"] == 2 * once.ledger["examples"]).all()
    assert both.items[["item", "n"]].equals(once.items[["item", "n"]])
    heard = []
    monkeypatch.setattr(cells, "fine_tune", lambda model, data, *_: heard.append([clip.shape[1] for clip, _ in data]))
    run_cell(Cell("voice", "central", 0, 3), twice, small / "central")
    frames = np.array(heard[0]).reshape(2, -1)  # all clips at one speed, then at the other
    assert (frames[1] < frames[0]).all()


def test_folds_test_the_speakers_of_the_cells_seed(folder, small):
    corpus = corpus_like(folder, small / "acted", people)
    for seed in (0, 3):
        measured = run_cell(Cell("emotion", "stale", seed), settings(corpus, "emotion", folds=True), small / "state")
        rows = make_task("emotion", open_corpus(corpus), fold=seed).rows
        assert set(measured.items["item"]) == set(range((rows["split"] == "test").sum()))
        assert set(measured.ledger["client"]) <= set(rows.query("split == 'train'")["speaker"])
    with pytest.raises(FedexitError, match="task voice has no option 'fold'"):
        run_cell(CELLS[1], settings(folder, "voice", folds=True), small / "state")


def test_clips_are_verified_where_there_is_a_list(folder, small, monkeypatch):
    listed = make_trials(open_corpus(folder).select("test"), 30)
    monkeypatch.setattr(cells, "trials_of", lambda corpus: listed)
    errors = run_cell(CELLS[1], settings(folder, "voice"), small / "state").errors
    trials = errors[errors["split"] == "trials"]
    assert set(trials["metric"]) == {"EER", "minDCF"} and set(trials["exit"]) == {3, 6} and set(trials["n"]) == {60}
    assert trials.query("metric == 'EER'")["value"].between(0, 0.5).all() and set(trials["round"]) == {2}


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_training_in_bfloat16_warns_where_the_processor_lacks_it(capability, warned, folder, small, monkeypatch):
    def stop(cell, setting):
        raise FedexitError("far enough")

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(cells, "task_of", stop)
    half = settings(folder, "voice", training=LocalTraining(bfloat16=True))  # and the central recipe without
    for cell, told in ((Cell("voice", "masked", 0), warned), (Cell("voice", "central", 0, 3), False)):
        with warnings.catch_warnings(record=True) as caught, pytest.raises(FedexitError, match="far enough"):
            warnings.simplefilter("always")
            run_cell(cell, half, small / "state")
        assert ["lacks bfloat16" in str(warning.message) for warning in caught] == [True] * told


def test_what_cannot_be_measured_or_spelled_is_refused(folder, small):
    def without_dev(table):
        return table.assign(split=table["split"].replace("dev", "train"))

    undeveloped = corpus_like(folder, small / "undeveloped", without_dev)
    with pytest.raises(FedexitError, match="undeveloped has no clips of split dev for task voice"):
        run_cell(CELLS[1], settings(undeveloped, "voice"), small / "state")
    spoken = corpus_like(folder, small / "spoken", people)
    with pytest.raises(FedexitError, match=r"0\.1 s cannot spell its . characters"):
        run_cell(Cell("asr", "stale", 0), settings(spoken, "asr", max_seconds={"asr": 0.1}), small / "state")


KILLED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import test_grid as t
if __name__ == "__main__":
    t.run_grid(t.CELLS, t.setting({folder!r}, 12), Path({state!r}), workers=2)
"""


def test_sigkill_leaves_no_worker_and_the_rest_runs_to_the_same_bits(folder, tmp_path):
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
    resumed = run_grid(CELLS, setting(folder, 12), state, workers=1)
    fresh = run_grid(CELLS, setting(folder, 12), tmp_path / "fresh", workers=1)
    assert_same(resumed, fresh)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
