import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import write_small_corpus

from fedexit.data.corpora import open_corpus
from fedexit.data.folder import COLUMNS
from fedexit.data.tasks import TASKS, make_task, task_options
from fedexit.data.tasks.asr import asr_task
from fedexit.data.tasks.contract import Clips
from fedexit.data.tasks.keyword import digit_task, first_words, keyword_task
from fedexit.data.tasks.official import OFFICIAL
from fedexit.data.tasks.paralinguistic import emotion_task, sentence_task
from fedexit.data.tasks.voice import speaker_task, voice_task
from fedexit.data.text import CHARACTERS, spell
from fedexit.data.trials import trials_of
from fedexit.federated.partition import assign_depths, device_of, make_clients, tier_of
from fedexit.support.errors import FedexitError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "small")


def edited(folder, tmp_path, change):
    table = change(pd.read_csv(folder / "manifest.csv", keep_default_na=False))
    shutil.copytree(folder / "clips", tmp_path / "clips")
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return open_corpus(tmp_path)


def test_the_voice_task_has_a_closed_set_of_speakers(folder):
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
    lines = pd.Series(["It's me!", "...well, yes", "42", "I am", "It’s", "42 apples", "2B or not"])
    assert first_words(lines).tolist() == ["it's", "well", "", "i", "it's", "apples", "2b"]


def test_keywords_are_whole_words_of_any_script():
    lines = pd.Series(["Über alles", "U\u0308ber", "привет мир", "l’été", "rock'n'roll", "नमस्ते"])
    assert first_words(lines).tolist() == ["über", "über", "привет", "l'été", "rock'n'roll", "नमस्ते"]


def test_clips_are_cut_and_decoded_on_access(folder):
    task = make_task("keyword", open_corpus(folder))
    clips = Clips(task.corpus, task.rows, max_seconds=0.1)
    waveform, label = clips[3]
    assert (len(clips), waveform.shape, waveform.dtype) == (len(task.rows), (1600,), torch.float32)
    assert label == task.rows["target"][3]


def test_a_clip_played_faster_is_shorter_and_higher(folder):
    task = make_task("keyword", open_corpus(folder))
    plain, fast = (Clips(task.corpus, task.rows, 0.2, speed)[3] for speed in (1.0, 1.25))
    assert torch.equal(plain[0], task.corpus.waveform(task.rows["id"][3])[:3200]) and plain[1] == fast[1]
    assert (len(plain[0]), len(fast[0])) == (3200, 2560)
    pitch = [(torch.fft.rfft(wave).abs()[1:].argmax() + 1) / len(wave) for wave, _ in (plain, fast)]
    assert 1.2 < pitch[1] / pitch[0] < 1.3


def test_unknown_tasks_and_partitions_are_refused(folder):
    with pytest.raises(FedexitError, match=r"'mood'; known: voice, keyword"):
        make_task("mood", open_corpus(folder))
    with pytest.raises(FedexitError, match=r"task speaker has no option 'fold'; known: dev, test"):
        make_task("speaker", open_corpus(folder), fold=1)
    with pytest.raises(FedexitError, match=r"task digit has no option 'words'; known: none"):
        make_task("digit", open_corpus(folder), words=3)
    task = make_task("keyword", open_corpus(folder))
    with pytest.raises(FedexitError, match=r"'random'; known: group, iid, dirichlet"):
        make_clients(task, {}, "random")
    with pytest.raises(FedexitError, match="alpha > 0"):
        make_clients(task, {}, "dirichlet", min_clips=4, alpha=0.0)
    with pytest.raises(FedexitError, match="has 500 clips"):
        make_clients(task, {}, min_clips=500)


def test_tasks_state_their_options_and_whether_voices_can_be_verified(folder):
    assert task_options("emotion") == ["fold"] and "max_seconds" in task_options("asr")
    corpus = open_corpus(folder)
    assert make_task("voice", corpus, min_clips=10).verification and not make_task("keyword", corpus).verification
    with pytest.raises(FedexitError, match="unknown task 'mood'"):
        task_options("mood")


def test_devices_are_divided_among_tiers_by_shares():
    devices = [f"d{i:02d}" for i in range(20)]
    even, uneven = assign_depths(devices, [3, 12], 0), assign_depths(devices, [3, 12], 0, [0.75, 0.25])
    assert [list(found.values()).count(3) for found in (even, uneven)] == [10, 15]
    assert set(assign_depths(devices, [3, 12], 0, [0, 1]).values()) == {12}
    assert uneven != assign_depths(devices, [3, 12], 1, [0.75, 0.25])
    for shares in ([1.0], [-1, 2], [0, 0]):
        with pytest.raises(FedexitError, match="2 depths need as many shares"):
            assign_depths(devices, [3, 12], 0, shares)


