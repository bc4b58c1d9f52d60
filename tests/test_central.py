"""Central fine-tuning on tones: it learns, goes on after an interruption to the same bits, and refuses what it must."""

import dataclasses

import numpy as np
import pytest
import torch
from small_corpus import write_small_corpus

from fedexit import FedexitError, MultiExitModel, load_backbone, open_corpus
from fedexit.central import Recipe, fine_tune, fine_tuned_error
from fedexit.probes import random_splits
from fedexit.workers import on_workers

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
