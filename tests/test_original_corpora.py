"""Test the readers of public releases on miniature ones (`small_releases`)."""

import io
import re
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import small_releases
import soundfile as sf
from small_releases import text, tone

from fedexit import cli
from fedexit.data.corpora import fetch_corpus, list_corpora, open_corpus
from fedexit.data.original import catalogue, subset
from fedexit.data.original.catalogue import ORIGINALS
from fedexit.data.places import corpus_checksum
from fedexit.data.tasks.paralinguistic import emotion_task
from fedexit.data.trials import trials_of
from fedexit.support.errors import FedexitError

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def fetched(name, source):
    """Return the manifest of the corpus `name` made of `source`, and what the reader says."""
    said = []
    return fetch_corpus(name, source, say=said.append).manifest.set_index("id"), "\n".join(said)


def splits_of(table, column="speaker"):
    return table.groupby(column)["split"].agg(lambda split: "/".join(sorted(set(split)))).to_dict()


# ---- the paper's corpora -----------------------------------------------------------------------------------------


def test_speech_commands_has_the_official_lists_and_silence(tmp_path):
    table, said = fetched("speech_commands", small_releases.speech_commands(tmp_path / "speech_commands_v0.02"))
    words = table[table["label"] != "silence"]
    assert len(words) == 35 * 3 + 1 and words["label"].nunique() == 35 and (words["text"] == words["label"]).all()
    assert splits_of(words) == {"a0": "train", "b1": "dev", "c2": "test"}
    assert table.loc["yes/a0_nohash_1", "path"] == "release/yes/a0_nohash_1.WAV"
    assert said == "left out, not named <speaker>_nohash_<number>: 1 (yes/a0_copy.wav)"
    silence = table[table["label"] == "silence"]
    assert set(silence["speaker"]) == {""} and set(silence["seconds"]) == {1.0} and len(silence) == 6
    noises = {"running_tap": "dev", "exercise_bike": "test", "pink_noise": "train"}
    assert splits_of(silence, "group") == {f"_background_noise_/{name}": split for name, split in noises.items()}
    corpus = open_corpus("speech_commands")
    whole = sf.read(corpus.folder / "release" / "_background_noise_" / "pink_noise.wav", dtype="float32")[0]
    assert corpus.waveform("_background_noise_/pink_noise-001").numpy() == pytest.approx(whole[16_000:32_000], abs=1e-4)


def test_librispeech_keeps_parts_readers_and_transcripts(tmp_path):
    table, said = fetched("librispeech", small_releases.librispeech(tmp_path / "x" / "LibriSpeech").parent)
    assert len(table) == 15 and (table["group"] == table["speaker"]).all()
    assert splits_of(table) == {"19": "train", "26": "train", "84": "dev", "61": "test", "367": "test"}
    assert table.loc["test-other/367/198/367-198-0002", "text"] == "HE SAID IT'S 2"
    assert table.loc["dev-clean/84/198/84-198-0002", "text"] == ""
    assert said.splitlines() == [
        "kept without a text, no line in its .trans.txt: 1 (dev-clean/84/198/84-198-0002.flac)",
        "left out, a transcript without a recording: 1 (dev-clean: 84-198-9999)",
    ]


def test_iemocap_has_four_emotions_and_sessions_as_groups(tmp_path):
    table, said = fetched("iemocap", small_releases.iemocap(tmp_path / "IEMOCAP_full_release"))
    counts = table["label"].value_counts().to_dict()
    assert counts == {"happy": 20, "angry": 10, "neutral": 10, "sad": 10, "": 31}
    assert splits_of(table, "group") == {f"Session{n}": s for n, s in enumerate(["test", "dev", *["train"] * 3], 1)}
    rows = table[table.index.str.contains("Ses03F_impro01_M")]
    assert set(rows["speaker"]) == {"Ses03M"} and set(rows["text"]) == {"Excuse me."}
    assert table.groupby("speaker")["group"].nunique().to_dict() == {
        f"Ses0{n}{who}": 1 for n in range(1, 6) for who in "FM"
    }
    for line in ("not in EmoEvaluation: 1 (Session1", "the emotion is xxx: 10", "emotion is fru: 10", "is oth: 10"):
        assert line in said


def test_the_folds_of_emotion_are_the_sessions_of_iemocap(tmp_path):
    fetched("iemocap", small_releases.iemocap(tmp_path / "IEMOCAP"))
    corpus, tested = open_corpus("iemocap"), []
    for fold in range(5):
        rows = emotion_task(corpus, fold=fold).rows
        held = {split: {name[:5] for name in own["speaker"]} for split, own in rows.groupby("split")}
        assert len(held["test"]) == len(held["dev"]) == 1 and len(held["train"]) == 3
        assert not held["test"] & held["train"] and set(rows["group"]) == set(rows["speaker"]) and len(rows) == 50
        tested += held["test"]
    assert sorted(tested) == [f"Ses0{n}" for n in range(1, 6)]