def test_rotated_tiers_put_every_device_in_every_tier_once():
    devices, depths = [f"d{i:02d}" for i in range(10)], [3, 6, 9, 12]
    for block in (0, 4):
        found = [assign_depths(devices, depths, block + seed, rotated=True) for seed in range(4)]
        assert all({own[device] for own in found} == set(depths) for device in devices)
        assert all(sorted(list(own.values()).count(depth) for depth in depths) == [2, 2, 3, 3] for own in found)
    assert assign_depths(devices, depths, 0, rotated=True) != assign_depths(devices, depths, 4, rotated=True)
    with pytest.raises(FedexitError, match="rotated tiers are equally large"):
        assign_depths(devices, depths, 0, [1, 1, 1, 1], rotated=True)


def test_a_small_alpha_gives_clients_few_labels(folder):
    task = make_task("keyword", open_corpus(folder))
    depths = assign_depths([device_of(g) for g in task.rows["group"]], [3, 9], seed=0)
    rows = task.rows.set_index("id")["target"]
    skew = {}
    for alpha in (0.01, 100.0):
        clients = make_clients(task, depths, "dirichlet", min_clips=4, alpha=alpha)
        held = [clip for client in clients for clip in client.data.ids]
        assert sorted(held) == sorted(task.rows.query("split == 'train'")["id"]) and len(held) == len(set(held))
        most = sum(rows[list(client.data.ids)].value_counts().iloc[0] for client in clients)
        skew[alpha] = most / len(held)  # share of clips that are of their client's most frequent label
    assert skew[0.01] > 1.2 * skew[100.0]


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
    dialogues = ["BOB1.DOG", "BOB2.DOG", "BOB13.DOG", "APE.DOG"]
    assert [device_of(group) for group in dialogues] == ["BOB", "BOB", "BOB", "APE"]
    others = ["C10A.CUT", "0001", "12.DOG", "QUEEN2.JAS", "speaker1", "speaker2"]  # each is its own device
    assert [device_of(group) for group in others] == others


def test_tiers_are_named_by_depth():
    depths = {"BOB": 3, "APE": 12}
    assert [tier_of(g, depths) for g in ("BOB7.DOG", "APE.DOG", "C10A.CUT")] == ["depth 3", "depth 12", "no client"]


def test_depths_are_divided_evenly_and_by_seed():
    names = [f"v{i}" for i in range(11)]
    tiers = assign_depths(names, [3, 9], seed=4)
    assert sorted(tiers.values()) == [3] * 6 + [9] * 5
    assert tiers == assign_depths(names[::-1], [3, 9], seed=4) != assign_depths(names, [3, 9], seed=5)


# ---- the other tasks, on manifests made by hand ------------------------------------------------------------------


def corpus_of(rows, name="small"):
    """Return enough of a corpus for a task: a manifest with these rows, the other columns filled in."""
    table = pd.DataFrame(rows)
    filled = dict.fromkeys(COLUMNS, "") | {"seconds": 1.0, "split": "train"}
    for column, value in filled.items():
        if column not in table:
            table[column] = [f"clip{n}" for n in range(len(table))] if column == "id" else value
    return SimpleNamespace(name=name, manifest=table[COLUMNS])


def lines(voices, text="yes we can", clips=10, **more):
    return [dict(speaker=voice, group="one", text=text, **more) for voice in voices for _ in range(clips)]


def test_every_task_has_the_columns_of_the_contract():
    marks, speakers = ("Yes.", "No!"), [f"s{n}" for n in range(8)]
    rows = [
        dict(speaker=who, group=who, label=("low", "high")[n % 2], text=marks[n % 2], split="train")
        for who in speakers
        for n in range(12)
    ]
    for name in set(TASKS) - set(OFFICIAL):  # test_paper.py has those of the paper
        options = {"min_clips": 5} if name == "voice" else {}
        task = make_task(name, corpus_of(rows), **options)
        assert set(COLUMNS) | {"target"} <= set(task.rows) and list(task.rows.index) == list(range(len(task.rows)))
        assert task.name == name and task.head == ("ctc" if name == "asr" else "pooled")
        if name != "asr":
            assert set(task.rows["target"]) == set(range(len(task.labels)))


