"""Test pre-training at a small scale: targets, batches, loss, checks before the start, and resuming after a kill."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus
from transformers import AutoConfig, AutoModel

from fedexit import FedexitError, cli, load_backbone, open_corpus
from fedexit.central import masked_prediction, targets, teachers
from fedexit.central.codes import content, features_of, fit_codebook, mfcc, voice
from fedexit.central.masked_prediction import MaskedPrediction, mask_frames, pretrain
from fedexit.central.pretraining import Pretraining, pretraining_settings
from fedexit.central.speech_pool import Rows, SpeechPool, augmented, open_pool, open_speech
from fedexit.central.targets import CodeTarget
from fedexit.data.audio import write_audio
from fedexit.data.batches import normalised
from fedexit.model.backbone import PRESETS
from fedexit.support.processes import on_workers
from fedexit.support.tensors import read_tensors, write_tensors

SMALL = dict(
    backbone="nano", config={"num_hidden_layers": 2}, codebooks=("mfcc:8:1", "voice:4:0.5"),
    updates=8, seconds=2.0, log_every=2, dev_every=4, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """Use a separate cache, and few batches for clustering and measuring."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDEXIT_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setattr(targets, "FIT_BATCHES", 8)
        patch.setattr(masked_prediction, "_DEV_BATCHES", 2)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return str(write_small_corpus(tmp_path_factory.mktemp("corpus") / "tones"))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Return the folder of a finished run with a checkpoint every four updates."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert pretrain(small(corpus), out, checkpoint_every=4)
    return out


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


def test_content_features_remove_the_channel_that_mfcc_and_voice_keep():
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


def test_unknown_and_impossible_codebooks_are_refused():
    for name in ("mfc", "layer6", "layerx"):
        with pytest.raises(FedexitError, match=f"unknown codebook '{name}': expected mfcc, content, voice"):
            features_of(name, None)
    with pytest.raises(FedexitError, match="too few for 500 clusters"):
        fit_codebook(mfcc, [torch.randn(1, 16_000)], 500, seed=0)


@pytest.fixture(scope="module")
def states(corpus):
    """Return the stored states of two layers of a backbone, and the pool."""
    opened = open_speech([corpus])
    pool = open_pool(opened, "train")
    return teachers.open_states("nano", [0, 6], pool, pool), pool


