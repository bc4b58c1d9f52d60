"""Test that a corpus's checksum covers the audio, and that its fast path notices every edit."""

import json
import mmap
import os
import time

import numpy as np
import pytest
import soundfile as sf

from fedexit.data import checksums
from fedexit.data.corpora import open_corpus
from fedexit.data.folder import COLUMNS
from fedexit.data.places import corpus_checksum
from fedexit.support.errors import FedexitError
from fedexit.support.files import flush_to_disk
from fedexit.support.reads import read_notes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder of two 16-bit WAV files of equal size."""
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(checksums, "SETTLED", -(10**12))  # use the index at once: the files are seconds old
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in "ab":
        write(folder / f"{name}.wav", ord(name))
    rows = "a,a.wav,,,,,0.05,train\nb,b.wav,,,,,0.05,test\n"
    (folder / "manifest.csv").write_text(",".join(COLUMNS) + "\n" + rows)
    return folder


def write(file, seed):
    """Overwrite `file` in place: the inode stays."""
    with file.open("r+b" if file.exists() else "w+b") as target:
        sf.write(target, np.random.default_rng(seed).uniform(-0.5, 0.5, 800), 16_000, format="WAV")


def test_an_edit_in_place_changes_the_checksum(folder):
    corpus = open_corpus(folder)
    before, hashes = corpus.checksum, [corpus.clip_hash(clip) for clip in "ab"]
    assert open_corpus(folder).checksum == corpus_checksum(folder) == before
    old = (folder / "a.wav").stat()
    write(folder / "a.wav", 1)
    os.utime(folder / "a.wav", ns=(old.st_atime_ns, old.st_mtime_ns))
    new = (folder / "a.wav").stat()
    assert (new.st_size, new.st_mtime_ns, new.st_ino) == (old.st_size, old.st_mtime_ns, old.st_ino)
    assert corpus.checksum == open_corpus(folder).checksum == corpus_checksum(folder) != before
    assert corpus.clip_hash("a") != hashes[0] and corpus.clip_hash("b") == hashes[1]


def test_an_edit_through_an_open_memory_map_changes_the_checksum(folder, tmp_path):
    def edits(file, between):
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as held:
            held[500:600] = bytes(100)
            before = between()
            time.sleep(0.02)  # beyond one tick of the file system's clock
            held[700:800] = bytes(100)
            return before != between()

    write(probe := tmp_path / "probe.wav", 0)
    if not edits(probe, lambda: (flush_to_disk(probe), probe.stat().st_ctime_ns)):
        pytest.skip("this file system does not record edits through a memory map")
    assert edits(folder / "a.wav", lambda: corpus_checksum(folder))


def test_a_change_of_the_manifest_changes_the_checksum(folder):
    before = corpus_checksum(folder)
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(text.replace("train", "dev"))
    assert corpus_checksum(folder) != before


def test_swapped_clips_change_the_checksum(folder):
    before = corpus_checksum(folder)
    (folder / "a.wav").rename(folder / "c.wav")
    (folder / "b.wav").rename(folder / "a.wav")
    (folder / "c.wav").rename(folder / "b.wav")
    assert corpus_checksum(folder) != before


def test_unchanged_files_are_not_read_again(folder, monkeypatch):
    before, read = corpus_checksum(folder), []
    monkeypatch.setattr(checksums, "file_hash", lambda file: read.append(file.name) or "new")
    assert corpus_checksum(folder) == before and not read
    write(folder / "b.wav", 5)
    assert corpus_checksum(folder) != before and read == ["b.wav"]


def test_files_changed_a_moment_ago_are_always_read(folder, monkeypatch):
    monkeypatch.setattr(checksums, "SETTLED", 10**15)
    before, read = corpus_checksum(folder), []
    monkeypatch.setattr(checksums, "file_hash", lambda file: read.append(file.name) or "new")
    assert corpus_checksum(folder) != before and read == ["a.wav", "b.wav"]


def test_a_damaged_or_missing_index_is_rebuilt(folder, tmp_path, monkeypatch):
    before = corpus_checksum(folder)
    (index,) = (tmp_path / "data" / "cache").glob("hashes-*.json")
    assert json.loads(index.read_text()).keys() == {"a.wav", "b.wav", "checksum"}
    for damaged in (
        "{",
        "[]",
        "[" * 100_000,
        index.read_text().replace("a.wav", "c.wav"),
        index.read_text()[:-9] + "0" * 7 + '"}',
    ):
        index.write_text(damaged)
        assert corpus_checksum(folder) == before
    monkeypatch.delenv("FEDEXIT_DATA")
    monkeypatch.delenv("FEDEXIT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)  # no project here, so no cache
    assert corpus_checksum(folder) == before


def test_what_a_killed_process_left_beside_the_index_is_removed(folder, tmp_path):
    corpus_checksum(folder)
    (index,) = (tmp_path / "data" / "cache").glob("hashes-*.json")
    (index.parent / f".{index.name}.abcdefgh.part.json").write_text("{")
    (index.parent / ".hashes-other.json.abcdefgh.part.json").write_text("{")
    index.unlink()
    corpus_checksum(folder)
    assert {file.name for file in index.parent.iterdir()} == {index.name, ".hashes-other.json.abcdefgh.part.json"}


def test_a_missing_clip_is_named(folder):
    corpus = open_corpus(folder)
    (folder / "b.wav").unlink()
    with pytest.raises(FedexitError, match=r"b\.wav: cannot be read"):
        _ = corpus.checksum
    with pytest.raises(FedexitError, match="no clip 'z'"):
        corpus.clip_hash("z")


def test_opening_a_corpus_is_recorded_with_its_checksum(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_READS", str(tmp_path / "reads"))
    checksum = open_corpus(folder).checksum
    assert read_notes(tmp_path / "reads")["corpus"] == {str(folder): {"checksum": checksum, "code": ""}}
