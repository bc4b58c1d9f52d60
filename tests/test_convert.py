"""Test `fedexit data convert` on ordinary folders: no file is lost or added silently."""

import io
import os
import sys
import unicodedata

import numpy as np
import pytest
import soundfile as sf

from fedexit import cli
from fedexit.data.convert import AUDIO_ENDINGS
from fedexit.data.corpora import convert_folder, open_corpus
from fedexit.support.errors import FedexitError

SIGNAL = np.random.default_rng(0).uniform(-0.5, 0.5, 800)


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    """Return a folder with one recording of each of two speakers."""
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    for name in ("ann/1.wav", "ben/1.wav"):
        record(tmp_path / "raw" / name)
    return tmp_path / "raw"


def record(path, signal=SIGNAL, rate=16_000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        sf.write(file, signal, rate, **{"format": "WAV", **options})
    return path


def convert(raw, **options):
    """Return the ids and the lines of the report."""
    lines = []
    corpus = convert_folder(raw, raw.parent / "out", say=lines.append, **options)
    assert lines[0] == f"{raw}: {len(corpus.dataset)} clips in {raw.parent / 'out'}"
    return list(corpus.manifest.id), lines[1:]


def refused(raw, message):
    with pytest.raises(FedexitError, match=message) as caught:
        convert(raw)
    assert "\n" not in str(caught.value) and not (raw.parent / "out").exists()


def test_every_ending_that_libsndfile_reads_is_taken(raw):
    for number, (ending, form) in enumerate(
        [("oga", "OGG"), ("caf", "CAF"), ("w64", "W64"), ("snd", "AU"), ("sph", "NIST")]
    ):
        record(raw / "cid" / f"{number}.{ending}", format=form)
    assert len(convert(raw)[0]) == 7
    assert {".aifc", ".rf64", ".opus", ".mp3"} <= AUDIO_ENDINGS and not {".raw", ".mat4", ".txt"} & AUDIO_ENDINGS


def test_other_endings_are_counted(raw):
    for name in ("ann/x.m4a", "ann/y.M4A", "ben/n.txt", "LICENSE"):
        (raw / name).write_text("x")
    assert convert(raw)[1] == [
        "left out, libsndfile does not read files with this ending: none: 1 (LICENSE)",
        "left out, libsndfile does not read files with this ending: .m4a: 2 (ann/x.m4a, ann/y.M4A)",
        "left out, libsndfile does not read files with this ending: .txt: 1 (ben/n.txt)",
    ]


def test_hidden_files_and_folders_are_left_out(raw):
    for name in (
        ".git/x.wav",
        ".Trash-1000/a.wav",
        "ann/.ipynb_checkpoints/1.wav",
        "__MACOSX/ann/1.wav",
        "ann/._1.wav",
    ):
        record(raw / name)
    hidden = ".Trash-1000, .git, __MACOSX, ann/.ipynb_checkpoints, ann/._1.wav"
    assert convert(raw) == (["ann/1", "ben/1"], [f"left out, hidden: 5 ({hidden})"])


def test_links_are_followed_and_loops_are_named(raw, tmp_path):
    record(tmp_path / "store" / "1.wav")
    record(tmp_path / "store" / "2.wav")
    (raw / "cid").symlink_to(tmp_path / "store")
    (raw / "ann" / "up").symlink_to("..")
    (raw / "ann" / "root").symlink_to("/")
    (raw / "zed").symlink_to("ben")
    (raw / "ben" / "2.wav").symlink_to("../ann/1.wav")
    (raw / "ben" / "3.wav").symlink_to(record(tmp_path / "elsewhere.wav"))
    os.link(raw / "ben" / "1.wav", raw / "ben" / "9.wav")
    ids, lines = convert(raw)
    assert ids == ["ann/1", "ben/1", "ben/3", "cid/1", "cid/2"]
    assert lines == [
        "left out, a link to a folder that is read already: 3 (ann/root, ann/up, zed)",
        "left out, the same file as another: 2 (ben/9.wav = ben/1.wav, ben/2.wav = ann/1.wav)",
    ]


def test_a_file_below_a_hidden_folder_is_read_by_its_link(raw):
    record(raw / ".git" / "annex" / "x.wav")
    (raw / "ben" / "2.wav").symlink_to("../.git/annex/x.wav")
    assert convert(raw) == (["ann/1", "ben/1", "ben/2"], ["left out, hidden: 1 (.git)"])


def test_earlier_corpora_are_left_out(raw):
    convert_folder(raw, raw / "one", say=lambda line: None)
    convert_folder(raw, raw / "deep" / "two", say=lambda line: None)
    assert convert(raw) == (["ann/1", "ben/1"], ["left out, a corpus made earlier: 2 (one, deep/two)"])


def test_pipes_are_left_out(raw):
    os.mkfifo(raw / "ann" / "pipe.wav")
    assert convert(raw) == (["ann/1", "ben/1"], ["left out, not a regular file: 1 (ann/pipe.wav)"])


def test_equal_names_with_different_endings_become_two_clips(raw):
    for name in ("ann/1.WAV", "ann/1.flac"):
        record(raw / name, format="FLAC" if name.endswith("flac") else "WAV")
    record(raw / "ben" / "x.wav.wav")
    assert convert(raw)[0] == ["ann/1.WAV", "ann/1.flac", "ann/1.wav", "ben/1", "ben/x.wav"]


def test_two_unicode_forms_of_a_name_give_one_speaker(raw):
    one, two = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
    record(raw / one / "1.wav")
    record(raw / two / "2.wav")
    assert set(convert(raw)[0]) == {"ann/1", "ben/1", f"{one}/1", f"{one}/2"}
    assert set(open_corpus(raw.parent / "out").manifest.speaker) == {"ann", "ben", one}
    record(raw / two / "1.wav")
    (raw.parent / "out").rename(raw.parent / "first")
    refused(raw, "one name in two Unicode forms")


def make_bad(raw, kind):
    file = raw / "ann" / "2.wav"
    if kind == "not audio":
        file.write_bytes(b"RIFFnothing")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "short":
        record(file, SIGNAL[:399])
    elif kind == "short at 48 kHz":
        record(file, SIGNAL[:600], 48_000)
    elif kind == "cancelling channels":
        record(file, np.stack([SIGNAL, -SIGNAL], 1))
    elif kind == "broken link":
        file.symlink_to("gone.wav")
    elif kind == "link to itself":
        file.symlink_to("2.wav")
    elif kind == "not UTF-8":
        os.rename(record(file), os.fsencode(raw / "ann") + b"/gr\xfc.wav")


BAD = {
    "not audio": r"ann/2\.wav: not readable as audio",
    "empty": r"ann/2\.wav: the file is empty",
    "short": r"ann/2\.wav: 399 samples at 16 kHz are too short",
    "short at 48 kHz": r"ann/2\.wav: 200 samples at 16 kHz are too short",
    "cancelling channels": r"ann/2\.wav: its 2 channels cancel out",
    "broken link": r"ann/2\.wav: cannot be read, or is a broken link",
    "link to itself": r"ann/2\.wav: cannot be read, or is a broken link",
    "not UTF-8": r"ann/gr\\xfc\.wav: the name is not UTF-8",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_stops_or_is_skipped_by_name(raw, kind):
    make_bad(raw, kind)
    refused(raw, BAD[kind] + r".*\(--skip-bad leaves such files out\)$")
    ids, lines = convert(raw, skip_bad=True)
    assert ids == ["ann/1", "ben/1"] and len(lines) == 1
    assert lines[0].startswith("left out, bad: 1 (") and lines[0].endswith(")")


def test_speakers_are_split_without_those_that_have_no_good_file(raw):
    for name in "cde":
        (raw / name).mkdir()
        (raw / name / "1.wav").write_bytes(b"x")
    convert(raw, skip_bad=True)
    assert set(open_corpus(raw.parent / "out").manifest.split) == {"train", "test"}


def test_a_folder_of_unusable_files_makes_no_corpus(raw):
    for name in ("ann/1.wav", "ben/1.wav"):
        (raw / name).write_bytes(b"x")
    with pytest.raises(FedexitError, match="none of its 2 audio files can be used"):
        convert(raw, skip_bad=True)
    assert not (raw.parent / "out").exists()


def test_levels_that_16_bits_cannot_hold_are_scaled_and_named(raw):
    wave = np.sin(np.arange(800) / 9)
    for name, gain in (("loud", 20_000), ("quiet", 1e-6), ("silent", 0)):
        record(raw / "ann" / f"{name}.wav", gain * wave, subtype="FLOAT")
    ids, lines = convert(raw)
    corpus = open_corpus(raw.parent / "out")
    assert len(ids) == 5 and lines == [
        "scaled down, because it was louder than full scale: 1 (ann/loud.wav)",
        "scaled up, because it was too quiet for 16 bits: 1 (ann/quiet.wav)",
        "kept, but silent: 1 (ann/silent.wav)",
    ]
    for clip in ("ann/loud", "ann/quiet"):
        assert np.abs(corpus.waveform(clip).numpy() - wave / np.abs(wave).max()).max() < 1e-4


def test_a_manifest_selects_the_clips_and_other_files_are_named(raw):
    rows = "ann/1.wav,ann,x,hi\nben/1.wav,ben,,ho\nben/9.wav,ben,y,ha\n"
    (raw / "manifest.csv").write_text("path,speaker,label,transcript\n" + rows)
    record(raw / "cid" / "1.wav")
    refused(raw, r"the audio file 'ben/9\.wav' is missing")
    assert convert(raw, skip_bad=True) == (
        ["ann/1", "ben/1"],
        [
            "left out, bad: 1 (ben/9.wav: the audio file is missing)",
            "left out, not in manifest.csv: 1 (cid/1.wav)",
            "kept without a label, so tasks with labels leave it out: 1 (ben/1)",
        ],
    )


def test_a_reserved_corpus_name_never_hides_a_folder(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedexitError, match=r"'queen' is the name of a corpus of fedexit; write \./queen"):
        convert_folder("raw", "queen")
    assert len(convert_folder("raw", "./queen", say=lambda line: None).dataset) == 2
    with pytest.raises(FedexitError, match=r"also a file or folder here; write \./queen for yours"):
        open_corpus("queen")
    assert open_corpus("./queen").folder.samefile(tmp_path / "queen")
    (tmp_path / "data" / "cache").mkdir(parents=True)
    (tmp_path / "queen").rename(tmp_path / "data" / "cache" / "queen")
    monkeypatch.chdir(tmp_path / "data" / "cache")
    assert open_corpus("queen").name == "queen"  # the same folder is not ambiguous


def test_an_unwritable_folder_is_named(raw):
    with pytest.raises(FedexitError, match="cannot be made"):
        convert_folder(raw, raw / "ann" / "1.wav" / "out")
    (raw.parent / "dangling").symlink_to("nothing")
    with pytest.raises(FedexitError, match="already exists"):
        convert_folder(raw, raw.parent / "dangling")


def test_the_command_finishes_with_the_count(raw, tmp_path, capsys):
    (raw / "ann" / "2.wav").write_bytes(b"x")
    assert cli.main(["data", "convert", str(raw), str(tmp_path / "out")]) == 2
    assert "ann/2.wav: not readable as audio" in capsys.readouterr().err
    assert cli.main(["data", "convert", str(raw), str(tmp_path / "out"), "--skip-bad"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith(f"2 clips in {tmp_path / 'out'}") and last.startswith("left out, bad: 1 (")


def test_the_command_notes_what_tasks_will_miss(tmp_path, capsys):
    rows = ["path,speaker,label"]
    for number, (speaker, label) in enumerate([("ann", "Yes"), ("ann", "yes "), ("ben", "yes"), ("ben", "no")]):
        record(tmp_path / "in" / f"{number}.wav")
        rows.append(f"{number}.wav,{speaker},{label}")
    (tmp_path / "in" / "manifest.csv").write_text("\n".join(rows) + "\n")
    assert cli.main(["data", "convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "note: the labels 'Yes', 'yes' differ only in capitals and are different classes",
        "note: no clip in dev; clips are split by speaker, so use three speakers, better ten",
    ]
    assert open_corpus(tmp_path / "out").labels == ["Yes", "no", "yes"]  # blanks at the ends do not count
    sharp = "path,speaker,label,split\n0.wav,ann,fuß,train\n1.wav,ben,fuss,test\n2.wav,cid,fuss,test\n3.wav,,x,test\n"
    (tmp_path / "in" / "manifest.csv").write_text(sharp)
    assert cli.main(["data", "convert", str(tmp_path / "in"), str(tmp_path / "own")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "note: 1 clip without a speaker; give each speaker a folder, or name speakers in manifest.csv",
        "note: no clip in dev; see the columns group and split of manifest.csv",
    ]
    (tmp_path / "in" / "manifest.csv").unlink()
    assert cli.main(["data", "convert", str(tmp_path / "in"), str(tmp_path / "flat")]) == 0
    first, second, third = capsys.readouterr().err.splitlines()
    assert "no clip has a label or a text" in first and "4 clips without" in second and "dev and test" in third


def test_a_missing_file_names_the_option_that_leaves_it_out(raw):
    (raw / "manifest.csv").write_text("path,speaker,label,transcript\nann/1.wav,ann,x,hi\nben/9.wav,ben,y,ha\n")
    refused(raw, r"'ben/9\.wav' is missing; correct its path \(--skip-bad leaves such files out\)")


def test_a_console_without_utf8_shows_escapes(raw, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert cli.main(["data", "convert", str(raw), str(raw.parent / "Zoë")]) == 0
    console.flush()
    assert rb"Zo\xeb" in console.buffer.getvalue()


@pytest.mark.parametrize("level", [1e-41, 1e-30, 1e-6, 1e6, 1e30])
def test_every_level_of_a_float_file_is_kept_by_scaling(raw, level):
    record(raw / "cid/1.wav", SIGNAL * level, subtype="FLOAT")
    ids, lines = convert(raw)
    direction = (
        "up, because it was too quiet for 16 bits" if level < 1 else "down, because it was louder than full scale"
    )
    assert ids == ["ann/1", "ben/1", "cid/1"] and lines == [f"scaled {direction}: 1 (cid/1.wav)"]
    wave = open_corpus(raw.parent / "out").waveform("cid/1").numpy()
    assert np.corrcoef(wave, SIGNAL)[0, 1] > 0.99


@pytest.mark.parametrize("bad", ["", None, 5, b"raw"])
def test_what_names_no_folder_is_refused(raw, bad):
    for folder, out in ((bad, raw.parent / "out"), (raw, bad)):
        with pytest.raises(FedexitError, match="names no folder; give the folder of recordings"):
            convert_folder(folder, out)
    assert not (raw.parent / "out").exists()


def test_a_file_as_folder_is_called_a_file(raw):
    with pytest.raises(FedexitError, match=r"1\.wav: is a file, not a folder; unpack it first, or name a folder"):
        convert_folder(raw / "ann/1.wav", raw.parent / "out")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_an_impossible_out_is_refused(raw, name):
    with pytest.raises(FedexitError, match=r"cannot be made \(.+\); choose another place"):
        convert_folder(raw, raw.parent / name)
