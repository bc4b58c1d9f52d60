"""Test that manifests of spreadsheets, editors and people are read correctly, or refused with the line."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from fedexit.data.corpora import convert_folder, open_corpus
from fedexit.data.folder import COLUMNS, read_table, save_manifest
from fedexit.data.places import corpus_checksum
from fedexit.support.errors import FedexitError

HEAD = "path,speaker,label,transcript\n"
ROWS = "a.wav,ann,x,hello there\nb.wav,ben,y,good bye\n"
OWN = ",".join(COLUMNS) + "\n"
TEXTS = ["hello there", "good bye"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder of two recordings without a manifest."""
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.wav", "b.wav"):
        sf.write(folder / name, np.random.default_rng(len(name)).uniform(-0.5, 0.5, 800), 16_000)
    return folder


def converted(folder, content):
    (folder / "manifest.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return convert_folder(folder, folder.parent / "out", say=lambda line: None).manifest


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + (HEAD + ROWS).encode(),
        (HEAD + ROWS).encode("utf-16"),
        (HEAD + ROWS).replace("\n", "\r\n"),
        (HEAD + ROWS).replace("\n", "\r"),
        (HEAD + ROWS).replace("\n", "\r\r\n"),
        HEAD.replace("\n", "\r\n") + ROWS,
        (HEAD + ROWS).replace(",", ";"),
        (HEAD + ROWS).replace(",", "\t"),
        (HEAD + ROWS).replace(",", "|"),
        "sep=;\r\n" + (HEAD + ROWS).replace(",", ";"),
        (HEAD + ROWS).replace(",", ", "),
        (HEAD + ROWS).replace(",", " , "),
        HEAD.upper() + ROWS,
        (HEAD + ROWS).replace("\n", ",\n"),
        HEAD + ROWS.replace("\n", ",\n"),
        "\n" + HEAD + "\n" + ROWS + ",,,\n\n",
        "," + HEAD + ROWS.replace("a.wav", "0,a.wav").replace("b.wav", "1,b.wav"),
        '"path","speaker","label","transcript"\n"a.wav","ann","x","hello there"\n"b.wav","ben","y","good bye"\n',
        (HEAD + ROWS).replace("a.wav", ".\\a.wav"),
    ],
)
def test_common_dialects_are_read(folder, content):
    table = converted(folder, content)
    assert list(table.text) == TEXTS and list(table.id) == ["a", "b"]
    assert list(table.speaker) == ["ann", "ben"] and list(table.label) == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + 'a.wav,ann,x,"hello there\nb.wav,ben,y,good bye\n', "begins in line 2 is not CSV"),
        (HEAD + 'a.wav,ann,x,"hello there\nb.wav,ben,y,good bye"\n', "begins in line 2 holds 'b.wav,ben,y,good bye'"),
        (HEAD + 'a.wav,ann,x,hi\nb.wav,ben,y,"good" bye\n', "begins in line 3 is not CSV"),
        (HEAD + "a.wav,ann,x,hello, there\nb.wav,ben,y,good bye\n", "line 2 has 5 fields but the header has 4"),
        (HEAD.replace("\n", ",\n") + "a.wav,ann,x,hello, there\n", "line 2 has 5 fields but the header has 4"),
        (HEAD.replace("x,", "") + "a.wav,ann\n", "line 2 has 2 fields but the header has 4"),
        ("path,speaker,label,,transcript\na.wav,ann,x,y,hi\n", "column 4 has no name but holds text"),
        ("path,speaker,label,Label\na.wav,ann,x,y\n", "column 'label' occurs twice"),
        ((HEAD + ROWS).replace(",", ":"), "'path:speaker:label:transcript' is no header"),
        (ROWS, "'a.wav,ann,x,hello there' is no header"),
        ((HEAD + ROWS).replace("bye", "grüße").encode("latin-1"), r"line 3 is not UTF-8"),
        ((HEAD + ROWS).replace("bye", "b\0ye"), "line 3 holds a NUL character"),
        (HEAD + "a.wav,ann,x," + "a" * 200_000 + "\n", "field larger than field limit"),
        ("path,label,transcript\na.wav,x,hi\n", "column 'speaker' is missing, expected path,speaker,label,transcript"),
        (HEAD + ",ann,x,hi\n", "has no path"),
        (HEAD + "C:\\a.wav,ann,x,hi\n", "leads out of the folder or is absolute"),
        (HEAD + "../in/a.wav,ann,x,hi\n", "leads out of the folder or is absolute"),
        (HEAD + ".,ann,x,hi\n", r"the audio file '\.' is missing"),
        (HEAD, "the corpus is empty"),
        (b"\n \n", "it is empty"),
    ],
)
def test_unreadable_tables_are_refused_in_one_line(folder, content, message):
    with pytest.raises(FedexitError, match=message) as caught:
        converted(folder, content)
    assert "\n" not in str(caught.value) and "manifest.csv: " in str(caught.value)
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    "text", ["one\rtwo", "one\r\ntwo", "one\ntwo, three", 'say "hi"', " lead", "NA", "5\" disk; 'x'"]
)
def test_texts_stay_unchanged(folder, text):
    quoted = text.replace('"', '""')
    table = converted(folder, HEAD + f'a.wav,ann,x,"{quoted}"\nb.wav,"{quoted}",01,bye\n')
    assert table.text[0] == text and table.speaker[1] == text and table.label[1] == "01"


