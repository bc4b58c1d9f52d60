"""Test the features that are computed once: equal to those of the model, stored, and limited in size."""

import errno
import os

import pytest
import torch
from small_corpus import write_small_corpus

from fedexit.data.audio import write_audio
from fedexit.data.batches import collate
from fedexit.data.corpora import open_corpus
from fedexit.data.tasks import make_task
from fedexit.data.tasks.contract import Clips
from fedexit.federated.clients import Client, LocalTraining, local_round
from fedexit.model import features as frozen
from fedexit.model.backbone import load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import freezer
from fedexit.support.cache import feature_files, limit, lock, make_room
from fedexit.support.errors import FedexitError
from fedexit.support.processes import on_workers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "small")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path))
    return tmp_path / "cache"


def keyword_clips(folder, seconds=0.25):
    task = make_task("keyword", open_corpus(folder))
    return task, Clips(task.corpus, task.rows, seconds)


def test_frozen_features_train_and_predict_like_waveforms(folder, cache):
    """Compare up to float rounding."""
    task, every = keyword_clips(folder)
    model = MultiExitModel(load_backbone("nano"), task.labels)
    clips = Clips(task.corpus, task.rows.iloc[:8], 0.25)
    features = freezer(every, model.backbone)(clips)
    waveforms, lengths, labels = collate(list(clips))
    frozen, frames, same_labels = collate(list(features))
    assert frozen.shape == (8, 16, int(frames.max())) and torch.equal(labels, same_labels)
    for depth, logits in model(waveforms, lengths).items():
        torch.testing.assert_close(model(frozen, frames)[depth], logits, rtol=1e-4, atol=1e-5)
    training = LocalTraining(learning_rate=1e-4, head_learning_rate=1e-3)
    weights = [
        local_round(model.client_model(6), model.trainable_weights(), Client("c", data, 6), training, (0,))[0].weights
        for data in (clips, features)
    ]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=3e-4)


def read(features, index):
    return features[index][0].tolist(), features[index][1]


def test_frozen_features_are_computed_once_per_weights_clips_and_cut(folder, cache, monkeypatch):
    _, clips = keyword_clips(folder)
    backbone = load_backbone("nano")
    first = freezer(clips, backbone)(clips)[3][0].clone()
    (file,) = feature_files()
    assert file.stat().st_size == sum(4 * freezer(clips, backbone)(clips)[i][0].numel() for i in range(len(clips)))
    monkeypatch.setattr(type(backbone), "convolve", None)  # from here on nothing can be computed
    again = freezer(clips, load_backbone("nano").truncated(3))(clips)
    assert torch.equal(again[3][0], first)
    assert on_workers(read, [(again, 3)], 2, "reading") == [(first.tolist(), clips[3][1])]  # by another process
    others = (clips, load_backbone("nano", seed=1)), (keyword_clips(folder, 0.1)[1], backbone)
    for other in others:
        with pytest.raises(TypeError):  # convolve is gone
            freezer(*other)


def test_the_least_recently_used_features_are_deleted_first(folder, cache, monkeypatch):
    _, clips = keyword_clips(folder)
    for seed in (0, 1, 2):
        freezer(clips, load_backbone("nano", seed=seed))
    oldest, *newer = feature_files()
    for age, file in enumerate((*newer, oldest)):
        os.utime(file, (age, age))
    freezer(clips, load_backbone("nano", seed=0))  # used again: now the newest
    monkeypatch.setenv("FEDEXIT_CACHE_GB", str(2.5 * oldest.stat().st_size / 1e9))
    freezer(clips, load_backbone("nano", seed=3))
    assert len(feature_files()) == 2 and next(iter(feature_files())) == oldest


def test_deleted_features_stay_readable_in_this_process(folder, cache, monkeypatch):
    _, clips = keyword_clips(folder)
    first, second = (load_backbone("nano", seed=seed) for seed in (0, 1))
    monkeypatch.setenv("FEDEXIT_CACHE_GB", "0.001")
    expected = freezer(clips, first)(clips)[3][0].clone()
    (file, size), *_ = feature_files().items()
    frozen._mapped.cache_clear()
    features = freezer(clips, first)(clips)
    monkeypatch.setenv("FEDEXIT_CACHE_GB", str(1.5 * size / 1e9))
    freezer(clips, second)
    assert not file.exists() and torch.equal(features[3][0], expected)


def test_making_room_tolerates_other_processes(folder, cache, monkeypatch):
    """Ignore a file that another process has just deleted, and keep a file that it is opening."""
    _, clips = keyword_clips(folder)
    freezer(clips, load_backbone("nano"))
    (file,) = feature_files()
    (cache / "frozen-gone.f32").symlink_to(cache / "nowhere")
    assert list(feature_files()) == [file]
    monkeypatch.setenv("FEDEXIT_CACHE_GB", "0")
    with lock(file):
        make_room(1)
        assert file.exists()
    make_room(1)
    assert not feature_files()


def test_clips_beyond_the_cache_limit_stay_waveforms(folder, cache, monkeypatch):
    _, clips = keyword_clips(folder)
    monkeypatch.setenv("FEDEXIT_CACHE_GB", "0.00001")
    with pytest.warns(UserWarning, match="FEDEXIT_CACHE_GB allows 1e-05"):
        assert freezer(clips, load_backbone("nano"))(clips) is clips
    assert not feature_files()


def test_a_full_disk_is_reported_and_leaves_nothing(folder, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _, clips = keyword_clips(folder)
    monkeypatch.setattr(frozen, "write_record", full)
    with pytest.raises(FedexitError, match=r"cannot be stored \(No space left on device\); make room"):
        freezer(clips, load_backbone("nano"))
    assert [file.name for file in cache.iterdir() if file.suffix != ".lock" and "frozen" in file.name] == []


@pytest.mark.parametrize("reopen", [True, False])
def test_replaced_or_edited_audio_gives_new_features(cache, tmp_path, reopen):
    """Keep the manifest, the names and the lengths; with `reopen=False` keep the corpus object as well."""
    own = write_small_corpus(tmp_path / "own", clips=3)
    _, clips = keyword_clips(own)
    backbone = load_backbone("nano")
    before = freezer(clips, backbone)(clips)[0][0].clone()
    file = own / "clips" / f"{clips.ids[0]}.flac"
    times = file.stat()
    write_audio(file, torch.randn(4000, generator=torch.Generator().manual_seed(5)).clip(-1, 1) / 2)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = keyword_clips(own)[1] if reopen else clips
    after = freezer(again, backbone)(again)
    waveforms, lengths, _ = collate([again[0]])
    torch.testing.assert_close(after[0][0], backbone.convolve(waveforms, lengths)[0])
    assert not torch.equal(after[0][0], before)


@pytest.mark.parametrize("wish", ["plenty", "nan", "inf", "-1", ""])
def test_a_bad_limit_is_refused(monkeypatch, wish):
    monkeypatch.setenv("FEDEXIT_CACHE_GB", wish)
    with pytest.raises(FedexitError, match=f"FEDEXIT_CACHE_GB is {wish!r}; give a number of gigabytes, 0 or more"):
        limit()