def test_voxceleb1_has_the_identification_split_and_the_trials(tmp_path):
    root = small_releases.voxceleb1(tmp_path / "vox")
    table, said = fetched("voxceleb1", root)
    assert len(table) == 18 and set(splits_of(table).values()) == {"dev/test/train"}
    assert splits_of(table, "group")["id10270/-b_"] == "dev"
    assert said == "left out, not in iden_split.txt: 1 (vox1_dev_wav/wav/id10001/aaa/00009.wav)"
    trials = trials_of(open_corpus("voxceleb1"))
    assert trials.to_numpy().tolist() == [
        ["id10270/aaa/00001", "id10270/ccc/00001", 1],
        ["id10270/aaa/00001", "id10271/aaa/00001", 0],
    ]
    with (root / "iden_split.txt").open("a") as file:
        file.write("3 id10001/aaa/00009.wav\n")
    table, said = fetched("voxceleb1", root)
    assert set(table[table.index.str.startswith("id10001/aaa/")]["group"]) == {""}
    assert said == "kept without a group, iden_split.txt divides the video among parts: 1 (id10001/aaa)"


def test_m4a_files_of_voxceleb1_are_decoded_by_ffmpeg(tmp_path, monkeypatch):
    root, tools = small_releases.voxceleb1(tmp_path / "vox"), tmp_path / "bin"
    file = next(root.glob("*/wav/id10271/ccc/00002.wav"))
    expected = sf.read(file, dtype="float32")[0]
    file.rename(file.with_suffix(".m4a"))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(FedexitError, match=r"00002\.m4a: no ffmpeg here to decode \.m4a; install FFmpeg"):
        fetched("voxceleb1", root)
    tools.mkdir()
    (tools / "ffmpeg").write_text('#!/bin/sh\nexec /bin/cat "$4"\n')  # the name of the file
    (tools / "ffmpeg").chmod(0o755)
    table, _ = fetched("voxceleb1", root)
    assert table.loc["id10271/ccc/00002", "path"] == "clips/id10271/ccc/00002.flac"
    assert open_corpus("voxceleb1").waveform("id10271/ccc/00002").numpy() == pytest.approx(expected, abs=1e-4)


def test_a_release_in_a_folder_is_linked_and_never_changed(tmp_path, data):
    root = small_releases.librispeech(tmp_path / "LibriSpeech")
    tone(root / "dev-clean" / "84" / "198" / "84-198-0000.flac", rate=8000, channels=2)
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    table, _ = fetched("librispeech", root)
    assert (data / "cache" / "librispeech" / "release").resolve() == root.resolve()
    assert table["path"].str.startswith("release/").sum() == 14
    assert table.loc["dev-clean/84/198/84-198-0000", "path"] == "clips/dev-clean/84/198/84-198-0000.flac"
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before
    with pytest.raises(FedexitError, match="which is made anew; move the release to another place"):
        fetched("librispeech", data / "cache" / "librispeech" / "clips")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_and_its_folder_give_one_checksum(tmp_path, data, kind):
    root = small_releases.librispeech(tmp_path / "x" / "LibriSpeech")
    fetched("librispeech", root)
    expected = corpus_checksum("librispeech")
    archive = tmp_path / f"part.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for file in (file for file in root.rglob("*") if file.is_file()):
                opened.write(file, file.relative_to(root.parent))
    else:
        with tarfile.open(archive, "w:gz") as opened:
            opened.add(root, "LibriSpeech")
    shutil.rmtree(root)
    fetched("librispeech", archive)
    assert corpus_checksum("librispeech") == expected
    assert sorted(path.name for path in (data / "cache" / "librispeech").iterdir()) == ["manifest.csv", "release"]


# ---- wrong layouts -----------------------------------------------------------------------------------------------


def without(name):
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def no_part(root):
    (root / "dev-clean").rename(root / "x")
    for part in ("train-clean-100", "test-clean", "test-other"):
        shutil.rmtree(root / part)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("speech_commands", without("wow"), r"expected the 35 words of .* v0\.02, found 34 .*\(different: wow\)"),
        ("speech_commands", without("testing_list.txt"), "expected validation_list.txt and testing_list.txt and _back"),
        ("speech_commands", without("yes/c2_nohash_0.wav"), "1 of the 35 files in this list are missing .yes/c2"),
        ("librispeech", no_part, "expected train-clean-100 or .* or test-other, found LICENSE, .*, x$"),
        ("iemocap", without("Session4"), "expected Session1/dialog/.*, found Session1, Session2, Session3, Session5$"),
        ("voxceleb1", without("vox1_test_wav"), "12 of the 18 files in this list are missing .id10270/aaa/00001"),
        ("voxceleb1", lambda root: text(root / "iden_split.txt", "id10001/aaa/00001.wav"), "expected lines such as"),
        ("voxceleb1", lambda root: text(root / "veri_test.txt", "1 id1/a/1.wav id1/b/1.wav"), "trials name 2 clips"),
        ("emodb", lambda root: None, r"no release of EMO-DB in it; expected .*, found LICENSE, .* and 1 more$"),
    ],
)  # fmt: skip
def test_a_wrong_layout_is_one_line_and_leaves_no_corpus(tmp_path, data, name, change, message):
    root = getattr(small_releases, name, small_releases.voxceleb1)(tmp_path / "mine")
    change(root)
    with pytest.raises(FedexitError, match=message) as caught:
        fetched(name, root)
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)
    assert not list((data / "cache").iterdir())