def test_a_carriage_return_outside_of_quotes_belongs_to_its_text(folder):
    assert converted(folder, HEAD + "a.wav,ann,x,one\rtwo\nb.wav,ben,y,bye\n").text[0] == "one\rtwo"


def test_a_manifest_is_written_in_one_form(tmp_path):
    rows = [["a", "a.wav", "NA", "", "x\ry", "", 0.1, "train"], ["b", "b.wav", "", "", 'a, "b"', "", 1, "test"]]
    save_manifest(pd.DataFrame(rows, columns=COLUMNS), tmp_path / "m.csv")
    expected = OWN + 'a,a.wav,NA,,"x\ry",,0.100,train\nb,b.wav,,,"a, ""b""",,1.000,test\n'
    assert (tmp_path / "m.csv").read_bytes() == expected.encode()
    assert read_table(tmp_path / "m.csv").text.tolist() == ["x\ry", 'a, "b"']


def test_other_split_names_and_decimal_commas_are_read(folder):
    rows = 'a,a.wav,ann,,hi,x,"0,05",Training\nb,b.wav,ben,,ho,y,"0,05",VAL\n'
    (folder / "manifest.csv").write_text(OWN + rows)
    table = open_corpus(folder).manifest
    assert list(table.split) == ["train", "dev"] and table.seconds.tolist() == [0.05, 0.05]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,a.wav,,,,,0.05,train\nb,./a.wav,,,,,0.05,test\n", r"'a' \(train\) and 'b' \(test\) are the same file"),
        ("a,a.wav,,,,,0.05,train\nb,link.wav,,,,,0.05,test\n", r"'a' \(train\) and 'b' \(test\) are the same file"),
        (
            "a,a.wav,,g,hi,,0.05,train\nb,b.wav,,g,,x,0.05,dev\n",
            r"'a' \(train\) and 'b' \(dev\) belong to the group 'g'",
        ),
        ("a,a.wav,,,,,0.01,train\n", r"'a' is shorter than 0\.025 s"),
    ],
)
def test_manifests_with_overlapping_splits_or_too_short_clips_are_refused(folder, rows, message):
    (folder / "link.wav").symlink_to("a.wav")
    (folder / "manifest.csv").write_text(OWN + rows)
    with pytest.raises(FedexitError, match=message):
        open_corpus(folder)