def test_stored_states_of_a_row_are_those_of_the_teacher_for_the_whole_clip(states):
    stored, pool = states
    waves = pool.clip(5).astype(np.float32)[None]
    rows = Rows(normalised(torch.from_numpy(waves[0]))[None], np.array([5]), np.array([0]), 1.0)
    found = stored.rows(rows, 6)[0]
    expected = load_backbone("nano").hidden_states(rows.waveforms)[0][6][0]
    assert found.shape == expected.shape == (12, 32)
    # All components together are the standardised states, up to a rotation: distances between frames are kept.
    scaled = (found * stored.variances[6].sqrt()).double()
    raw = torch.cat([load_backbone("nano").hidden_states(normalised(torch.from_numpy(
        pool.clip(clip).astype(np.float32)))[None])[0][6][0] for clip in range(len(pool.lengths))])  # fmt: skip
    standard = ((expected - raw.mean(0)) / raw.std(0)).double()
    torch.testing.assert_close(torch.cdist(scaled, scaled), torch.cdist(standard, standard), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_a_row_takes_the_frames_that_are_closest_in_time(states, speed):
    stored, _ = states
    whole = stored.frames[6][stored.starts[3] :][: stored.counts[3]].astype(np.float32)
    rows = Rows(torch.zeros(1, 2_000), np.array([3]), np.array([650]), speed)
    found = stored.rows(rows, 6)[0].numpy()
    for frame in range(len(found)):
        centre = 650 + speed * (320 * frame + 200)
        nearest = min(range(len(whole)), key=lambda place: abs(320 * place + 200 - centre))
        assert np.array_equal(found[frame], whole[nearest])


def test_rows_that_start_with_zeros_repeat_the_first_frame(states):
    stored, _ = states
    rows = Rows(torch.zeros(1, 3_600), np.array([2]), np.array([-1_600]), 1.0)
    found = stored.rows(rows, 0)[0]
    assert torch.equal(found[0], found[5]) and not torch.equal(found[5], found[6])


def test_an_interrupted_computation_of_states_keeps_whole_pieces(corpus, monkeypatch):
    pool = open_pool(open_speech([corpus]), "train")
    whole = teachers.open_states("nano", [3, 9], pool, pool).frames
    expected = {layer: np.array(frames) for layer, frames in whole.items()}
    folder = pathlib.Path(whole[3].filename).parent
    for frames in whole.values():
        pathlib.Path(frames.filename).unlink()
    monkeypatch.setattr(teachers, "_PIECE_CLIPS", 10)

    def interrupted(function, jobs, workers, desc):
        for job in jobs[:2]:
            function(*job)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teachers, "on_workers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            teachers.open_states("nano", [3, 9], pool, pool)
    assert len(list(folder.glob("*.3-9.*.f16"))) == 2
    again = teachers.open_states("nano", [3, 9], pool, pool, workers=2).frames
    assert all(np.array_equal(again[layer], expected[layer]) for layer in (3, 9))
    assert not list(folder.glob("*.3-9.*.f16"))


def test_stored_layers_are_not_computed_again(corpus, monkeypatch):
    pool = open_pool(open_speech([corpus]), "train")
    one = teachers.open_states("nano", [2], pool, pool).frames[2]
    asked = []
    monkeypatch.setattr(teachers, "on_workers", lambda function, jobs, *rest: asked.extend(jobs) or on_workers(
        function, jobs, *rest))  # fmt: skip
    both = teachers.open_states("nano", [2, 4], pool, pool).frames
    assert [list(job.bases) for job, *_ in asked] == [[4]]
    assert np.array_equal(both[2], one) and both[4].shape == one.shape
    alone = teachers.open_states("nano", [4], pool, pool).frames[4]
    assert np.array_equal(both[4], alone)


def test_long_clips_are_cut_without_a_lost_frame(monkeypatch):
    samples = np.random.default_rng(0).integers(-3000, 3000, 20_000).astype(np.int16)
    pool, teacher = SpeechPool(samples, np.array([20_000])), teachers.load_teacher("nano")
    (whole,) = teachers._states(teacher, [0], pool, 0)
    monkeypatch.setattr(teachers, "_LONGEST", 0.5)
    (cut,) = teachers._states(teacher, [0], pool, 0)
    assert whole.shape == cut.shape == (62, 32)


# ---- batches -----------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_its_name(pool):
    one, same, other = (pool.batch(8.0, 0, "train", number).waveforms for number in (5, 5, 6))
    assert torch.equal(one, same) and not (one.shape == other.shape and torch.equal(one, other))
    shapes = {tuple(pool.batch(8.0, 0, "train", number).waveforms.shape) for number in range(30)}
    assert shapes == {(8, 16_000), (4, 32_000), (2, 64_000)}
    torch.testing.assert_close(one.mean(1), torch.zeros(len(one)), atol=1e-5, rtol=0)
    torch.testing.assert_close(one.std(1, correction=0), torch.ones(len(one)), atol=1e-4, rtol=0)


def test_rows_come_from_one_clip_each():
    """Each clip holds its own constant and ramp, so a row with samples of two clips would be noticed."""
    lengths = np.full(4, 20_000)
    samples = np.concatenate([np.tile([level, -level], 10_000) for level in (100, 200, 300, 400)]).astype(np.int16)
    pool = SpeechPool(samples, lengths)
    for number in range(20):
        random = np.random.default_rng(number)
        row, _ = pool._cut(number % 4, 16_000, random)
        assert set(np.abs(row)) == {100.0 * (number % 4 + 1)}


def test_short_clips_are_padded_with_silence():
    pool = SpeechPool(np.full(8_000, 500, np.int16), np.array([8_000]))
    row, start = pool._cut(0, 16_000, np.random.default_rng(1))
    assert (row != 0).sum() == 8_000 and row.shape == (16_000,) and row[-start] == 500 and row[-start - 1] == 0
    assert {pool.batch(8.0, 0, "train", number).waveforms.shape for number in range(9)} == {(8, 16_000)}


def test_augmentation_touches_at_most_half_of_some_rows(pool):
    clean = torch.randn(40, 16_000)
    mixed = augmented(clean, 0, "augmentation")
    assert torch.equal(mixed, augmented(clean, 0, "augmentation"))
    residual = mixed - clean * (clean * mixed).mean(1, keepdim=True) / (clean * clean).mean(1, keepdim=True)
    changed = (residual.abs() > 0.05).any(1)
    assert 8 <= changed.sum() <= 32
    torch.testing.assert_close(mixed.std(1, correction=0), torch.ones(40), atol=1e-4, rtol=0)


def test_pools_hold_only_the_given_split(corpus, monkeypatch):
    opened = open_speech([corpus])
    train, dev = open_pool(opened, "train"), open_pool(opened, "dev")
    assert len(train.lengths) == 48 and len(dev.lengths) == 24
    assert train.hours == pytest.approx(48 * 0.25 / 3600)
    monkeypatch.setattr("fedexit.central.speech_pool._decode", None)  # the second time from the cache
    assert np.array_equal(open_pool(opened, "train").samples, train.samples)


def test_a_clip_replaced_under_its_name_gets_a_new_pool(tmp_path):
    folder = write_small_corpus(tmp_path / "tones", clips=1)
    before = open_pool(open_speech([str(folder)]), "train")
    clip = open_corpus(folder).select("train")["path"].iloc[0]
    write_audio(folder / clip, 0.1 * torch.ones(4_000))
    after = open_pool(open_speech([str(folder)]), "train")
    assert np.array_equal(before.lengths, after.lengths)
    assert not np.array_equal(before.samples[:4_000], after.samples[:4_000])
    assert np.array_equal(before.samples[4_000:], after.samples[4_000:])


def test_silent_speech_is_refused(tmp_path):
    folder = write_small_corpus(tmp_path / "silent", clips=1)
    for file in (folder / "clips").iterdir():
        write_audio(file, torch.zeros(4_000))
    with pytest.raises(FedexitError, match="all clips with the split 'train' are silent"):
        open_pool(open_speech([str(folder)]), "train")


def test_a_cached_pool_without_its_samples_is_decoded_again(tmp_path):
    opened = open_speech([str(write_small_corpus(tmp_path / "few", clips=2))])
    pool = open_pool(opened, "dev")
    samples, kept = pool.samples.filename, np.array(pool.samples)
    os.unlink(samples)
    assert np.array_equal(open_pool(opened, "dev").samples, kept)


@pytest.mark.parametrize("masks", [(0.65, 10), (1.0, 1), (0.01, 48), (1.0, 24)])
def test_masks_cover_spans_and_leave_a_frame_unmasked(masks):
    mask = mask_frames((3, 49), *masks, "masks")
    assert mask.any(1).all() and not mask.all()
    assert torch.equal(mask, mask_frames((3, 49), *masks, "masks"))


def test_the_private_mask_function_of_transformers_draws_the_same_masks_as_before():
    """This fails when transformers changes or removes the function: then the pre-training results change as well."""
    mask = mask_frames((2, 49), 0.65, 10, "masks", 1)
    assert [row.nonzero().flatten().tolist() for row in mask] == [
        [*range(7, 18), *range(20, 30), *range(37, 47)],
        [*range(1, 11), *range(13, 36)],
    ]


# ---- training ----------------------------------------------------------------------------------------------------


def test_the_model_reads_the_mask_vector_in_masked_frames_only():
    book = fit_codebook(mfcc, [torch.randn(4, 16_000)], 6, seed=0)
    task = MaskedPrediction(load_backbone("nano").model, {"mfcc": CodeTarget(book, 1.0, 12)}).eval()
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
    task = MaskedPrediction(load_backbone("nano").model, {"mfcc": CodeTarget(book, 1.0, 12)})
    torch.testing.assert_close(task.heads[0].bias.softmax(0), book.frequencies)


def test_it_learns_and_leaves_a_model_folder(corpus, tmp_path):
    out = tmp_path / "run"
    assert pretrain(small(corpus, updates=60, log_every=10, dev_every=30, seconds=4.0), out)
    curve = pd.read_csv(out / "training" / "stage1.csv")
    assert list(curve["update"]) == [10, 20, 30, 40, 50, 60]
    assert curve["train_seen_loss_mfcc"].iloc[-1] < curve["train_seen_loss_mfcc"].iloc[0] - 0.1
    assert list(curve.dropna()["update"]) == [30, 60]
    model = AutoModel.from_pretrained(out)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    backbone = load_backbone(out)
    assert backbone.pretrained and backbone.layers == 2
    start = load_backbone("nano").truncated(2).state_dict()
    assert any(not torch.allclose(start[name], tensor, atol=1e-3) for name, tensor in backbone.state_dict().items())


def same_result(one, other):
    for name in ("work/curve.csv", "model.safetensors", "training/stage1.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def in_parts(settings, out):
    """Run with a stop at every checkpoint; return the number of stops."""
    stops = 0
    while not pretrain(settings, out, minutes=0, checkpoint_every=4):
        stops += 1
    return stops


def test_a_resumed_run_writes_identical_files(corpus, whole, tmp_path):
    assert in_parts(small(corpus), tmp_path / "parts") == 3
    same_result(whole, tmp_path / "parts")


def test_bfloat16_with_dropped_layers_resumes_and_stays_close_to_float32(corpus, whole, tmp_path):
    """With LayerDrop some layers have no gradient for a while, and the optimiser has no state for them."""
    plain, dropped = small(corpus, precision="bfloat16"), {"num_hidden_layers": 2, "layerdrop": 0.9}
    pretrain(plain, tmp_path / "bfloat16")
    one, other = (load_backbone(folder).state_dict() for folder in (whole, tmp_path / "bfloat16"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(torch.allclose(one[name], other[name], atol=0.05) for name in one)
    settings = dataclasses.replace(plain, config=dropped)
    assert pretrain(settings, tmp_path / "whole", checkpoint_every=4)
    assert in_parts(settings, tmp_path / "parts") == 3
    same_result(tmp_path / "whole", tmp_path / "parts")


KILLED = """
import os, signal, sys
from fedexit import cli
from fedexit.central import masked_prediction, targets

targets.FIT_BATCHES, masked_prediction._DEV_BATCHES = 8, 2
update = masked_prediction._Run.update

def update_or_die(run, number, batch):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    update(run, number, batch)

masked_prediction._Run.update = update_or_die
masked_prediction.pretrain.__defaults__ = (float("inf"), 4, "cpu", 1)
cli.main(sys.argv[1:])
"""


def test_a_killed_run_resumes_with_identical_files(corpus, whole, tmp_path, capsys):
    """Kill the command of a user by SIGKILL between two checkpoints."""
    values = {**SMALL, "corpora": [corpus]}
    command = ["pretrain", str(tmp_path / "killed"), *(f"-p{name}={json.dumps(v)}" for name, v in values.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", KILLED, *command], env=environment)
    assert process.returncode == -signal.SIGKILL
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'killed'}: done\n"
    same_result(whole, tmp_path / "killed")


def test_a_finished_run_is_not_changed_by_repeating_it(corpus, whole):
    files = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    assert pretrain(small(corpus), whole)
    assert {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()} == files


def test_a_second_stage_starts_from_the_first_and_keeps_its_record(corpus, whole, tmp_path):
    second = tmp_path / "second"
    books = {"codebooks": ("layer2:8:1",), "teacher": str(whole), "start": str(whole), "config": {}}
    pretrain(small(corpus, updates=4, learning_rate=1e-9, **books), second)
    assert sorted(path.name for path in (second / "training").iterdir()) == [
        f"stage{number}.{kind}" for number in (1, 2) for kind in ("csv", "json")
    ]
    one, two = (load_backbone(folder).state_dict() for folder in (whole, second))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    with pytest.raises(FedexitError, match="12 missing"):  # a start has all weights of the new geometry
        pretrain(small(corpus, updates=1, start=str(whole), config={"feat_extract_norm": "layer"}), tmp_path / "layer")
    card = (second / "README.md").read_text()
    assert "| stage1 | mfcc:8:1, voice:4:0.5 | 8 |" in card and "| stage2 | layer2:8:1 | 4 |" in card
    assert f"{24 * 0.5 / 3600:.1f} hours" in card and "| tones |" in card


def test_a_loss_that_is_not_finite_stops_the_run(corpus, tmp_path):
    with pytest.raises(FedexitError, match=r"the loss is nan at update \d; lower learning_rate"):
        pretrain(small(corpus, learning_rate=1e30), tmp_path / "run")


# ---- the same run and no other -----------------------------------------------------------------------------------


@pytest.fixture
def begun(corpus, tmp_path, monkeypatch):
    """Return a corpus and the folder of a run on it that stopped at its first checkpoint."""
    folder = shutil.copytree(corpus, tmp_path / "own")
    assert not pretrain(small(str(folder)), tmp_path / "run", minutes=0, checkpoint_every=2)
    monkeypatch.setattr(masked_prediction, "_Run", None)  # nothing may be trained from now on
    return folder, tmp_path / "run"


def test_other_settings_do_not_resume_the_run(begun):
    folder, run = begun
    with pytest.raises(FedexitError, match="run holds a run with other settings; name a new folder"):
        pretrain(small(str(folder), updates=9), run)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "\0"])
def test_a_damaged_record_of_the_settings_is_refused_in_one_line(corpus, tmp_path, content):
    record = tmp_path / "run" / "work" / "settings.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    with pytest.raises(
        FedexitError, match=r"^[^\n]*settings\.json is damaged \([^\n]+\); delete [^\n]*run and run again$"
    ):
        pretrain(small(corpus), tmp_path / "run")


def test_other_audio_does_not_resume_the_run(begun):
    folder, run = begun
    write_audio(folder / open_corpus(folder).select("train")["path"].iloc[0], 0.1 * torch.ones(4_000))
    with pytest.raises(FedexitError, match="run holds a run with other corpora; name a new folder"):
        pretrain(small(str(folder)), run)


def test_other_codebooks_and_damaged_files_do_not_resume_the_run(corpus, tmp_path):
    run = tmp_path / "run"
    pretrain(small(corpus), run, minutes=0, checkpoint_every=2)
    checkpoint, books = run / "work/checkpoint.safetensors", run / "work/codebooks.safetensors"
    kept = books.read_bytes()
    tensors, _ = read_tensors(books)
    write_tensors(tmp_path / "others", {name: 2 * tensor for name, tensor in tensors.items()})
    for changed, message in [
        ((tmp_path / "others").read_bytes(), "checkpoint.safetensors belongs to another run"),
        (kept[:-1] + bytes([kept[-1] ^ 1]), "codebooks.safetensors are damaged"),
        (kept[:40], "codebooks.safetensors are damaged"),
    ]:
        books.write_bytes(changed)
        with pytest.raises(FedexitError, match=message):
            pretrain(small(corpus), run)
    books.write_bytes(kept)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(FedexitError, match=r"checkpoint\.safetensors is damaged"):
        pretrain(small(corpus), run)
    other = tmp_path / "other"
    (other / "work").mkdir(parents=True)
    (other / "work/codebooks.safetensors").write_bytes(kept)
    with pytest.raises(FedexitError, match="hold no mfcc with 9 clusters"):
        pretrain(small(corpus, codebooks=("mfcc:9:1",)), other)


def test_a_folder_with_something_else_is_left_alone(corpus, whole, tmp_path):
    model = shutil.copytree(whole, tmp_path / "model", ignore=shutil.ignore_patterns("work"))
    (tmp_path / "file").touch()
    for out, message in [
        (model, "holds a model and no unfinished run"),
        (tmp_path / "file", "a file has its name"),
        (tmp_path / "file" / "below", "below cannot be written"),
    ]:
        with pytest.raises(FedexitError, match=message):
            pretrain(small(corpus), out)


# ---- checks before the start -------------------------------------------------------------------------------------


def test_codebooks_are_those_of_the_sound_unless_the_model_distils():
    assert [book.feature for book in Pretraining().books] == ["mfcc", "content", "voice"]
    given = {"distil": ["state2:8:1@3"], "teacher": "nano"}
    assert Pretraining(**given).books == pretraining_settings(given).books == []
    both = Pretraining(codebooks="mfcc:8:1", distil=("state2:8:1@3",), teacher="nano")
    assert both.targets == ("mfcc:8:1", "state2:8:1@3") and both.teacher_layers == [2]


def test_settings_by_name():
    assert pretraining_settings({"updates": 5, "corpora": "queen", "learning_rate": 1}).corpora == ("queen",)
    assert pretraining_settings({"corpora": ["queen", "own"]}).corpora == ("queen", "own")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"update": 5}, "unknown setting 'update'; known: backbone,"),
        ({"updates": "many"}, "setting updates='many': input should be a valid integer"),
        ({"updates": 2.9}, "setting updates=2.9: input should be a valid integer"),
        ({"updates": True}, "setting updates=True: input should be a valid integer"),
        ({"updates": 0}, "setting updates=0: input should be greater than or equal to 1"),
        ({"updates": -1}, "setting updates=-1: input should be greater than or equal to 1"),
        ({"seconds": -4}, "setting seconds=-4: input should be greater than or equal to 1"),
        ({"seconds": 1e9}, "setting seconds=1000000000.0: input should be less than or equal to 3600"),
        ({"learning_rate": float("nan")}, "setting learning_rate=nan: input should be a finite number"),
        ({"learning_rate": float("inf")}, "setting learning_rate=inf: input should be a finite number"),
        ({"learning_rate": None}, "setting learning_rate=None: input should be a valid number"),
        ({"seen_weight": -1}, "setting seen_weight=-1: input should be greater than or equal to 0"),
        ({"mask_probability": 0}, "setting mask_probability=0: input should be greater than 0"),
        ({"mask_probability": 1000}, "setting mask_probability=1000: input should be less than or equal to 1"),
        ({"mask_frames": 0}, "setting mask_frames=0: input should be greater than or equal to 1"),
        ({"log_every": 0}, "setting log_every=0: input should be greater than or equal to 1"),
        ({"precision": "float8"}, "setting precision='float8': input should be 'float32' or 'bfloat16'"),
        ({"backbone": "nanoo"}, "unknown backbone 'nanoo'; known: nano,"),
        ({"corpora": []}, "setting corpora=[]: tuple should have at least 1 item"),
        ({"corpora": [1]}, "setting corpora=[1]: input should be a valid string"),
        ({"start": ""}, "setting start='': string should have at least 1 character"),
        ({"config": "tiny"}, "setting config='tiny': input should be a valid dictionary"),
        ({"codebooks": []}, "setting codebooks=[]: tuple should have at least 1 item"),
        ({"codebooks": ["mfcc"]}, "codebook 'mfcc': write feature:clusters:weight"),
        ({"codebooks": ["mfcc:many:1"]}, "codebook 'mfcc:many:1': write feature:clusters:weight"),
        ({"codebooks": ["mfcc:0:1"]}, "codebook 'mfcc:0:1': give at least 2 clusters"),
        ({"codebooks": ["mfcc:8:nan"]}, "codebook 'mfcc:8:nan': give at least 2 clusters and a finite weight"),
        ({"codebooks": ["mfc:8:1"]}, "unknown codebook 'mfc': expected mfcc, content, voice, or layerL"),
        ({"codebooks": ["layer2:8:1"]}, "layer2 is a layer of a teacher; name the teacher with teacher="),
        ({"codebooks": ["mfcc:8:1@0"]}, "codebook 'mfcc:8:1@0': layers of the model count from 1"),
        ({"codebooks": ["mfcc:8:1@top"]}, "write feature:clusters:weight or feature:clusters:weight@layer"),
        ({"codebooks": ["state2:8:1"]}, "unknown codebook 'state2': expected mfcc"),
        ({"distil": ["layer2:8:1"]}, "state 'layer2:8:1': name a layer of the teacher, for example state3"),
        ({"distil": ["state2"]}, "state 'state2': write stateL:components:weight or stateL:components:weight@layer"),
        ({"distil": ["state2:1:1"]}, "state 'state2:1:1': give at least 2 components"),
        ({"distil": ["state2:8:1"]}, "state2 is a layer of a teacher; name the teacher with teacher="),
        ({"speeds": [0.95]}, "setting speeds: 0.95 is no multiple of 0.1"),
        ({"speeds": []}, "setting speeds=[]: tuple should have at least 1 item"),
        ({"codebooks": ["mfcc:4:1", "mfcc:8:1"]}, "targets mfcc:4:1, mfcc:8:1 use one feature twice"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_sentence(given, message):
    with pytest.raises(FedexitError, match=re.escape(message)) as caught:
        pretraining_settings(given)
    assert "\n" not in str(caught.value)


def saved(folder, **changes):
    """Return an ordinary model folder: a config and weights, without a training record."""
    config = PRESETS["nano"] | {"num_hidden_layers": 2} | changes
    AutoModel.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    return str(folder)


SLOW_FRAMES = dict(
    conv_dim=(16,) * 8, conv_stride=(5, *[2] * 7), conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2), num_feat_extract_layers=8
)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"apply_spec_augment": False}, "it does not mask its input; set config={apply_spec_augment: true"),
        ({"mask_time_prob": 0.0, "mask_feature_prob": 0.0}, "it does not mask its input"),
        ({"model_type": "unispeech"}, "names unispeech; expected one of wav2vec2, hubert, wavlm, data2vec-audio"),
        (SLOW_FRAMES, "the model has 24 frames in a second, but all targets have 49"),
    ],
)
def test_a_start_that_cannot_be_trained_is_refused_at_once(corpus, tmp_path, start, message):
    settings = small(corpus, start=saved(tmp_path / "start", **start), config={})
    with pytest.raises(FedexitError, match=re.escape(message)) as caught:
        pretrain(settings, tmp_path / "out")
    assert "\n" not in str(caught.value) and not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_frames": 49}, "mask_frames=49 would mask all 49 frames of a row; take fewer"),
        ({"codebooks": ["mfcc:8:1@3"]}, "target mfcc is read from layer 3, but the model has layers 1 to 2"),
        ({"codebooks": ["mfcc:8:1@1"], "config": {"num_hidden_layers": 2, "layerdrop": 0.1}}, "set layerdrop to 0"),
        ({"codebooks": ["layer99:8:1"], "teacher": "nano"}, "teacher nano has layers 0 to 12, but no layer 99"),
        ({"distil": ["state2:33:1"], "teacher": "nano"}, "asks for 33 components, but there are 32 of each layer"),
        ({"teacher": "nowhere"}, "cannot load backbone 'nowhere'"),
        ({"start": "nowhere"}, "cannot start from 'nowhere' with config="),
        ({"config": {"num_hidden_layer": 2}}, "the config of hubert has no entry 'num_hidden_layer'"),
        ({"start": "nano", "config": {}}, "nano is a preset with random weights; set backbone=nano"),
        ({"config": {"layerdrop": 1.0}}, "num_hidden_layers must be at least 1 and layerdrop at least 0 and below 1"),
        ({"config": {"num_hidden_layers": 0}}, "num_hidden_layers must be at least 1"),
        ({"config": {"num_hidden_layers": "2"}}, "expected int, got str"),
        ({"config": {"hidden_size": 33}}, "cannot start from 'nano' with config={'hidden_size': 33}: "),
        ({"config": {"hidden_dropout": 7}}, "cannot start from 'nano' with config={'hidden_dropout': 7}: "),
        ({"config": {"model_type": "whisper"}}, "cannot start from 'nano' with config={'model_type': 'whisper'}: "),
        ({"corpora": ["nowhere"]}, "corpus 'nowhere' is not there"),
    ],
)
def test_models_and_corpora_are_checked_before_anything_is_written(corpus, tmp_path, changes, message):
    with pytest.raises(FedexitError, match=re.escape(message)) as caught:
        pretrain(small(corpus, **changes), tmp_path / "out")
    assert "\n" not in str(caught.value) and not any((tmp_path / "out").iterdir())


