"""Test what the notebook on data and clients computes, on a small corpus of tones and against values by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import VOICES, write_small_corpus

from fedexit import Client, open_corpus
from fedexit.data.tasks import make_task
from fedexit.lab import corpus_study as study


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_corpus(str(write_small_corpus(tmp_path_factory.mktemp("corpus") / "tones")))


def test_counts_by_split(corpus):
    found = study.counts(corpus.manifest).set_index("split")
    assert found["clips"].to_dict() == {"all": 96, "train": 48, "dev": 24, "test": 24}
    assert found["groups"].to_dict() == {"all": 16, "train": 8, "dev": 4, "test": 4}
    assert found.loc["test", ["with_text", "with_voice", "words"]].tolist() == [24, 24, 4 * 2 * (3 + 3 + 3)]
    assert found.loc["all", "hours"] == round(96 * 0.25 / 3600, 2)


def test_durations_count_each_clip_once():
    manifest = pd.DataFrame({"split": ["train", "train", "dev"], "seconds": [0.3, 0.49, 1.0]})
    found = study.durations(manifest, longest=2.0, step=0.5)
    assert found["seconds"].tolist() == [0, 0.5, 1, 1.5]
    assert (
        found["train"].tolist() == [2, 0, 0, 0] and found["dev"].tolist() == [0, 0, 1, 0] and found["test"].sum() == 0
    )


def test_the_spectrum_of_a_tone_peaks_at_its_pitch(corpus):
    voice = "CID"
    clips = corpus.manifest.query("speaker == @voice")["id"].tolist()[:3]
    grid = study.spectrogram(corpus.waveform(clips[0]))
    assert grid.columns[:3].tolist() == ["hertz", "0.000 s", "0.016 s"] and grid.iloc[:, 1:].max(axis=None) == 0
    power = study.mean_power(corpus, clips)
    bin_width = 16_000 / study.WINDOW
    for peak in (power.idxmax(), grid["hertz"][grid["0.048 s"].idxmax()]):
        assert abs(peak - VOICES[voice]) <= bin_width
    each = [study.mean_power(corpus, [clip]) for clip in clips]
    np.testing.assert_allclose(power, sum(each), rtol=1e-9)


def test_voices_are_sorted_and_rare_ones_left_out(corpus):
    manifest = corpus.manifest.copy()
    manifest.loc[manifest["speaker"].eq("ANN") & manifest["split"].eq("test"), "text"] = ""
    manifest.loc[manifest["speaker"].eq("BEN"), "text"] = ""
    found = study.voices(manifest, least=18)
    assert found["speaker"].tolist() == ["CID", "DOT", "ANN"] and found["clips"].tolist() == [24, 24, 18]
    assert found[["train", "dev", "test"]].iloc[2].tolist() == [12, 6, 0] and found["dialogues"].tolist() == [4, 4, 3]
    assert study.voices(manifest, least=19)["speaker"].tolist() == ["CID", "DOT"]


def test_yardsticks_guess_the_most_frequent_label_of_test(corpus):
    found = study.yardsticks({"voice": make_task("voice", corpus, min_clips=4)})
    assert found.values.tolist() == [["voice", 4, 48, 24, 24, 0.75]]


def test_skew_by_hand():
    assert study.skew([0, 0, 1, 1], [0, 1, 1, 1], 3) == pytest.approx(0.25)
    assert study.skew([0, 0], [1, 2], 3) == 1 and study.skew([2, 1], [1, 2], 3) == 0


class Held(list):
    """The clips of a client, without audio."""

    @property
    def targets(self):
        return [target for _, target in self]


def client(name, targets, depth):
    return Client(name, Held((None, target) for target in targets), depth)


def test_clients_are_described_beside_their_federation():
    clients = [client("ANN1.DOG", [0, 0, 1, 1], 3), client("ANN2.DOG", [0, 0], 3), client("BEN1.DOG", [1, 1], 9)]
    tasks = {"t": SimpleNamespace(labels=["a", "b"])}
    federations = {("t", "group"): clients}
    table = study.client_table(federations, tasks)
    assert table["device"].tolist() == ["ANN", "ANN", "BEN"] and table["clips"].tolist() == [4, 2, 2]
    assert table["labels"].tolist() == [2, 1, 1] and table["skew"].tolist() == pytest.approx([0, 0.5, 0.5])
    [row] = study.summary(table).itertuples()
    assert (row.clients, row.devices, row.smallest, row.largest, row.labels_per_client) == (3, 2, 2, 4, 1)
    held = study.labels_held(federations | {("u", "group"): clients}, tasks, "t")
    assert held.values.tolist() == [
        ["group", "ANN1.DOG", "a", 2, 0.5], ["group", "ANN1.DOG", "b", 2, 0.5],
        ["group", "ANN2.DOG", "a", 2, 1], ["group", "BEN1.DOG", "b", 2, 1],
    ]  # fmt: skip


def test_power_is_that_of_all_clips_together(corpus):
    clip = corpus.manifest["id"][0]
    doubled = SimpleNamespace(waveform=lambda name: 2 * corpus.waveform(clip))
    torch.testing.assert_close(
        torch.tensor(study.mean_power(doubled, [clip]).to_numpy()),
        4 * torch.tensor(study.mean_power(corpus, [clip]).to_numpy()),
    )