def test_with_a_column_group_a_speaker_may_be_in_two_splits(folder):
    head, rows = HEAD.replace("\n", ",split\n"), "a.wav,ann,x,hi,train\nb.wav,ann,y,ho,test\n"
    with pytest.raises(FedexitError, match="without a column group, the speaker is the group"):
        converted(folder, head + rows)
    rows = rows.replace("train", "train,g1").replace("test", "test,g2")
    assert list(converted(folder, head.replace("\n", ",group\n") + rows).group) == ["g1", "g2"]


def test_wrong_seconds_and_rates_are_named_when_a_folder_is_opened(folder):
    (folder / "manifest.csv").write_text(OWN + "a,a.wav,,,,,2.0,train\n")
    with pytest.raises(FedexitError, match=r"clip 'a' lasts 0\.050 s, not 2\.000 s"):
        open_corpus(folder)
    sf.write(folder / "a.wav", np.zeros(16_000), 8_000)
    with pytest.raises(FedexitError, match=r"a\.wav: 8000 Hz with 1 channel"):
        open_corpus(folder)


def test_names_match_in_any_unicode_form(folder):
    composed, decomposed = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
    (folder / decomposed).mkdir()
    (folder / "a.wav").rename(folder / decomposed / "1.wav")
    rows = f"{composed}/1.wav,{composed},{decomposed},hi\nb.wav,{decomposed},{composed},ho\n"
    (folder / "manifest.csv").write_text(HEAD.replace("\n", ",seconds\n") + rows.replace("\n", ",0.05\n"))
    corpus = open_corpus(folder)
    table = corpus.manifest
    assert set(table.speaker) == set(table.label) == set(table.group) == {composed}
    assert len(corpus.waveform(f"{decomposed}/1")) == len(corpus.waveform(f"{composed}/1")) == 800
    assert corpus.checksum == corpus_checksum(folder)


def test_labels_leave_out_clips_without_one(folder):
    rows = OWN + "a,a.wav,,,,no,0.05,train\nb,b.wav,,,,,0.05,train\n"
    (folder / "manifest.csv").write_text(rows)
    with pytest.raises(FedexitError, match=r"has 1 label\(s\), a classifier needs at least two"):
        _ = open_corpus(folder).labels
    sf.write(folder / "c.wav", np.zeros(800), 16_000)
    (folder / "manifest.csv").write_text(rows + "c,c.wav,,,,yes,0.05,train\n")
    corpus = open_corpus(folder)
    assert corpus.labels == ["no", "yes"] and list(corpus.select("train", having="label").id) == ["a", "c"]


@pytest.mark.parametrize("swallowed", ["b.wav,ben,y,good bye", "b.flac,ben,y,good bye", "rec,ben,y,good bye"])
def test_a_swallowed_row_is_found_by_its_file_whatever_its_ending(folder, swallowed):
    (folder / "rec").write_bytes((folder / "b.wav").read_bytes())
    more = "c.flac,cid,x,so\n" if "flac" in swallowed else ""
    with pytest.raises(FedexitError, match=r"line 2 holds .+ looks like a row"):
        converted(folder, f'{HEAD}a.wav,ann,x,"hello there\n{swallowed}\nand "\n{more}')


@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", "  \u3000"])
def test_a_field_of_blanks_is_empty_and_no_class_or_speaker(folder, blank):
    manifest = converted(folder, f"{HEAD}a.wav,{blank},{blank},{blank}\nb.wav,ben,y,good bye\n")
    assert manifest[["speaker", "group", "label", "text"]].iloc[0].tolist() == [""] * 4
    assert manifest["label"].tolist() == ["", "y"]


def test_columns_that_are_left_out_are_named(folder):
    (folder / "manifest.csv").write_text("path,speaker,transcription,age\na.wav,ann,hi,30\nb.wav,ben,ho,31\n")
    lines = []
    convert_folder(folder, folder.parent / "out", say=lines.append)
    assert lines[1:] == ["left out, columns of manifest.csv that no corpus has: 2 (age, transcription)"]