def test_a_speaker_in_two_parts_and_a_damaged_clip_are_refused(tmp_path, data):
    root = small_releases.librispeech(tmp_path / "LibriSpeech")
    tone(root / "dev-clean" / "19" / "1" / "19-1-0000.flac")
    with pytest.raises(FedexitError, match="belong to the group '19'"):
        fetched("librispeech", root)
    shutil.rmtree(root / "dev-clean" / "19")
    (root / "dev-clean" / "84" / "198" / "84-198-0001.flac").write_bytes(b"fLaC")
    with pytest.raises(FedexitError, match=r"84-198-0001\.flac: cannot be decoded"):
        fetched("librispeech", root)
    assert not list((data / "cache").iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iemocap", {}, r"IEMOCAP needs a licence: ask for it at https://sail\.usc\.edu/.* --from FOLDER"),
        ("voxceleb1", {}, r"VoxCeleb1 needs a licence: ask for it at https://mm\.kaist\.ac\.kr/.* --from FOLDER"),
        ("librispeech", {"parts": ["dev"]}, "LibriSpeech has no part 'dev'; parts: train-clean-100, "),
        ("librispeech", {"source": "nowhere"}, "nowhere: no such folder or archive"),
        ("librispeech", {"source": ".", "url": "https://x"}, "so --url and --part have no effect"),
        ("queen", {"parts": ["x"]}, "queen comes from Debian packages, so --url and --part have no effect"),
        ("emodb", {"source": __file__}, r"test_original_corpora\.py: cannot be unpacked"),
    ],
)
def test_fetching_what_cannot_be_had_names_the_fix(data, name, options, message):
    with pytest.raises(FedexitError, match=message):
        fetch_corpus(name, **options)
    assert not (data / "downloads").exists()


def test_the_table_and_the_command_line_know_every_release(tmp_path, capsys):
    table = list_corpora().set_index("name")
    assert set(ORIGINALS) < set(table.index)
    for name, original in ORIGINALS.items():
        assert table.loc[name, "licence"] == original.licence
        assert all(re.fullmatch(r"[0-9a-f]{64}|", archive.sha256) for archive in original.archives)
        with pytest.raises(FedexitError, match=f"corpus {name!r} is not there; run: fedexit data fetch {name} "):
            open_corpus(name)
    source = small_releases.voxceleb1(tmp_path / "vox")
    assert cli.main(["data", "fetch", "voxceleb1", "--from", str(source)]) == 0
    said = capsys.readouterr().out
    assert "left out, not in iden_split.txt: 1" in said and "voxceleb1: 18 clips in" in said


# ---- the open corpora, as this project uses them -----------------------------------------------------------------


def prepared(name, folder):
    """Unpack the prepared .tar of the corpus `name`, and return its manifest and folder."""
    tar = SHARED / f"{ORIGINALS[name].subset}.tar"
    if not tar.is_file():
        pytest.skip(f"{tar.name} is not here")
    with tarfile.open(tar) as archive:
        archive.extractall(folder, filter="data")
    home = folder / ORIGINALS[name].subset
    return pd.read_csv(home / "manifest.csv", dtype=str, keep_default_na=False), home