def test_corpora_listed_twice_or_without_development_clips_are_refused(corpus, tmp_path):
    with pytest.raises(FedexitError, match="name one folder twice; list each corpus once"):
        pretrain(small(corpus, corpora=(corpus, f"{corpus}/../tones")), tmp_path / "out")
    folder = shutil.copytree(corpus, tmp_path / "own")
    table = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    table[table["split"] != "dev"].to_csv(folder / "manifest.csv", index=False)
    with pytest.raises(FedexitError, match=r"no clips with the split 'dev' in .*own"):
        pretrain(small(str(folder)), tmp_path / "out")


@pytest.mark.parametrize("arguments", [{"minutes": float("nan")}, {"minutes": -1}, {"checkpoint_every": 0}])
def test_minutes_and_checkpoints_out_of_range_are_refused(corpus, tmp_path, arguments):
    with pytest.raises(FedexitError, match="minutes must be >= 0 and checkpoint_every >= 1"):
        pretrain(small(corpus), tmp_path / "out", **arguments)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("hubert", {"do_stable_layer_norm": True}), ("wav2vec2", {}), ("wavlm", {}), ("data2vec-audio", {})],
)
def test_a_start_without_a_record_gives_a_model_with_the_record_of_its_own_stage(corpus, tmp_path, family, changes):
    start = saved(tmp_path / "start", model_type=family, **changes)
    assert pretrain(small(corpus, start=start, config={}, updates=2), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out/training")) == ["stage1.csv", "stage1.json"]
    assert load_backbone(tmp_path / "out").layers == 2
    assert f"A {family} encoder" in (card := (tmp_path / "out/README.md").read_text()) and "from `start`" in card


def test_a_start_with_other_files_in_its_record_keeps_them_and_an_unreadable_stage_is_refused(corpus, tmp_path):
    start = saved(tmp_path / "start")
    (tmp_path / "start/training").mkdir()
    (tmp_path / "start/training/ctc.json").write_text("{}")
    settings = small(corpus, start=start, config={}, updates=2)
    assert pretrain(settings, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out/training")) == ["ctc.json", "stage1.csv", "stage1.json"]
    (tmp_path / "start/training/stage1.json").write_text("{}")
    with pytest.raises(FedexitError, match=r"stage1\.json is not the record of a stage by `fedexit pretrain`"):
        pretrain(settings, tmp_path / "other")