def test_asr_puts_each_voice_in_one_split_and_makes_it_a_client():
    task = asr_task(corpus_of(lines("ABCDEFGHIJ") + lines("K", clips=7)))
    sides = task.rows.groupby("speaker")["split"].agg(lambda split: "/".join(sorted(set(split))))
    assert set(sides) == {"known/train", "dev", "test"}
    known = task.rows.query("split == 'known'").groupby("speaker").size()
    assert (known == (0.1 * task.rows.groupby("speaker").size()[known.index]).round()).all()
    assert "K" not in sides.index and (task.rows["group"] == task.rows["speaker"]).all()
    assert task.labels == list(CHARACTERS) and task.head == "ctc"
    assert {spell(target) for target in task.rows["target"]} == {"yes we can"}


@pytest.mark.parametrize("name", ["queen", "small"])
def test_no_client_holds_the_public_voice_of_queen(name):
    task = asr_task(corpus_of(lines(["JOE", *"ABCDEF"]), name))
    sides = task.rows.groupby("speaker")["split"].agg(lambda split: "/".join(sorted(set(split))))
    if name == "queen":
        assert sides["JOE"] == "public" and set(sides.drop("JOE")) == {"known/train", "dev", "test"}
    else:
        assert set(sides) == {"known/train", "dev", "test"}


def test_asr_leaves_out_clips_without_characters_or_voice_and_then_rare_voices():
    rows = lines("AB", clips=8) + lines("A", text="42 ?!", clips=3)
    rows += lines("C", clips=7) + lines("C", text="...", clips=4)  # eight clips, but some without characters
    rows += lines([""], clips=20) + lines("A", text="", clips=2)
    with pytest.warns(UserWarning, match=r"lacks characters of 3 of 30 transcripts \(4 in 3, 2 in 3\)"):
        task = asr_task(corpus_of(rows))
    assert task.rows["speaker"].value_counts().to_dict() == {"A": 8, "B": 8}
    with pytest.raises(FedexitError, match="corpus small has no transcribed clips of known voices"):
        asr_task(corpus_of(lines("AB", text="?!")))


def test_a_transcript_longer_than_its_frames_is_refused_by_the_clips_name():
    rows = lines("AB", clips=8)
    rows[5]["id"], rows[5]["text"], rows[5]["seconds"] = "loud", "aaaaa", 0.2  # 9 frames are needed, 9 are there
    for number, row in enumerate(rows):
        row.setdefault("id", f"c{number}")
        row.setdefault("seconds", 1.0)
    assert len(asr_task(corpus_of(rows)).rows) == 16
    rows[5]["text"] = "aaaaab"
    with pytest.raises(
        FedexitError, match=r"clip loud: 0\.2 s cannot spell its 6 characters; correct its text"
    ) as caught:
        asr_task(corpus_of(rows))
    assert "\n" not in str(caught.value)
    with pytest.raises(FedexitError, match=r"clip c0: 0\.1 s cannot spell its 10 characters"):
        asr_task(corpus_of(rows), max_seconds=0.1)


def test_letters_that_asr_cannot_spell_are_named():
    mixed = lines("AB", text="Café, мир") + lines("A", text="привет", clips=3)
    with pytest.warns(UserWarning, match=r"small: .* 23 of 23 .* \(и in 23, р in 23, м in 20, .*; 3 clips without"):
        task = asr_task(corpus_of(mixed))
    assert {spell(target) for target in task.rows["target"]} == {"cafe"} and len(task.rows) == 20
    with pytest.raises(FedexitError, match=r"small: .* all characters of all 20 transcripts \(п in 20, .*='learned'"):
        asr_task(corpus_of(lines("AB", text="привет")))


@pytest.mark.filterwarnings("error")
def test_english_texts_give_no_warning():
    asr_task(corpus_of(lines("AB", text="Don’t say naïve things, three times!")))


def test_clips_are_cut_at_the_length_of_the_task(folder):
    task = asr_task(corpus_of(lines("ABCDEF", text="yes we can " * 9, seconds=4.0)), max_seconds=4.0)
    depths = dict.fromkeys("ABCDEF", 3)
    assert {client.data.max_samples for client in make_clients(task, depths)} == {64_000}
    with pytest.raises(FedexitError, match=r"clip clip\d+: 1\.0 s cannot spell its 98 characters; cut clips later"):
        make_clients(task, depths, max_seconds=1.0)
    keywords = make_task("keyword", open_corpus(folder))
    held = make_clients(keywords, assign_depths([device_of(g) for g in keywords.rows["group"]], [3], 0), min_clips=4)
    assert {client.data.max_samples for client in held} == {48_000}


