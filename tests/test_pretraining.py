"""Pre-training in the small: nano on tones; targets, batches, the loss, and going on after a kill to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus
from transformers import AutoModel

from fedexit import FedexitError, load_backbone
from fedexit.central.codes import content, features_of, fit_codebook, mfcc, voice
from fedexit.central.masked_prediction import MaskedPrediction, Pretraining, pretrain, pretraining_settings
from fedexit.central.speech_pool import SpeechPool, augmented, open_pool

SMALL = dict(
    backbone="nano", codebooks=("mfcc:8:1", "voice:4:0.5"), updates=12, seconds=4.0, log_every=2, dev_every=4, seed=3
)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    return str(write_small_corpus(tmp_path / "tones"))


@pytest.fixture
def pool():
    random = np.random.default_rng(0)
    lengths = np.array([80_000, 8_000, 40_000])
    return SpeechPool(random.integers(-3000, 3000, lengths.sum()).astype(np.int16), lengths)


def small(corpus, **changes):
    return Pretraining(**SMALL | {"corpora": (corpus,)} | changes)


# ---- targets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [720, 1_039, 16_000, 16_079])
def test_targets_have_the_frames_of_the_backbone(samples):
    waves = torch.randn(2, samples)
    frames = load_backbone("nano").frame_lengths(torch.tensor([samples]))[0]
    assert mfcc(waves).shape == content(waves).shape == (2, frames, 39) and voice(waves).shape == (2, frames, 26)


def test_content_forgets_the_channel_that_mfcc_and_voice_keep():
    wave = torch.randn(1, 16_000)
    filtered = torch.nn.functional.conv1d(wave[None], torch.tensor([[[0.7, 0.3]]]), padding=1)[0, :, :16_000]

    def moved(features):
        one, two = features(wave), features(filtered)
        return ((one - two).norm() / one.norm()).item()

    assert moved(content) < 0.5 * moved(mfcc) and moved(voice) > moved(content) * 0.2
    assert voice(wave).std(1).max() < 1e-5  # the same in every frame


def test_codes_are_the_nearest_centres_and_frequencies_sum_to_one():
    waves = torch.randn(6, 16_000)
    book = fit_codebook(mfcc, [waves[:3], waves[3:]], 5, seed=0)
    frames = (mfcc(waves) - book.mean) / book.std
    nearest = torch.cdist(frames, book.centres[None]).argmin(-1)
    assert torch.equal(book(waves), nearest) and len(nearest.unique()) == 5
    torch.testing.assert_close(book.frequencies.sum(), torch.tensor(1.0))
    assert torch.equal(fit_codebook(mfcc, [waves[:3], waves[3:]], 5, seed=0).centres, book.centres)


def test_a_layer_of_a_teacher_is_a_target_too():
    teacher, waves = load_backbone("nano"), torch.randn(2, 8_000)
    expected = teacher.hidden_states(waves)[0][6]
    torch.testing.assert_close(features_of("layer6", teacher)(waves), expected)
    own = (expected - expected.mean(1, keepdim=True)) / expected.std(1, keepdim=True)
    torch.testing.assert_close(features_of("content6", teacher)(waves), own, atol=1e-3, rtol=1e-3)


def test_unknown_and_impossible_codebooks_are_refused():
    for name in ("mfc", "layer6", "layerx"):
        with pytest.raises(FedexitError, match=f"unknown codebook '{name}': expected mfcc, content, voice"):
            features_of(name, None)
    with pytest.raises(FedexitError, match="too few for 500 clusters"):
        fit_codebook(mfcc, [torch.randn(1, 16_000)], 500, seed=0)


# ---- batches -----------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_its_name(pool):
    one, same, other = (pool.batch(8.0, 0, "train", number) for number in (5, 5, 6))
    assert torch.equal(one, same) and not (one.shape == other.shape and torch.equal(one, other))
    shapes = {tuple(pool.batch(8.0, 0, "train", number).shape) for number in range(30)}
    assert shapes == {(8, 16_000), (4, 32_000), (2, 64_000)}
    torch.testing.assert_close(one.mean(1), torch.zeros(len(one)), atol=1e-5, rtol=0)
    torch.testing.assert_close(one.std(1, correction=0), torch.ones(len(one)), atol=1e-4, rtol=0)


def test_rows_come_from_one_clip_each():
    """Each clip holds one constant and a ramp of its own; no row may cross into its neighbour."""
    lengths = np.full(4, 20_000)
    samples = np.concatenate([np.tile([level, -level], 10_000) for level in (100, 200, 300, 400)]).astype(np.int16)
    pool = SpeechPool(samples, lengths)
    for number in range(20):
        random = np.random.default_rng(number)
        row = pool._cut(number % 4, 16_000, random)
        assert set(np.abs(row)) == {100.0 * (number % 4 + 1)}


def test_short_clips_stand_in_silence():
    pool = SpeechPool(np.full(8_000, 500, np.int16), np.array([8_000]))
    row = pool._cut(0, 16_000, np.random.default_rng(1))
    assert (row != 0).sum() == 8_000 and row.shape == (16_000,)
    assert {pool.batch(8.0, 0, "train", number).shape for number in range(9)} == {(8, 16_000)}


def test_augmentation_touches_at_most_half_of_some_rows(pool):
    clean = torch.randn(40, 16_000)
    mixed = augmented(clean, 0, "augmentation")
    assert torch.equal(mixed, augmented(clean, 0, "augmentation"))
    residual = mixed - clean * (clean * mixed).mean(1, keepdim=True) / (clean * clean).mean(1, keepdim=True)
    changed = (residual.abs() > 0.05).any(1)
    assert 8 <= changed.sum() <= 32
    torch.testing.assert_close(mixed.std(1, correction=0), torch.ones(40), atol=1e-4, rtol=0)


def test_pools_hold_the_wanted_split_alone(corpus):
    train, dev = open_pool([corpus], "train"), open_pool([corpus], "dev")
    assert len(train.lengths) == 48 and len(dev.lengths) == 24
    assert train.hours == pytest.approx(48 * 0.25 / 3600)
    assert np.array_equal(open_pool([corpus], "train").samples, train.samples)  # the second time from the cache


# ---- training ----------------------------------------------------------------------------------------------------


def test_the_model_is_blinded_where_the_mask_is():
    """In a masked frame's place the encoder gets the one mask vector, in the others' what was heard there."""
    book = fit_codebook(mfcc, [torch.randn(4, 16_000)], 6, seed=0)
    task = MaskedPrediction(load_backbone("nano").model, {"mfcc": book}).eval()
    seen = []
    task.model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    mask = torch.zeros(2, 49, dtype=torch.bool)
    mask[:, 10:20] = True
    measures = task(torch.randn(2, 16_000), [torch.zeros(2, 49, dtype=torch.long)], mask)
    assert measures.shape == (4, 1)
    assert torch.equal(seen[0][mask], task.model.masked_spec_embed.expand(20, -1))
    assert not torch.equal(seen[0][~mask][0], task.model.masked_spec_embed)


def test_classifiers_start_at_the_frequencies():
    book = fit_codebook(mfcc, [torch.randn(4, 16_000)], 6, seed=0)
    task = MaskedPrediction(load_backbone("nano").model, {"mfcc": book})
    torch.testing.assert_close(task.classifiers[0].bias.softmax(0), book.frequencies)


def test_it_learns_and_leaves_a_model_folder(corpus, tmp_path):
    out = tmp_path / "run"
    assert pretrain(small(corpus, updates=60, log_every=10, dev_every=30), out)
    curve = pd.read_csv(out / "training" / "stage1.csv")
    assert list(curve["update"]) == [10, 20, 30, 40, 50, 60]
    assert curve["train_seen_loss_mfcc"].iloc[-1] < curve["train_seen_loss_mfcc"].iloc[0] - 0.1
    assert list(curve.dropna()["update"]) == [30, 60]
    model = AutoModel.from_pretrained(out)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    backbone = load_backbone(out)
    assert backbone.pretrained and backbone.layers == 12
    start = load_backbone("nano").state_dict()
    assert any(not torch.allclose(start[name], tensor, atol=1e-3) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_and_resumed_gives_the_bytes_of_an_uninterrupted_run(corpus, tmp_path, precision):
    settings = small(corpus, precision=precision)
    assert pretrain(settings, tmp_path / "whole", checkpoint_every=4)
    sittings = 0
    while not pretrain(settings, tmp_path / "parts", minutes=0, checkpoint_every=4):
        sittings += 1
    assert sittings >= 4
    for name in ("work/curve.csv", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_killed_by_the_system_and_resumed_gives_the_same_bytes(corpus, tmp_path):
    """SIGKILL, at whatever moment it comes; through the command, as a user would."""
    command = [sys.executable, "-m", "fedexit", "pretrain"]
    values = {**SMALL, "updates": 110, "seconds": 2.0, "corpora": [corpus], "codebooks": ["mfcc:8:1"], "log_every": 10}
    flags = [part for name, value in values.items() for part in ("-p", f"{name}={json.dumps(value)}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([*command, tmp_path / "whole", *flags], env=environment).returncode == 0
    process = subprocess.Popen([*command, tmp_path / "killed", *flags], env=environment)
    while process.poll() is None and not (tmp_path / "killed" / "work" / "checkpoint.safetensors").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was killed before its end
    done = subprocess.run([*command, tmp_path / "killed", *flags], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'killed'}: done\n")
    for name in ("work/curve.csv", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_another_setting_does_not_go_on_with_the_run(corpus, tmp_path):
    pretrain(small(corpus, updates=2), tmp_path / "run")
    with pytest.raises(FedexitError, match="holds a run of other settings"):
        pretrain(small(corpus, updates=3), tmp_path / "run")


def test_a_second_stage_starts_from_the_first_and_keeps_its_record(corpus, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    pretrain(small(corpus), first)
    books = {"codebooks": ("layer6:8:1",), "teacher": str(first), "start": str(first)}
    pretrain(small(corpus, updates=4, learning_rate=1e-9, **books), second)
    assert sorted(path.name for path in (second / "training").iterdir()) == [
        f"stage{number}.{kind}" for number in (1, 2) for kind in ("csv", "json")
    ]
    one, two = (load_backbone(folder).state_dict() for folder in (first, second))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    pretrain(small(corpus, updates=1, start=str(first), config={"feat_extract_norm": "layer"}), tmp_path / "layer")
    assert load_backbone(tmp_path / "layer").model.config.feat_extract_norm == "layer"
    card = (second / "README.md").read_text()
    assert "| stage1 | mfcc:8:1, voice:4:0.5 | 12 |" in card and "| stage2 | layer6:8:1 | 4 |" in card
    assert f"{24 * 0.5 / 3600:.1f} hours" in card and "| tones |" in card


def test_precision_is_that_of_the_products(corpus, tmp_path):
    for precision in ("float32", "bfloat16"):
        pretrain(small(corpus, precision=precision), tmp_path / precision)
    one, other = (load_backbone(tmp_path / name).state_dict() for name in ("float32", "bfloat16"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(torch.allclose(one[name], other[name], atol=0.05) for name in one)


def test_a_loss_that_is_no_number_stops_the_run(corpus, tmp_path):
    with pytest.raises(FedexitError, match="the loss is nan at update 2; lower learning_rate"):
        pretrain(small(corpus, learning_rate=float("inf")), tmp_path / "run")


def test_settings_by_name():
    assert pretraining_settings({"updates": 5, "corpora": "queen", "learning_rate": 1}).corpora == ("queen",)
    for given, says in [
        ({"update": 5}, "unknown setting 'update'; known: backbone,"),
        ({"updates": "many"}, "setting updates='many': expected int"),
        ({"precision": "float8"}, "unknown precision 'float8'; known: float32, bfloat16"),
    ]:
        with pytest.raises(FedexitError, match=says):
            pretraining_settings(given)


@pytest.mark.parametrize("book", ["mfcc", "mfcc:8", "mfcc:many:1"])
def test_a_codebook_is_written_with_clusters_and_weight(corpus, tmp_path, book):
    with pytest.raises(FedexitError, match=r"write feature:clusters:weight"):
        pretrain(small(corpus, codebooks=(book,)), tmp_path / "run")
