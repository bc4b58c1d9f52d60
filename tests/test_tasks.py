import shutil

import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus

from fedexit.corpora import open_corpus
from fedexit.errors import FedexitError
from fedexit.partition import assign_depths, device_of, make_clients, tier_of
from fedexit.tasks import Clips, make_task
from fedexit.tasks.keyword import first_words, keyword_task
from fedexit.tasks.voice import voice_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "small")


def edited(folder, tmp_path, change):
    table = change(pd.read_csv(folder / "manifest.csv", keep_default_na=False))
    shutil.copytree(folder / "clips", tmp_path / "clips")
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return open_corpus(tmp_path)


def test_voice_task_is_closed_set(folder):
    task = voice_task(open_corpus(folder), min_clips=10)
    assert task.labels == ["ANN", "BEN", "CID", "DOT"]
    assert (task.rows["target"].map(dict(enumerate(task.labels))) == task.rows["speaker"]).all()
    with pytest.raises(FedexitError, match="two speakers with 1000"):
        voice_task(open_corpus(folder), min_clips=1000)


def test_a_speaker_unknown_to_training_is_refused_by_name(folder, tmp_path):
    def lose(table):
        return table[~((table["speaker"] == "CID") & (table["split"] == "train"))]

    with pytest.raises(FedexitError, match="'CID' is in dev but not in train") as caught:
        voice_task(edited(folder, tmp_path, lose), min_clips=4)
    assert "\n" not in str(caught.value)


def test_keywords_are_the_most_frequent_first_words_of_training(folder, tmp_path):
    def rare(table):
        table.loc[table["split"] == "test", "text"] = "zebra zebra"  # frequent, but not in training
        return table

    task = keyword_task(edited(folder, tmp_path, rare), words=2)
    assert task.labels == ["no", "what"]  # all three are as frequent: the alphabet decides
    assert set(task.rows["split"]) == {"train", "dev"}


def test_first_words():
    lines = pd.Series(["It's me!", "...well, yes", "42", "I am"])
    assert first_words(lines).tolist() == ["it's", "well", "", "i"]


def test_clips_are_cut_and_decoded_when_asked(folder):
    task = make_task("keyword", open_corpus(folder))
    clips = Clips(task.corpus, task.rows, max_seconds=0.1)
    waveform, label = clips[3]
    assert (len(clips), waveform.shape, waveform.dtype) == (len(task.rows), (1600,), torch.float32)
    assert label == task.rows["target"][3]


def test_unknown_tasks_and_partitions_are_refused(folder):
    with pytest.raises(FedexitError, match=r"'mood'; known: voice, keyword"):
        make_task("mood", open_corpus(folder))
    task = make_task("keyword", open_corpus(folder))
    with pytest.raises(FedexitError, match=r"'dirichlet'; known: group, iid"):
        make_clients(task, {}, "dirichlet")
    with pytest.raises(FedexitError, match="has 500 clips"):
        make_clients(task, {}, min_clips=500)


def test_clients_hold_training_clips_only_and_iid_keeps_sizes(folder):
    task = make_task("keyword", open_corpus(folder))
    depths = assign_depths([device_of(g) for g in task.rows["group"]], [3, 9], seed=0)
    by_group, iid = (make_clients(task, depths, p, min_clips=4) for p in ("group", "iid"))
    train = set(task.rows.query("split == 'train'")["id"])
    for clients in (by_group, iid):
        held = [clip for client in clients for clip in client.data.ids]
        assert sorted(held) == sorted(train)
    assert [len(c.data) for c in by_group] == [len(c.data) for c in iid]
    assert [set(c.data.ids) for c in by_group] != [set(c.data.ids) for c in iid]
    assert {c.name for c in by_group if c.depth == 3} == {c.name for c in iid if c.depth == 3}


def test_dialogues_of_one_character_share_a_device():
    assert [device_of(g) for g in ("BOB1.DOG", "BOB2.DOG", "APE.DOG", "C10A.CUT", "0001")] == [
        "BOB",
        "BOB",
        "APE",
        "C10A.CUT",
        "0001",
    ]


def test_tiers_are_called_by_depth():
    depths = {"BOB": 3, "APE": 12}
    assert [tier_of(g, depths) for g in ("BOB7.DOG", "APE.DOG", "C10A.CUT")] == ["depth 3", "depth 12", "no client"]


def test_depths_are_dealt_evenly_and_by_seed():
    names = [f"v{i}" for i in range(11)]
    tiers = assign_depths(names, [3, 9], seed=4)
    assert sorted(tiers.values()) == [3] * 6 + [9] * 5
    assert tiers == assign_depths(names[::-1], [3, 9], seed=4) != assign_depths(names, [3, 9], seed=5)
