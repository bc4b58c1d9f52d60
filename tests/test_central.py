"""Central fine-tuning on tones: it learns, goes on after an interruption to the same bits, and refuses what it must."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import write_small_corpus

from fedexit import FedexitError, MultiExitModel, load_backbone, open_corpus
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.central.probes import random_splits
from fedexit.data.batches import normalised
from fedexit.data.text import CHARACTERS, characters
from fedexit.federated.clients import Client, LocalTraining, local_round
from fedexit.lab.cells import fine_tuned_error
from fedexit.model.features import spec_augment
from fedexit.model.metrics import predict
from fedexit.support.processes import on_workers
from fedexit.support.streams import seeded

RECIPE = Recipe(epochs=3, batch_size=8, crop=3_000)


class Interrupted(Exception):
    pass


class Breaking(list):
    """Clips that can be read so many times."""

    def __init__(self, clips, reads):
        super().__init__(clips)
        self.reads = reads

    def __iter__(self):
        self.reads -= 1
        if self.reads < 0:
            raise Interrupted
        return super().__iter__()


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(0)
    pitches = torch.tensor([300.0, 2000.0])
    tones = [torch.sin(2 * torch.pi * pitches[n % 2] * torch.arange(4_000) / 16_000) for n in range(16)]
    return [(tone + 0.1 * torch.randn(4_000, generator=generator), n % 2) for n, tone in enumerate(tones)]


def model():
    return MultiExitModel(load_backbone("nano").truncated(3), ["low", "high"], [3])


def test_stopped_and_resumed_gives_the_weights_of_an_uninterrupted_run(clips, tmp_path):
    whole, parts, file = model(), model(), tmp_path / "state.safetensors"
    fine_tune(whole, clips, [3], RECIPE)
    with pytest.raises(Interrupted):
        fine_tune(model(), Breaking(clips, 2), [3], RECIPE, checkpoint=file)
    again = Breaking(clips, 1)  # one epoch was left
    fine_tune(parts, again, [3], RECIPE, checkpoint=file)
    assert again.reads == 0 and whole.checksum() == parts.checksum() != model().checksum()
    frozen = "backbone.model.feature_extractor.conv_layers.0.conv.weight"
    assert torch.equal(whole.state_dict()[frozen], model().state_dict()[frozen])


def test_crops_and_order_come_from_the_seed(clips):
    found = []
    for seed, crop in ((0, 3_000), (0, 3_000), (1, 3_000), (0, 4_000), (0, 9_000)):
        tuned = model()
        fine_tune(tuned, clips, [3], dataclasses.replace(RECIPE, crop=crop), seed)
        found.append(tuned.checksum())
    assert found[0] == found[1] and found[3] == found[4]  # a crop longer than the clip is the clip
    assert len(set(found)) == 3


def test_bad_input_and_foreign_checkpoints_are_refused(clips, tmp_path):
    file = tmp_path / "state.safetensors"
    fine_tune(model(), clips, [3], RECIPE, checkpoint=file)
    with pytest.raises(FedexitError, match=r"state\.safetensors belongs to another run"):
        fine_tune(model(), clips, [3], RECIPE, seed=1, checkpoint=file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(FedexitError, match=r"state\.safetensors is damaged \(.+\); delete it and run again"):
        fine_tune(model(), clips, [3], RECIPE, checkpoint=file)
    with pytest.raises(FedexitError, match="no clips"):
        fine_tune(model(), [], [3], RECIPE)
    with pytest.raises(FedexitError, match="the loss is nan; lower the learning rate"):
        fine_tune(model(), clips, [3], dataclasses.replace(RECIPE, learning_rate=1e30, epochs=9))


def test_the_exits_that_are_asked_for_are_trained_and_no_layer_above(clips):
    found = {}
    for exits in ([3], [6], [3, 6]):
        tuned = MultiExitModel(load_backbone("nano").truncated(6), ["low", "high"], [3, 6])
        start = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
        fine_tune(tuned, clips, exits, RECIPE)
        found[tuple(exits)] = tuned.checksum()
        moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, start[name])}
        heads = {name.split(".")[1] for name in moved if name.startswith("heads.")}
        layers = {int(name.split(".")[4]) + 1 for name in moved if ".encoder.layers." in name}
        assert heads == set(map(str, exits)) and layers == set(range(1, max(exits) + 1))
    assert len(set(found.values())) == 3


def test_bfloat16_trains_and_leaves_single_precision(clips):
    for head, data in (("pooled", clips), ("ctc-bilstm", spoken(clips))):
        tuned, exact = (MultiExitModel(load_backbone("nano").truncated(3), CHARACTERS, [3], head=head) for _ in "ab")
        recipe = dataclasses.replace(RECIPE, crop=None, bfloat16=True, epochs=1)
        fine_tune(tuned, data, [3], recipe)
        fine_tune(exact, data, [3], dataclasses.replace(recipe, bfloat16=False))
        assert {tensor.dtype for tensor in tuned.state_dict().values()} == {torch.float32}
        assert tuned.checksum() != exact.checksum()
        moved, like = (m.heads["3"].linear.weight - unmoved(head) for m in (tuned, exact))
        assert torch.cosine_similarity(moved.flatten(), like.flatten(), dim=0) > 0.9


def unmoved(head):
    return MultiExitModel(load_backbone("nano").truncated(3), CHARACTERS, [3], head=head).heads["3"].linear.weight


def spoken(clips):
    return [(clip, characters(("low", "high up")[label])) for clip, label in clips]


def test_clips_with_texts_are_not_cropped(clips):
    tuned = MultiExitModel(load_backbone("nano").truncated(3), CHARACTERS, [3], head="ctc")
    with pytest.raises(FedexitError, match="train CTC heads with crop=None"):
        fine_tune(tuned, spoken(clips), [3], RECIPE)


# ---- SpecAugment -------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(10, 60), st.integers(5, 200), st.integers(1, 3), st.integers(0, 99))
def test_masks_are_as_few_as_stated_and_the_rest_is_untouched(batch, channels, frames, masks, seed):
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


@pytest.fixture
def longer(clips):
    return [(torch.cat([clip] * 4), label) for clip, label in clips]  # a tenth of few frames is no frame


def convolved(clips):
    backbone = load_backbone("nano")
    return [(backbone.convolve(normalised(clip)[None], torch.tensor([len(clip)]))[0], label) for clip, label in clips]


def test_masks_are_for_training_only_and_the_same_with_and_without_stored_features(longer, monkeypatch):
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
    ("says", "changes"),
    [
        ("epochs and batch_size must", [("epochs", 0), ("batch_size", 0), ("learning_rate", -1e-3)]),
        ("learning rates and clip_norm", [("head_learning_rate", float("nan")), ("clip_norm", -1.0)]),
        ("weight_decay must be", [("weight_decay", -0.1), ("label_smoothing", 1.5), ("crop", 0)]),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(says, changes):
    for name, number in changes:
        with pytest.raises(FedexitError, match=f"{says}.*{name}={number}"):
            Recipe(**{name: number})
    assert Recipe(clip_norm=float("inf"), crop=None).crop is None


def test_a_clients_masks_are_the_same_with_and_without_stored_features(longer):
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


def test_voices_are_told_apart_and_the_workers_change_no_bit(tmp_path, monkeypatch):
    folder = str(write_small_corpus(tmp_path / "tones"))
    rows = open_corpus(folder).manifest
    split = random_splits(rows["speaker"], 1)[0]
    recipe = Recipe(epochs=12, crop=8, learning_rate=1e-3)
    jobs = [
        (folder, rows, split, "speaker", "nano", exit, recipe, 0.25, 0, tmp_path / f"{exit}.safetensors")
        for exit in (3, 6)
    ]
    found = on_workers(fine_tuned_error, jobs, 2, "central")
    assert np.array(found).shape == (2, 2) and max(map(max, found)) < 0.3  # guessing: 0.75
    again = tmp_path / "again.safetensors"
    assert fine_tuned_error(*jobs[0][:-1], again) == found[0]