def test_a_backbone_of_longer_frames_needs_longer_clips():
    rows = lines("AB", text="the quick brown fox jumps over a dog")  # 36 characters in 1 s
    assert len(asr_task(corpus_of(rows)).rows) == 20
    with pytest.raises(FedexitError, match=r"clip clip0: 1\.0 s cannot spell its 36 characters"):
        asr_task(corpus_of(rows), frame=640)


def test_speaker_holds_out_shares_of_each_speakers_training_clips(folder):
    corpus = open_corpus(folder)
    task = speaker_task(corpus)
    counts = task.rows.groupby(["speaker", "split"]).size().unstack()
    assert (counts[["train", "dev", "test"]] == [7, 2, 3]).all(axis=None)  # of 12 each: 0.2 and 0.4 rounded
    assert set(task.rows["id"]) == set(corpus.select("train")["id"]) and task.labels == ["ANN", "BEN", "CID", "DOT"]
    assert task.rows.equals(speaker_task(corpus).rows)
    held = task.rows.query("split == 'test'")
    assert len({tuple(own["id"].str[3:]) for _, own in held.groupby("speaker")}) > 1  # drawn for each anew
    assert (speaker_task(corpus, dev=0.5, test=0.25).rows["split"].value_counts()).to_dict() == dict(
        dev=24, train=12, test=12
    )


