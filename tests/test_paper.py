"""Test the paper's tables on miniature corpora: tasks, models, numbers beside the paper's, and the dry run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from fedexit import FedexitError, cli, open_corpus
from fedexit.data.audio import write_audio
from fedexit.data.folder import COLUMNS
from fedexit.data.tasks import make_task
from fedexit.data.tasks.official import COMMANDS, OFFICIAL
from fedexit.lab import grid, kept, paper_costs, paper_profile, paper_sizes
from fedexit.lab.paper import published
from fedexit.lab.setting import CENTRAL, HOMOGENEOUS, Cell
from fedexit.runner import fingerprint, provenance
from fedexit.runner.manifest import load_manifest
from fedexit.support.processes import one_thread

ROOT = Path(__file__).parents[1]
PEOPLE = {"train": ["ann", "ben", "cid"], "dev": ["dot"], "test": ["eva", "fay"]}
EVERYONE = [*PEOPLE["train"], *PEOPLE["dev"], *PEOPLE["test"]]
LABELS = ["yes", "no", "house", "_silence_"]


def write_corpus(folder, kind):
    """Write tones of 0.25 and 0.3 s: by speakers with labels, by speakers with texts, or all speakers in all splits."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for split in PEOPLE:
        for place, speaker in enumerate(EVERYONE if kind == "voxceleb1" else PEOPLE[split]):
            for number in range(5 + place % 2):
                part = f"{split}-{'other' if speaker == 'fay' else 'clean'}"
                name, label = f"{part}/{speaker}{split}{number}", LABELS[number % 4] if kind != "voxceleb1" else ""
                seconds = 0.25 if number % 2 else 0.3
                wave = 0.3 * torch.sin((0.1 + 0.2 * (number % 4)) * torch.arange(round(16000 * seconds)))
                path = folder / f"{name}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_audio(path, wave + 0.05 * torch.randn(len(wave), generator=generator))
                owner = "" if label == "_silence_" and kind == "speech_commands" else speaker
                text = "YES NO" if kind == "librispeech" else ""
                rows.append([name, f"{name}.flac", owner, f"{split}-{speaker}", text, label, seconds, split])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "manifest.csv", index=False)
    return str(folder)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Return the folder of a miniature of each corpus of the paper, by its name."""
    root = tmp_path_factory.mktemp("corpora")
    return {kind: write_corpus(root / kind, kind) for kind in paper_sizes.PUBLISHED}


def here(function, jobs, workers, desc):
    with one_thread():
        return [function(*job) for job in jobs]


@pytest.fixture(scope="module")
def done(corpora, tmp_path_factory):
    """Return the rows KWS-12, ASR and SID after two rounds of a random nano backbone: measured tables and grids."""
    grids = {}
    for row, tables in {"KWS-12": [1, 2], "ASR": [2], "SID": [2]}.items():
        folder = corpora[paper_profile.ROWS[row].corpus]
        [(cells, setting)] = paper_profile.grids_of([row], tables, [1], "nano", [folder], 2).values()
        kept_cells = cells if len(tables) > 1 else [cells[0], cells[-1]]  # homogeneous and layer-wise
        grids[row] = kept_cells, setting.changed(fraction=0.7)
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDEXIT_DATA", str(root))
        patch.setattr(fingerprint, "code_hash", lambda module: "the present code")
        patch.setattr(grid, "on_workers", here)
        kept.present_code.cache_clear()
        yield paper_profile.measure(grids, root / "state"), grids
        kept.present_code.cache_clear()


# ---- tasks -------------------------------------------------------------------------------------------------------


def test_tasks_keep_the_split_of_the_corpus_and_clients_are_speakers(corpora):
    of = {row.task: corpora[row.corpus] for row in paper_profile.ROWS.values()}
    assert of.keys() == OFFICIAL.keys()
    for name, folder in of.items():
        corpus = open_corpus(folder)
        task = make_task(name, corpus)
        assert task.name == name and (task.head == "ctc") == (name == "transcription")
        splits = corpus.manifest.set_index("id")["split"]
        assert (task.rows.set_index("id")["split"] == splits[task.rows["id"]]).all()
        held = set(task.rows.query("split == 'train'")["group"])
        assert held == set(PEOPLE["train"]) if name != "sid" else held == set(EVERYONE)


def test_twelve_classes_have_silence_and_as_many_unknown_words_as_a_command_has():
    corpus = paper_sizes.stand_in("speech_commands")
    task = make_task("kws12", corpus)
    assert task.labels == sorted([*COMMANDS, "silence", "unknown"])
    counts = task.rows.groupby(["split", "word"]).size().unstack()
    assert (counts["unknown"] == counts[list(COMMANDS)].mean(axis=1).round()).all()
    assert "" not in set(task.rows["group"]) and (counts["silence"] > 0).all()
    again = make_task("kws12", corpus)
    assert again.rows.equals(task.rows)
    assert len(make_task("kws35", corpus).labels) == 35


def test_a_corpus_without_transcripts_is_refused(corpora):
    with pytest.raises(FedexitError, match="has no transcripts for task transcription"):
        make_task("transcription", open_corpus(corpora["iemocap"]))


# ---- settings ----------------------------------------------------------------------------------------------------


def test_rounds_partitions_and_tiers_are_those_of_the_paper():
    facts = {name: (row.rounds, row.partition, row.best) for name, row in paper_profile.ROWS.items()}
    kws = (1000, "group", 6)
    assert facts == {
        "KWS-12": kws, "KWS-35": kws, "ASR": (100, "group", 9), "ER": (50, "group", 9), "SID": (200, "iid", 9),
    }  # fmt: skip
    setting = paper_profile.setting_of_row(paper_profile.ROWS["KWS-12"], "nano")
    assert setting.model.depths == (3, 6) and setting.model.shares == () and setting.federation.training.epochs == 1
    assert setting.study.central.epochs == 12  # 1,000 rounds of 1.2 % of the clients


def test_tables_share_the_homogeneous_models():
    grids = paper_profile.grids_of(["ER"], [1, 2], [0], "nano", [], 0)
    cells = grids["ER"][0]
    assert len(cells) == 11 and cells.count(Cell("er", HOMOGENEOUS, 0, 9)) == 1
    assert {(cell.method, cell.depth) for cell in cells} >= {(CENTRAL, 12), ("stale", 0), ("masked", 0)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": ["KWS"]}, "unknown row 'KWS' of the paper's tables; known: KWS-12, KWS-35, ASR"),
        ({"tables": [3]}, "tables 1 or 2"),
        ({"seeds": []}, "give at least one of each"),
        ({"corpora": ["queen"]}, "there are 1 corpora for 2 rows"),
    ],
)
def test_impossible_tables_are_refused(changes, says):
    usual = dict(rows=["ER", "SID"], tables=[1], seeds=[0], backbone="nano", corpora=[], rounds=1)
    with pytest.raises(FedexitError, match=says):
        paper_profile.grids_of(**usual | changes)


def test_a_missing_corpus_or_backbone_is_named_before_anything_runs(corpora, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path))
    absent = paper_profile.grids_of(["ER"], [1], [0], "nano", [str(tmp_path / "none")], 1)
    with pytest.raises(FedexitError, match=r"row ER of the paper's tables: corpus .* is not there"):
        paper_profile.measure(absent, tmp_path)

    def unreachable(name):
        raise FedexitError("no network")

    monkeypatch.setattr(paper_profile, "load_backbone", unreachable)
    for name in paper_sizes.BASES:
        grids = paper_profile.grids_of(["ER"], [1], [0], name, [corpora["iemocap"]], 1)
        with pytest.raises(FedexitError, match=f"run `hf download {name}` .*-p backbone=FOLDER"):
            paper_profile.measure(grids, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_table_1_stands_beside_the_paper(done):
    table = paper_profile.beside_paper(*done, 1)
    own = table.query("task == 'KWS-12'")
    assert list(zip(own["setting"], own["depth"], strict=True)) == [
        *((CENTRAL_NAME, depth) for depth in paper_profile.EXITS),
        *(("federated", depth) for depth in paper_profile.EXITS),
    ]
    theirs = published(1).set_index(["task", "setting", "depth"])["value"]
    assert (own["paper"] == [theirs["KWS-12", row.setting, row.depth] for row in own.itertuples()]).all()
    assert own["ours"].between(0, 100).all() and (own["seeds"] == 1).all()


CENTRAL_NAME = "centralised"


def test_table_2_has_both_readings_of_fedavg_at_both_exits(done):
    table = paper_profile.beside_paper(*done, 2)
    own = table.query("task == 'KWS-12'").set_index(["setting", "depth"])
    assert own.loc[("heterogeneous layer-wise", 6), "paper"] == 17.6
    assert own.loc[("homogeneous", 6), "paper"] == 17.5
    assert np.isnan(own.loc[("heterogeneous layer-wise", 3), "paper"])
    assert np.isnan(own.loc[("heterogeneous FedAvg, masked", 6), "paper"])
    assert len(own) == 7
    words = table.query("metric == 'WER'")
    assert set(words["task"]) == {"ASR-clean", "ASR-other"}
    assert set(words.query("depth == 9 and setting == 'homogeneous'")["paper"]) == {8.81, 18.41}


def test_verification_uses_the_models_of_sid(done):
    found, _ = done
    trials = found["SID"].errors.query("split == 'test' and metric == 'error'")
    trials = trials.assign(split="trials", metric="EER", value=0.25)
    with_trials = {"SID": found["SID"]._replace(errors=trials.query("tier == 'all'"))}
    table = paper_profile.beside_paper(with_trials, done[1], 2).query("task == 'ASV'")
    assert set(table["ours"]) == {25.0} and set(table["seeds"]) == {1}
    assert table.set_index(["setting", "depth"]).loc[("heterogeneous layer-wise", 9), "paper"] == 10.93


# ---- costs -------------------------------------------------------------------------------------------------------


def test_the_dry_run_plans_the_ledger_exactly(done):
    table = paper_costs.beside_ledger(*done)
    assert len(table) == 7 + 2 + 2 and (table["sent"] > 0).all()
    for kind in ("sent", "macs", "memory"):
        assert (table[kind] == table[f"{kind}_planned"]).all(), kind


def test_the_dry_run_without_a_store_of_features_plans_their_convolution(done, monkeypatch):
    _, grids = done
    cells, setting = grids["KWS-12"]
    monkeypatch.setenv("FEDEXIT_CACHE_GB", "0")
    stored = paper_costs.material_of(cells[0], setting)
    bare = paper_costs.material_of.__wrapped__(cells[0], setting)
    assert stored.cached and not bare.cached and bare.stored == 0
    for cell in (cells[0], cells[-1]):
        assert paper_costs.work_of(cell, setting, bare).macs > paper_costs.work_of(cell, setting, stored).macs


def test_costs_add_up_and_scale_with_the_assumed_speed(done):
    grids = {"KWS-12": done[1]["KWS-12"]}
    slow, fast = (paper_costs.costs(grids, [1, 2], tflops).set_index(["table", "row"]) for tflops in (1.0, 4.0))
    assert np.allclose(slow["GPU hours"], 4 * fast["GPU hours"])
    assert slow.loc[("both", "all"), "models"] == sum(len(cells) for cells, _ in grids.values())
    both = slow.loc[("both", "all"), "sent GB"]
    assert both < slow.loc[("Table 1", "all"), "sent GB"] + slow.loc[("Table 2", "all"), "sent GB"]
    for wrong in (0, float("inf"), float("nan")):
        with pytest.raises(FedexitError, match="the assumed speed is"):
            paper_costs.costs(grids, [1], wrong)


def test_stand_ins_have_the_published_sizes_and_every_task():
    sizes = {name: [part.clips for part in parts] for name, parts in paper_sizes.PUBLISHED.items()}
    assert sizes["voxceleb1"] == [138_361, 6_904, 8_251] and sum(sizes["iemocap"]) == 5_531
    corpus = paper_sizes.stand_in("iemocap")
    task = make_task("er", corpus)
    assert len(task.labels) == 4 and task.rows.query("split == 'train'")["group"].nunique() == 6


@pytest.mark.parametrize("name", paper_sizes.BASES)
def test_the_shape_of_a_base_model_is_known_without_its_weights(name):
    backbone = paper_sizes.geometry(name)
    assert backbone.layers == 12 and backbone.width == 768
    real = [parameter.numel() for parameter in backbone.parameters() if not parameter.is_meta]
    assert sum(real) <= backbone.width  # `transformers` makes the mask vector in memory
    if "wav2vec2" in name:  # the paper's count of parameters
        assert sum(parameter.numel() for parameter in backbone.parameters()) == 94_371_712


# ---- command -----------------------------------------------------------------------------------------------------


def project(folder, monkeypatch, parameters):
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "20_paper_tables.ipynb").write_text("{}")
    profiles = {"paper": {"minutes": 1, "limit": 2, "parameters": parameters}}
    entry = {"id": "20_paper_tables", "title": "t", "artifacts": [], "profiles": profiles}
    (folder / "nbs_ci.yml").write_text(yaml.safe_dump({"notebooks": [entry]}))
    monkeypatch.setenv("FEDEXIT_ROOT", str(folder))
    monkeypatch.setenv("FEDEXIT_DATA", str(folder / "data"))


def test_the_command_prints_costs_without_corpora_or_weights(tmp_path, monkeypatch, capsys):
    [paper] = [one for one in load_manifest(ROOT) if one.id == paper_profile.NOTEBOOK]
    project(tmp_path, monkeypatch, paper.profiles["paper"].parameters)
    ask = ["run", "--profile", "paper", "-p", "rows=[ER]", "-p", "seeds=[0]"]
    assert cli.main([*ask, "--dry-run", "--tflops", "2.5"]) == 0
    said = capsys.readouterr().out
    assert "GPU hours ASSUME a device that sustains 2.5 TFLOP/s (--tflops). They are no measurement." in said
    assert "iemocap: published size, because the corpus 'iemocap' is not there" in said
    assert "Table 1" in said and "Table 2" in said and "1,572.1" in said
    assert cli.main(ask) == 2
    said = capsys.readouterr().err
    assert said.startswith("fedexit: row ER of the paper's tables: corpus 'iemocap' is not there;")
    assert said.count("\n") == 1 and not (tmp_path / "results").exists()
    assert cli.main([*ask, "-p", "round=3", "--dry-run"]) == 2
    assert "20_paper_tables: unknown parameter round; its parameters: backbone, corpora" in capsys.readouterr().err


def test_a_profile_may_read_its_optional_corpora_and_needs_none_of_them():
    [paper] = [one for one in load_manifest(ROOT) if one.id == paper_profile.NOTEBOOK]
    assert paper.data_in("paper") == [] and set(paper.profiles["paper"].optional) == set(paper_sizes.PUBLISHED)
    profile = paper.profiles["paper"].model_copy(update={"optional": ["emodb"]})
    reasons = provenance.undeclared(paper.model_copy(update={"profiles": {"paper": profile}}), "paper")
    assert "corpus emodb" not in reasons and "corpus queen" in reasons
