"""Test central fine-tuning on tones: learning, bit-identical resuming, and refusal of unusable input."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import write_small_corpus

from fedexit import FedexitError, MultiExitModel, load_backbone, open_corpus
from fedexit.central import fine_tuning
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.central.probes import group_splits
from fedexit.data.batches import normalised
from fedexit.data.text import CHARACTERS, characters
from fedexit.federated.clients import Client, LocalTraining, local_round
from fedexit.lab.cells import fine_tuned_error
from fedexit.model.features import spec_augment
from fedexit.model.metrics import predict
from fedexit.support.processes import on_workers
from fedexit.support.streams import seeded

RECIPE = Recipe(epochs=2, batch_size=8, crop=2_000)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def clips():
    generator = torch.Generator().manual_seed(0)
    pitches = torch.tensor([300.0, 2000.0])
    tones = [torch.sin(2 * torch.pi * pitches[n % 2] * torch.arange(2_500) / 16_000) for n in range(16)]
    return [(tone + 0.1 * torch.randn(2_500, generator=generator), n % 2) for n, tone in enumerate(tones)]


def model(labels=("low", "high"), exits=(3,), head="pooled"):
    return MultiExitModel(load_backbone("nano").truncated(max(exits)), labels, exits, head=head)


@pytest.fixture(scope="module")
def interrupted(clips, tmp_path_factory):
    """Return the checkpoint of a run that was interrupted after its first epoch."""
    file, save = tmp_path_factory.mktemp("central") / "state.safetensors", fine_tuning.save_checkpoint

    def save_and_stop(*arguments):
        save(*arguments)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(fine_tuning, "save_checkpoint", save_and_stop)
        fine_tune(model(), clips, [3], RECIPE, checkpoint=file)
    return file.read_bytes()


def resume(interrupted, folder, clips, exits=(3,), recipe=RECIPE, seed=0, start=None):
    file, tuned = folder / "state.safetensors", start or model()
    file.write_bytes(interrupted)
    fine_tune(tuned, clips, exits, recipe, seed, file)
    return tuned


def test_a_resumed_run_ends_with_bit_identical_weights(clips, interrupted, tmp_path, monkeypatch):
    whole, steps, step = model(), [], fine_tuning._step
    fine_tune(whole, clips, [3], RECIPE)
    monkeypatch.setattr(fine_tuning, "_step", lambda *arguments: steps.append(step(*arguments)) or steps[-1])
    parts = resume(interrupted, tmp_path, clips)
    assert len(steps) == 2  # of the one epoch that was left
    assert whole.checksum() == parts.checksum() != model().checksum()
    frozen = "backbone.model.feature_extractor.conv_layers.0.conv.weight"
    assert torch.equal(whole.state_dict()[frozen], model().state_dict()[frozen])


def test_a_checkpoint_is_resumed_with_numpy_integers_and_copied_clips(clips, interrupted, tmp_path):
    same = [(clip.clone(), np.int64(label)) for clip, label in clips]
    resumed = resume(interrupted, tmp_path, same, exits=np.array([3, 3]), seed=np.int32(0))
    assert resumed.checksum() == resume(interrupted, tmp_path, clips).checksum()


def changed_audio(clips):
    other = clips[0][0].clone()
    other[7] += 1e-6
    return [(other, clips[0][1]), *clips[1:]]


@pytest.mark.parametrize(
    "change",
    [
        lambda clips: {"clips": changed_audio(clips)},
        lambda clips: {"clips": [clips[2], clips[1], clips[0], *clips[3:]]},  # targets stay the same
        lambda clips: {"clips": [*clips[:-1], (clips[-1][0], 1 - clips[-1][1])]},
        lambda clips: {"clips": clips[:-1]},
        lambda clips: {"recipe": dataclasses.replace(RECIPE, epochs=3)},
        lambda clips: {"recipe": dataclasses.replace(RECIPE, weight_decay=0.04)},
        lambda clips: {"exits": (1, 3), "start": model(exits=(1, 3))},
        lambda clips: {"seed": 1},
        lambda clips: {"start": MultiExitModel(load_backbone("nano", seed=1).truncated(3), ["low", "high"], [3])},
    ],
    ids=["audio", "order", "label", "fewer", "epochs", "recipe", "exits", "seed", "start"],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(clips, interrupted, tmp_path, change):
    with pytest.raises(FedexitError, match=r"state\.safetensors belongs to another run"):
        resume(interrupted, tmp_path, **{"clips": clips} | change(clips))


def test_a_damaged_checkpoint_is_refused_by_name(clips, interrupted, tmp_path):
    with pytest.raises(FedexitError, match=r"state\.safetensors is damaged \(.+\); delete it and run again"):
        resume(interrupted[:500], tmp_path, clips)


def test_crops_and_order_come_from_the_seed(clips):
    found = []
    recipe = dataclasses.replace(RECIPE, epochs=1)
    for seed, crop in ((0, 2_000), (0, 2_000), (1, 2_000), (0, 2_500), (0, 9_000)):
        tuned = model()
        fine_tune(tuned, clips, [3], dataclasses.replace(recipe, crop=crop), seed)
        found.append(tuned.checksum())
    assert found[0] == found[1] and found[3] == found[4]  # a crop longer than the clip is the clip
    assert len(set(found)) == 3


def test_a_loss_that_is_not_finite_ends_the_run(clips):
    with pytest.raises(FedexitError, match="the loss is nan; lower the learning rate"):
        fine_tune(model(), clips, [3], dataclasses.replace(RECIPE, learning_rate=1e30, epochs=9))


def with_nan(clip):
    return torch.where(torch.arange(len(clip)) == 99, torch.nan, clip)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda clip: (with_nan(clip), 0), "clip 1 holds NaN"),
        (lambda clip: (clip[None], 0), "clip 1 has shape (1, 2500)"),
        (lambda clip: (clip.double(), 0), "clip 1 is float64"),
        (lambda clip: (clip[:300], 0), "clip 1 is shorter than one frame (300 samples)"),
        (lambda clip: (clip[:0], 0), "clip 1 holds no samples"),
        (lambda clip: (clip, 2), "clip 1 has target 2; give the index of a label, 0 to 1"),
        (lambda clip: (clip, -1), "clip 1 has target -1"),
        (lambda clip: (clip, 1.0), "clip 1 has target 1.0"),
        (lambda clip: (clip, "low"), "clip 1 has target 'low'"),
        (lambda clip: (clip, [1]), "clip 1 has target [1]"),
        (lambda clip: (torch.zeros(7, 50), 0), "clip 1 has 7 channels; give a mono waveform, or features of 16"),
        (lambda clip: {"audio": clip, "label": 0}, "clip 1 is a dict"),
    ],
)
def test_an_unusable_clip_is_named_before_training(clips, monkeypatch, bad, message):
    monkeypatch.setattr(fine_tuning, "batches", None)  # training would fail
    with pytest.raises(FedexitError, match=re.escape(message)):
        fine_tune(model(), [clips[0], bad(clips[1][0])], [3], RECIPE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (characters("far too long"), "clip 1 has 7 frames, and its text of 12 characters needs 13"),
        ([1, 1, 1, 1], None),  # four letters and three blanks between them fit exactly
        ([1, 1, 1, 1, 1], "clip 1 has 7 frames, and its text of 5 characters needs 9"),
        ([], "clip 1 has an empty text"),
        ([1, 29], "clip 1 has target [1, 29]; give a text's character ids, each from 1 to 28"),
        (3, "clip 1 has target 3; give a text's character ids"),
        ("low", "clip 1 has target 'low'"),
    ],
)
def test_an_unusable_text_is_named_before_training(clips, text, message):
    tuned, recipe = model(CHARACTERS, head="ctc"), dataclasses.replace(RECIPE, crop=None, epochs=1)
    data = [(clips[0][0], [1, 2]), (clips[1][0], text)]
    if message is None:
        fine_tune(tuned, data, [3], recipe)
        return
    with pytest.raises(FedexitError, match=re.escape(message)):
        fine_tune(tuned, data, [3], recipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exits": []}, "exits is empty; give at least one of 3"),
        ({"exits": [4]}, "exit 4 does not exist in nano"),
        ({"exits": 3}, "exits must be a list of layer numbers, e.g. [3], not 3"),
        ({"exits": [3.0]}, "exits must be a list of layer numbers"),
        ({"seed": 0.5}, "seed must be a whole number, not 0.5"),
        ({"data": []}, "there are no clips to train on"),
        ({"recipe": Recipe()}, "crop=75 samples are shorter than one frame of nano; enlarge crop"),
    ],
)
def test_unusable_arguments_are_refused(clips, arguments, message):
    with pytest.raises(FedexitError, match=re.escape(message)):
        fine_tune(**{"model": model(), "data": clips, "exits": [3], "recipe": RECIPE} | arguments)


def test_only_the_chosen_exits_and_the_layers_below_are_trained(clips):
    found = {}
    recipe = dataclasses.replace(RECIPE, epochs=1)
    for exits in ([3], [6], [3, 6]):
        tuned = model(exits=(3, 6))
        start = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
        fine_tune(tuned, clips, exits, recipe)
        found[tuple(exits)] = tuned.checksum()
        moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, start[name])}
        heads = {name.split(".")[1] for name in moved if name.startswith("heads.")}
        layers = {int(name.split(".")[4]) + 1 for name in moved if ".encoder.layers." in name}
        assert heads == set(map(str, exits)) and layers == set(range(1, max(exits) + 1))
    assert len(set(found.values())) == 3


def test_bfloat16_trains_and_leaves_single_precision(clips):
    for head, data in (("pooled", clips), ("ctc-bilstm", spoken(clips))):
        tuned, exact, untrained = (model(CHARACTERS, head=head) for _ in "abc")
        recipe = dataclasses.replace(RECIPE, crop=None, bfloat16=True, epochs=1)
        fine_tune(tuned, data, [3], recipe)
        fine_tune(exact, data, [3], dataclasses.replace(recipe, bfloat16=False))
        assert {tensor.dtype for tensor in tuned.state_dict().values()} == {torch.float32}
        assert tuned.checksum() != exact.checksum()
        moved, like = (m.heads["3"].linear.weight - untrained.heads["3"].linear.weight for m in (tuned, exact))
        assert torch.cosine_similarity(moved.flatten(), like.flatten(), dim=0) > 0.9


def spoken(clips):
    return [(clip, characters(("low", "high up")[label])) for clip, label in clips]


def test_clips_with_texts_are_not_cropped(clips):
    with pytest.raises(FedexitError, match="train CTC heads with crop=None"):
        fine_tune(model(CHARACTERS, head="ctc"), spoken(clips), [3], RECIPE)


# ---- SpecAugment -------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(10, 60), st.integers(5, 200), st.integers(1, 3), st.integers(0, 99))
def test_masks_cover_no_more_than_stated_and_change_nothing_else(batch, channels, frames, masks, seed):
    features = torch.rand(batch, channels, frames) + 1  # nowhere zero
    before = features.clone()
    with seeded(seed):
        masked = spec_augment(features, masks, time=20, channels=0.1)
    assert torch.equal(features, before) and masked.shape == features.shape
    gone = masked == 0
    assert torch.equal(masked[~gone], features[~gone])
    stretches, bands = gone.all(1), gone.all(2)  # (B, F), (B, C)
    assert (gone == (stretches[:, None] | bands[:, :, None])).all() or stretches.all() or bands.all()
    assert (stretches.sum(1) <= min(0.2 * frames, masks * 20)).all()
    assert (bands.sum(1) <= masks * 0.1 * channels).all()


def test_masks_differ_between_clips_and_come_from_the_seed():
    features = torch.ones(8, 50, 150)
    found = []
    for seed in (0, 0, 1):
        with seeded(seed):
            found.append(spec_augment(features))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert len({clip.numpy().tobytes() for clip in found[0]}) == 8


@pytest.fixture(scope="module")
def longer(clips):
    return [(torch.cat([clip] * 4), label) for clip, label in clips]  # a tenth of a few frames would be no frame


def convolved(clips):
    backbone = load_backbone("nano")
    return [(backbone.convolve(normalised(clip)[None], torch.tensor([len(clip)]))[0], label) for clip, label in clips]


def test_masks_apply_only_in_training_with_or_without_stored_features(longer, monkeypatch):
    recipe = dataclasses.replace(RECIPE, crop=None, spec_augment=True, epochs=2)
    plain, masked, again, waves = model(), model(), model(), model()
    stored = convolved(longer)
    fine_tune(plain, stored, [3], dataclasses.replace(recipe, spec_augment=False))
    fine_tune(masked, stored, [3], recipe)
    fine_tune(again, stored, [3], recipe)
    fine_tune(waves, longer, [3], recipe)
    assert plain.checksum() != masked.checksum() == again.checksum()
    ends = [tuned.heads["3"].linear.weight for tuned in (waves, masked, plain)]
    assert (ends[0] - ends[1]).norm() < 0.1 * (ends[0] - ends[2]).norm()
    monkeypatch.setattr("fedexit.model.features.spec_augment", None)  # any use would fail
    assert predict(masked, stored).equals(predict(again, stored))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", 2.5, "valid integer"),
        ("batch_size", True, "valid integer"),
        ("learning_rate", -1e-3, "greater than 0"),
        ("learning_rate", float("inf"), "finite number"),
        ("head_learning_rate", float("nan"), "finite number"),
        ("clip_norm", float("nan"), "greater than 0"),
        ("clip_norm", 0.0, "greater than 0"),
        ("weight_decay", -0.1, "greater than or equal to 0"),
        ("label_smoothing", 1.5, "less than or equal to 1"),
        ("crop", 0, "greater than or equal to 1"),
        ("spec_augment", "no", "valid boolean"),
    ],
)
def test_a_recipe_with_a_value_out_of_range_is_refused(name, value, message):
    with pytest.raises(FedexitError, match=f"^setting {name}={value!r}: input should be .*{message}$"):
        Recipe(**{name: value})


def test_a_recipe_accepts_allowed_values():
    recipe = Recipe(clip_norm=float("inf"), crop=None, learning_rate=1)
    assert (recipe.clip_norm, recipe.crop, recipe.learning_rate) == (float("inf"), None, 1.0)


def test_masks_of_a_client_do_not_depend_on_stored_features(longer):
    training, weights = LocalTraining(spec_augment=True, optimiser="sgd"), model().trainable_weights()
    sent = []
    for data in (convolved(longer), longer, longer):
        update, report = local_round(model(), weights, Client("c", data, 3), training, (0, "c"))
        sent.append(update.weights)
        assert report.cached == (data is not longer) and sum(report.lengths) == sum(d.shape[-1] for d, _ in data)
    unmasked, _ = local_round(model(), weights, Client("c", longer, 3), LocalTraining(optimiser="sgd"), (0, "c"))
    for name, tensor in sent[0].items():
        torch.testing.assert_close(sent[1][name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(sent[1][name], sent[2][name])
    moved = sent[1]["heads.3.linear.weight"] - unmasked.weights["heads.3.linear.weight"]
    assert moved.abs().max() > 1e-4


def test_voices_are_recognised_and_a_worker_gives_the_same_errors(tmp_path):
    folder = str(write_small_corpus(tmp_path / "tones"))
    rows = open_corpus(folder).manifest
    split = group_splits(rows["speaker"], rows["id"], 5)[0]
    recipe = Recipe(epochs=8, crop=8, learning_rate=1e-3)
    job = folder, rows, split, "speaker", "nano", 3, recipe, 0.25, 0
    here = fine_tuned_error(*job, tmp_path / "here.safetensors")
    assert len(here) == 2 and max(here) < 0.3  # guessing: 0.75
    assert on_workers(fine_tuned_error, [(*job, tmp_path / "there.safetensors")], 2, "central") == [here]