def as_release(name, table, home, root):
    """Write the files that the release of a corpus has, as far as its prepared .tar tells them."""
    kept = {"asc_digits": ("dataset/zero", "_01"), "speechocean": ("WAVE/SPEAKER000", ""), "emodb": ("dataset/Sad", "")}
    start, end = kept[name]
    table = table[table["path"].str.startswith(start) & table["path"].str[:-5].str.endswith(end)]
    for path in table["path"]:
        samples, rate = sf.read(home / path, dtype="int16")
        target = root / Path(path).with_suffix(".WAV" if name == "speechocean" else ".wav")
        target = root / "wav" / target.name if name == "emodb" else target
        target.parent.mkdir(parents=True, exist_ok=True)
        sf.write(target, samples, rate, format="WAV", subtype="PCM_16")
    for split, own in table.groupby("split") if "split" in table else ():
        if name == "asc_digits":
            other = "dataset/zoom in/00000001_NO_01.wav,zoom in"  # a word that is no digit, and whose file is not here
            lines = [f"{path[:-5]}.wav,{word}" for path, word in zip(own["path"], own["label"], strict=True)]
            text(root / f"{split}.csv", "file,class", *lines, other)
        else:
            clips = [Path(path).stem for path in own["path"]]
            waves = [f"{clip}\t{path[:-5]}.WAV" for clip, path in zip(clips, own["path"], strict=True)]
            text(root / split / "wav.scp", *waves, "960000023\tWAVE/SPEAKER9600/096000023.WAV")
            for file, column in (("text", "transcript"), ("utt2spk", "speaker")):
                lines = [f"{clip} {value}" for clip, value in zip(clips, own[column], strict=True)]
                text(root / split / file, *lines)
            for file, column in (("spk2age", "age"), ("spk2gender", "gender")):
                text(
                    root / split / file,
                    *{f"{who}\t{value}" for who, value in zip(own["speaker"], own[column], strict=True)},
                )
    small_releases.junk(root, target.parent)
    return table


@pytest.mark.parametrize("name", ["asc_digits", "speechocean", "emodb"])
def test_a_release_gives_the_manifest_and_the_audio_of_the_prepared_tar(tmp_path, data, monkeypatch, name):
    """Take a part of the corpus, for speed; the checksums of whole corpora were compared with the releases."""
    table, home = prepared(name, tmp_path)
    root = tmp_path / "release"
    table = as_release(name, table, home, root)
    places = table["path"].str[:-5]
    parts = set(places if name == "emodb" else places.str.rpartition("/")[0])
    assert parts <= set(subset.parts_of(name))
    monkeypatch.setattr("fedexit.data.original.fetch.parts_of", lambda _: sorted(parts))
    marks = ("*/14a05Tc.wav",) if name == "emodb" else ORIGINALS[name].marks
    monkeypatch.setitem(catalogue.ORIGINALS, name, replace(ORIGINALS[name], marks=marks))
    _, said = fetched(name, root)
    folder = data / "cache" / ORIGINALS[name].subset
    expected = io.StringIO(newline="")
    table.to_csv(expected, index=False, lineterminator="\r\n")
    assert (folder / "manifest.csv").read_bytes().decode() == expected.getvalue()
    audio = [(folder / path).read_bytes() == (home / path).read_bytes() for path in table["path"]]
    assert all(audio) and len(audio) == {"asc_digits": 30, "speechocean": 80, "emodb": 62}[name]
    assert "published results were made with " + ORIGINALS[name].checksum in said  # only a part of the corpus


def test_two_files_with_the_name_of_one_clip_must_be_equal(tmp_path, monkeypatch):
    monkeypatch.setattr("fedexit.data.original.fetch.parts_of", lambda _: ["dataset/Angry/03a01Wa"])
    tone(tmp_path / "emo" / "audio" / "03a01Wa.wav")
    tone(tmp_path / "emo" / "laryngo" / "03a01Wa.wav")
    with pytest.raises(
        FedexitError, match=r"audio/03a01Wa\.wav and laryngo/03a01Wa\.wav have one name|differ, but have"
    ):
        fetched("emodb", tmp_path / "emo")
    tone(tmp_path / "emo" / "wav" / "03a01Wa.wav")
    table, _ = fetched("emodb", tmp_path / "emo")
    assert list(table.index) == ["dataset/Angry/03a01Wa"] and table["text"].iloc[0].startswith("Der Lappen")
    tone(tmp_path / "emo" / "wav" / "03a01Wa.wav", rate=22_050)
    with pytest.raises(FedexitError, match=r"22050 Hz, 1 channel\(s\), PCM_16, but the release has 16000 Hz"):
        fetched("emodb", tmp_path / "emo")
    (tmp_path / "emo" / "wav" / "03a01Wa.wav").unlink()
    monkeypatch.setattr("fedexit.data.original.fetch.parts_of", lambda _: ["dataset/Angry/03a02Wb"])
    with pytest.raises(FedexitError, match=r"1 of the 1 files in this list are missing \(dataset/Angry/03a02Wb\)"):
        fetched("emodb", tmp_path / "emo")


def test_the_lists_of_the_subsets_have_the_sizes_of_the_corpora():
    digits, speakers, acted = (subset.parts_of(name) for name in ("asc_digits", "speechocean", "emodb"))
    assert len(set(digits)) == 10 and len(set(speakers)) == 60 and len(set(acted)) == 339
    assert {Path(part).name[5] for part in acted} == set("WFNT") and {Path(part).name[:2] for part in acted} >= {
        "03",
        "16",
    }
