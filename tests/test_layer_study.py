"""Test what the notebook on pre-training computes: records, probes, changed choices, and runs with stops."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus

from fedexit import load_backbone, open_corpus
from fedexit.central import masked_prediction, targets
from fedexit.central.fine_tuning import Recipe
from fedexit.central.pretraining import Pretraining
from fedexit.data.batches import normalised
from fedexit.lab import layer_probes as probes
from fedexit.lab import pretraining_study as study


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_corpus(str(write_small_corpus(tmp_path_factory.mktemp("corpus") / "tones")))


def task_of(corpus, **options):
    return probes.ProbeTask(corpus, corpus.manifest, "speaker", "group", **{"folds": 3, "seconds": 0.25} | options)


def test_a_part_of_a_corpus_is_a_corpus(corpus, tmp_path):
    part = open_corpus(study.part_of_corpus(corpus, tmp_path / "part", {"train": 3, "dev": 2}))
    assert part.manifest["split"].tolist() == ["train"] * 3 + ["dev"] * 2
    clip = part.manifest["id"][4]
    assert torch.equal(part.waveform(clip), corpus.waveform(clip))


def test_frames_have_their_code_mask_and_bands():
    codes, mask = torch.tensor([4, 4, 7]), torch.tensor([False, True, True])
    frames = study.masked_frames(torch.randn(1600, generator=torch.Generator().manual_seed(0)), codes, mask)
    assert frames["second"].tolist() == pytest.approx([0, 0.02, 0.04]) and frames["code"].tolist() == [4, 4, 7]
    assert frames["masked"].tolist() == [False, True, True] and frames.filter(regex="^mel ").shape == (3, 80)
    assert frames.notna().all(axis=None)


def test_a_run_with_stops_is_bit_identical(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path))
    monkeypatch.setattr(targets, "FIT_BATCHES", 4)
    monkeypatch.setattr(masked_prediction, "_DEV_BATCHES", 1)
    settings = Pretraining(
        "nano", config={"num_hidden_layers": 2}, corpora=(str(corpus.folder),), codebooks=("mfcc:8:1",), updates=4,
        seconds=2.0, log_every=2, dev_every=4,
    )  # fmt: skip
    same, curve = study.with_and_without_stops(settings)
    assert same and curve["update"].tolist() == [2, 4] and curve.filter(regex="train_seen_loss").notna().all(axis=None)


def write_record(folder, number, **settings):
    common = {"codebooks": ["mfcc:8:1"], "teacher": None, "updates": 1800, "seconds": 4.0, "minutes": 5}
    (folder / "training").mkdir(parents=True, exist_ok=True)
    (folder / "training" / f"stage{number}.json").write_text(json.dumps(common | settings))
    curve = pd.DataFrame({"update": [900, 1800], "train_masked_loss_mfcc": [3.0, 2.0],
                          "dev_masked_loss_mfcc": [np.nan, 2.5], "train_seen_loss_mfcc": [1.0, 1.0]})  # fmt: skip
    curve.to_csv(folder / "training" / f"stage{number}.csv", index=False)


def test_records_list_a_shared_stage_once(tmp_path, monkeypatch):
    write_record(tmp_path / "one", 1)
    write_record(tmp_path / "one", 2, teacher="t", distil=["state3:32:1@3"], codebooks=[])
    write_record(tmp_path / "two", 1)
    monkeypatch.setattr(study, "backbone_folders", lambda: {name: tmp_path / name for name in ("one", "two")})
    stages, loss = study.training_records(["one", "two", "random"])
    assert stages[["backbone", "stage", "predicts", "teacher", "updates", "hours of speech"]].values.tolist() == [
        ["two", "stage1", "mfcc:8:1", "", 1800, 2.0],
        ["one", "stage2", "state3:32:1@3", "t", 1800, 2.0],
    ]
    own = loss[loss["backbone"] == "two"].sort_values(["part", "update"])
    assert own[["part", "target", "update", "loss"]].values.tolist() == [
        ["dev", "mfcc", 1800, 2.5], ["train", "mfcc", 900, 3.0], ["train", "mfcc", 1800, 2.0]
    ]  # fmt: skip


@pytest.mark.parametrize(("backbone", "teacher", "size"), [("nano", "tiny", 32), ("tiny-random", "whisper-base", 64)])
def test_each_choice_changes_one_setting(backbone, teacher, size):
    runs = study.changed_choices(backbone, teacher, ["queen"], updates=3, seconds=2.0, seed=5)
    random = runs.pop("states of four layers, from random weights", None)
    first, masked, codes, last, own = runs.values()
    assert masked.mask_probability > first.mask_probability and masked.distil == first.distil
    layer = 2 if teacher == "whisper-base" else 6
    assert first.distil[1] == f"state{layer}:{size}:1@6" and codes.codebooks[1] == f"layer{layer}:{4 * size}:1@6"
    assert last.distil == first.distil[-1:] and codes.distil == own.distil == () and own.teacher is None
    assert first.start == ("tiny" if backbone == "tiny-random" else None) and (random is None) == (first.start is None)
    if random:
        assert random.start is None and random.distil == first.distil and random.seed == 5
    assert {run.seed for run in runs.values()} == {5}
    assert len({repr(run) for run in runs.values()}) == len(runs)


def test_samples_keep_the_order_of_the_rows_and_depend_on_the_seed_alone(corpus):
    rows = corpus.manifest
    drawn = probes.sample(rows, 20, seed=0)
    assert drawn.index.is_monotonic_increasing and len(drawn) == 20
    assert drawn.equals(probes.sample(rows, 20, seed=0)) and not drawn.equals(probes.sample(rows, 20, seed=1))
    assert probes.sample(rows, 10_000, seed=0).equals(rows)


def test_a_probe_task_knows_its_clips_splits_and_guess(corpus):
    task = task_of(corpus)
    assert len(task.clips) == len(task.labels) == 96 and task.guess == 75  # four voices with equally many clips
    groups = corpus.manifest["group"].to_numpy()
    assert all(not set(groups[train]) & set(groups[test]) for train, _, test in task.splits)
    assert probes.sizes({"voice": task}).values.tolist() == [["voice", 96, 4, 3]]
    guess = probes.guesses({"voice": task})
    assert guess.values.tolist() == [["voice", "most frequent class", 75]]


class HalfTeacher:
    """A teacher with two layers: twice and half the first samples of a clip."""

    def hidden_states(self, waveforms):
        frames = waveforms[:, :8].reshape(1, 4, 2)
        return [2 * frames, frames / 2]


def test_layers_are_pooled_probed_and_compared(corpus):
    task = task_of(corpus)
    models = {"nano": load_backbone("nano")}
    features = probes.pooled_layers(models, {"half": HalfTeacher(), "absent": None}, task.clips, "voice")
    assert {name: own.shape[:2] for name, own in features.items()} == {
        "nano": (96, 13),
        "half": (96, 2),
        "log-mel": (96, 1),
    }
    frames = normalised(task.clips[5])[:8].reshape(4, 2)
    by_hand = torch.cat([2 * frames.mean(0), 2 * frames.std(0, correction=0)])
    np.testing.assert_allclose(features["half"][5, 0], by_hand, rtol=1e-5)
    probed = probes.probe_errors({"voice": features}, {"voice": task})
    assert probed.columns.tolist() == ["task", "model", "layer", "repeat", "dev", "test"]
    assert (probed.loc[probed["model"] == "log-mel", "test"] < 5).all()  # tones of four pitches
    alike = probes.layer_similarity(features, ["nano"])
    assert len(alike) == 169 and np.allclose(alike.query("one == other")["cka"], 1)
    found = probes.errors_at(models["nano"], {"voice": task}, (3, 12), "nano")
    at = probes.by_layer(probed).query("model == 'nano'").set_index("layer")["test"]
    assert found == {"voice, layer 3": pytest.approx(at[3]), "voice, layer 12": pytest.approx(at[12])}


def probed_by_hand():
    errors = {3: (30.0, 50.0), 12: (20.0, 10.0)}
    rows = [
        ("t", "m", layer, repeat, 60 - layer, error)
        for layer, own in errors.items()
        for repeat, error in enumerate(own)
    ]
    return pd.DataFrame(rows, columns=["task", "model", "layer", "repeat", "dev", "test"])


def test_gaps_are_paired_by_split_and_the_best_layer_is_chosen_on_dev(corpus):
    probed = probed_by_hand()
    mean, half = probes.gap(probed, "t", "m", 3, 12)
    assert (mean, half) == (25, pytest.approx(12.7062 * 15, rel=1e-4))  # differences 10 and 40
    best = probes.best_layers(probes.by_layer(probed))
    assert best[["task", "model", "layer", "error"]].values.tolist() == [["t", "m", 12, 15]]
    [says] = probes.gap_sentences(probed, {"t": task_of(corpus, folds=2)}, "m")
    assert "minus that at layer 12 is +25.0 points (2 splits, 95 % interval -165.6 to +215.6)" in says


def test_sentences_on_the_start_name_seeds_exits_and_guessing(corpus):
    federated = pd.DataFrame({"task": "t", "seed": [0, 0], "exit": [3, 12], "good": [0.4, 0.5], "bad": [0.8, 0.7]})
    [says] = probes.start_sentences(federated, {"t": task_of(corpus)}, "good", "bad")
    assert "from `good`: 45.0 % errors, from the untrained `bad` 75.0 % (one seed, mean over 2 exits)" in says
    assert "errs on 75.0 %" in says


def test_characters_are_read_from_each_layer_by_the_same_number_of_updates(corpus, monkeypatch):
    asked = []

    def ctc_probe(states, texts, parts, updates, seed):
        asked.append((len(states), texts[0], [len(part) for part in parts], updates, seed))
        return 0.5, 0.25

    monkeypatch.setattr(probes, "ctc_probe", ctc_probe)
    rows = corpus.manifest.iloc[::5].reset_index(drop=True)
    found = probes.character_errors({"nano": load_backbone("nano")}, corpus, rows, (3, 6), updates=7, seed=2)
    counts = rows["split"].value_counts()
    assert asked == [(20, rows["text"][0], [counts["train"], counts["dev"], counts["test"]], 7, 2)] * 2
    assert found.values.tolist() == [["nano", 3, 50, 25], ["nano", 6, 50, 25]]


def test_central_models_are_trained_on_each_split_and_exit(corpus, tmp_path, monkeypatch):
    jobs = []

    def on_workers(function, own, workers, desc):
        jobs.extend(own)
        return [(0.1 * number, 0.2) for number in range(len(own))]

    monkeypatch.setattr(probes, "on_workers", on_workers)
    task, recipe = task_of(corpus), Recipe(epochs=1)
    found = probes.central_errors({"voice": task}, "nano", [3, 12], 2, recipe, lambda name: tmp_path / name, 1)
    assert found[["task", "repeat", "exit"]].values.tolist() == [
        ["voice", 0, 3], ["voice", 0, 12], ["voice", 1, 3], ["voice", 1, 12]
    ]  # fmt: skip
    assert found["dev_error"].tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [job[5] for job in jobs] == [3, 12, 3, 12] and [job[8] for job in jobs] == [0, 0, 1, 1]
    assert jobs[0][9] == tmp_path / "central-voice-0-3.safetensors" and jobs[3][2] is task.splits[1]