@given(st.integers(5, 12))
def test_folds_test_each_speaker_once_and_keep_them_apart(count):
    rows = [
        dict(speaker=f"s{who}", group="studio", label=label, split="test") for who in range(count) for label in "xy"
    ]
    tested, heard = [], []
    for fold in range(5):
        task = emotion_task(corpus_of(rows), fold)
        sides = task.rows.groupby("speaker")["split"].agg(set)
        assert set(map(len, sides)) == {1} and len(sides) == count
        assert (task.rows["group"] == task.rows["speaker"]).all()  # a speaker is a client
        sizes = task.rows.drop_duplicates("speaker")["split"].value_counts()
        assert set(sizes.index) == {"train", "dev", "test"} and sizes["test"] in (count // 5, count // 5 + 1)
        tested += task.rows.query("split == 'test'")["speaker"].unique().tolist()
        heard += task.rows.query("split == 'dev'")["speaker"].unique().tolist()
    assert sorted(tested) == sorted(heard) == sorted({row["speaker"] for row in rows})
    assert emotion_task(corpus_of(rows), 5).rows.equals(emotion_task(corpus_of(rows), 0).rows)


def test_fewer_than_five_speakers_are_refused(folder):
    rows = [dict(speaker=f"s{who}", label=label) for who in range(4) for label in "xy"]
    with pytest.raises(FedexitError, match="small has 4 speakers; task emotion needs five"):
        emotion_task(corpus_of(rows))
    with pytest.raises(FedexitError, match="has 0 speakers"):
        emotion_task(open_corpus(folder))  # it has no labels


def test_the_label_is_the_target_of_task_sentence():
    task = sentence_task(corpus_of([dict(label="question"), dict(label="statement"), dict(label="")]))
    assert task.labels == ["question", "statement"] and list(task.rows["target"]) == [0, 1]


def test_digits_are_the_labels_of_the_corpus_by_its_own_split():
    rows = [dict(label=label, split=split) for split in ("train", "dev", "test") for label in ("one", "two", "")]
    task = digit_task(corpus_of(rows))
    assert task.labels == ["one", "two"] and list(task.rows["split"]) == ["train"] * 2 + ["dev"] * 2 + ["test"] * 2
    assert list(task.rows["target"]) == [0, 1] * 3
    with pytest.raises(FedexitError, match="'three' is in test but not in train"):
        digit_task(corpus_of([*rows, dict(label="three", split="test")]))


def test_a_single_label_is_refused():
    with pytest.raises(FedexitError, match=r"has 1 label\(s\) to train task digit on; it needs two"):
        digit_task(corpus_of([dict(label="one")] * 3))


# ---- the real ones -----------------------------------------------------------------------------------------------

README = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
ROW = r"^\| `(\w+)` \| `(\w+)` \| [^|]+ \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([^|]+) \|$"


@pytest.mark.parametrize("row", re.findall(ROW, README, re.MULTILINE), ids=lambda row: "-".join(row[:2]))
def test_numbers_in_the_readme_are_those_of_the_task(row, monkeypatch):
    name, corpus, *numbers, who = row
    monkeypatch.setenv("FEDEXIT_ROOT", str(Path(__file__).parents[1]))
    try:
        task = make_task(name, open_corpus(corpus))
    except FedexitError as error:
        pytest.skip(str(error))
    sizes = task.rows["split"].value_counts()
    expected = [len(task.labels), *(sizes[split] for split in ("train", "dev", "test"))]
    assert [int(number.replace(",", "")) for number in numbers] == expected
    train, dev, test = (set(task.rows.query("split == @split")["speaker"]) for split in ("train", "dev", "test"))
    if who.startswith("those of train"):
        assert test <= train
    elif who.startswith("mostly"):
        assert len(test - train) < 0.2 * len(test)
    else:
        assert f"{len(test)} " in who and len(dev) == len(test) and not train & test and not dev & (train | test)
    more = {("asr", "queen"): {"public", "known"}, ("asr", "speechocean"): {"known"}}.get((name, corpus), set())
    assert set(sizes.index) - {"train", "dev", "test"} == more


def test_the_readme_lists_every_task():
    assert {row[0] for row in re.findall(ROW, README, re.MULTILINE)} == set(TASKS) - set(OFFICIAL)
    assert set(re.findall(r"^\| `(\w+)` \| [A-Z-]+[0-9]* \|", README, re.MULTILINE)) == set(OFFICIAL)


def test_numbers_in_the_sentences_of_the_readme_are_right(monkeypatch):
    """Count again the numbers in the sentences of data/README.md."""
    monkeypatch.setenv("FEDEXIT_ROOT", str(Path(__file__).parents[1]))
    try:
        queen, digits, read, acted = (open_corpus(name) for name in ("queen", "asc_digits", "speechocean", "emodb"))
    except FedexitError as error:
        pytest.skip(str(error))
    readme = " ".join(README.split())
    said = queen.manifest.query("speaker != ''")
    named = f"{said.speaker.nunique()} voices known by name, of which {(said.value_counts('speaker') >= 36).sum()} have"
    assert named in readme
    assert f"{len(queen.manifest):,} acted clips of {queen.manifest.seconds.sum() / 3600:.1f} hours" in readme
    takes = digits.manifest.value_counts(["speaker", "label"])
    assert set(takes) == {10} and len(takes) == 300 and set(digits.manifest.seconds) == {1.0}
    assert f"3,000 clips of exactly 1 second ({digits.manifest.seconds.sum() / 3600:.2f} h" in readme
    table = read.manifest
    assert f"1,200 clips ({table.seconds.sum() / 3600:.2f} h" in readme and set(table.value_counts("speaker")) == {20}
    assert f"{table.text.nunique():,} of 1,200 texts are unique" in readme
    for split in ("train", "test"):
        assert f"{split} " + " ".join(sorted(set(table.query("split == @split").speaker))) in readme
    table = acted.manifest
    counts = ", ".join(f"{label} {count}" for label, count in table.value_counts("label").items())
    assert (
        f"{counts}, together {len(table)} clips ({table.seconds.sum() / 3600:.2f} h" in readme
        and table.text.nunique() == 10
    )
    median = table.groupby("label").seconds.median()
    rest = median.drop("sadness")
    assert f"lasts {median['sadness']:.1f} s in sadness and {rest.min():.1f} to {rest.max():.1f} s" in readme
    for name, where, pairs in ((queen, "group", (956, 3)), (read, "label", (1000, 469))):
        trials, rows = trials_of(name), name.manifest.set_index("id")
        equal = rows[where][trials["first"]].to_numpy() == rows[where][trials["second"]].to_numpy()
        assert tuple(equal[trials["same"] == kind].sum() for kind in (1, 0)) == pairs
    assert "956 of its 1,000 pairs" in readme and "but 3 of those" in readme and f"{1000 - 469} are a child" in readme


@pytest.mark.parametrize(
    ("task", "option", "value"),
    [
        ("keyword", "words", 0),
        ("keyword", "words", 2.5),
        ("voice", "min_clips", "4"),
        ("emotion", "fold", -1),
        ("speaker", "dev", 2),
        ("asr", "known", True),
        ("asr", "frame", 0),
        ("asr", "max_seconds", float("nan")),
    ],
)
def test_options_of_tasks_out_of_range_are_named(folder, task, option, value):
    with pytest.raises(FedexitError, match=f"task {task}: {option} is {value!r}; give a (whole )?number"):
        make_task(task, open_corpus(folder), **{option: value})


def test_a_task_needs_an_opened_corpus(folder):
    with pytest.raises(FedexitError, match="the corpus is of type str; give open_corpus"):
        make_task("keyword", str(folder))
