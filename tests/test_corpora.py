import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from test_queen import make_queen_1c, mp3

from fedexit.data import corpora
from fedexit.data import packages as fetch
from fedexit.data.corpora import convert_folder, fetch_corpus, list_corpora, open_corpus, write_manifest
from fedexit.data.folder import COLUMNS, split_groups
from fedexit.data.places import corpus_checksum
from fedexit.support.errors import FedexitError

ROOT = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared" / "data"
SIGNAL = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path):
    """Make a corpus of two clips with fields that many CSV readers turn into NaN."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a.flac", "b.flac"):
        sf.write(folder / name, SIGNAL, 16_000)
    edit(
        folder,
        [["a", "a.flac", "NA", "g", "None", "", "0.100", "train"], ["b", "b.flac", "", "", "", "", "0.1", "test"]],
    )
    return folder


def edit(folder, rows, columns=COLUMNS):
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)


def rows_of(folder):
    return pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)


def make_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def flac():
    file = io.BytesIO()
    sf.write(file, SIGNAL, 16_000, format="FLAC")
    return file.getvalue()


def foreign_tar(path, speakers="abcdefghij", split=None):
    lines = ["path,speaker,label,transcript,seconds,sample_rate" + (",split" if split else "")]
    lines += [f"x/{name}.flac,{name},happy,Hm.,0.1,16000" + (f",{split}" if split else "") for name in speakers]
    files = {f"top/x/{name}.flac": flac() for name in speakers}
    return make_tar(path, {**files, "top/manifest.csv": "\n".join(lines).encode()})


def make_deb(path, files):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    deb = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("control.tar.xz", b"odd"), ("data.tar.xz", inner.getvalue())):
        deb += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        deb += b"\n" * (len(content) % 2)
    path.write_bytes(deb)
    return path


@pytest.fixture
def queen_1c(monkeypatch):
    content = make_queen_1c({"JOE00411.SB": mp3(), "QUEEN2.JAS": b"Just a rope."})
    monkeypatch.setattr(fetch, "QUEEN_SHA256", hashlib.sha256(content).hexdigest())
    return content


# ---- opening -----------------------------------------------------------------------------------------------------


def test_open_folder(folder):
    corpus = open_corpus(folder)
    table = corpus.manifest
    assert list(table.columns) == COLUMNS and corpus.name == "mine" and len(corpus.dataset) == 2
    assert (
        list(table.speaker) == ["NA", ""] and list(table.text) == ["None", ""] and table.seconds.tolist() == [0.1, 0.1]
    )
    assert corpus.waveform("b").shape == (1600,)
    assert corpus.dataset[0]["audio"]["path"] == str(folder / "a.flac")
    assert corpus.checksum == corpus_checksum(folder) == open_corpus(folder).checksum
    assert list(corpus.select("train").id) == ["a"] and corpus.select("test", having="speaker").empty


def test_manifest_is_the_callers_own_copy(folder):
    corpus = open_corpus(folder)
    table = corpus.manifest
    table.loc[0, "text"] = "changed"
    assert corpus.manifest.text[0] == "None"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="group"), "column 'group' is missing"),
        (lambda t: t.iloc[:0], "empty"),
        (lambda t: t.assign(id="a"), "id 'a' occurs more than once"),
        (lambda t: t.assign(split="eval"), "unknown split 'eval', expected train, dev, test"),
        (lambda t: t.assign(path=["a.flac", "c.flac"]), "'c.flac' is missing"),
        (lambda t: t.assign(seconds=["0.1", "nan"]), "seconds of clip 'b'"),
        (lambda t: t.assign(seconds=["inf", "0.1"]), "seconds of clip 'a'"),
        (lambda t: t.assign(seconds=["0.1", "long"]), "seconds of clip 'b'"),
        (lambda t: t.assign(path=["../a.flac", "b.flac"]), "'../a.flac' leads out of the folder"),
        (lambda t: t.assign(path=["/etc/passwd", "b.flac"]), "'/etc/passwd' leads out of the folder"),
    ],
)
def test_bad_manifests_are_refused_in_one_line(folder, change, message):
    change(rows_of(folder)).to_csv(folder / "manifest.csv", index=False)
    with pytest.raises(FedexitError, match=re.escape(message)) as caught:
        open_corpus(folder)
    assert str(folder / "manifest.csv") in str(caught.value) and "\n" not in str(caught.value)


def test_errors_about_missing_corpora_name_the_fix(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.csv").write_bytes(b"")
    for place, message in [
        ("queen", "fedexit data fetch queen"),
        ("emodb", "fedexit data fetch emodb --from emodb4.tar"),
        ("nowhere", "expected queen, unlabelled, asc_digits, speechocean, emodb"),
        (tmp_path / "bare", "fedexit data convert"),
        (tmp_path / "broken", "not readable as a CSV"),
    ]:
        with pytest.raises(FedexitError, match=message):
            open_corpus(place)


def test_unknown_clip_and_split(folder):
    with pytest.raises(FedexitError, match="no clip 'z'"):
        open_corpus(folder).waveform("z")
    with pytest.raises(FedexitError, match="unknown split 'eval'"):
        open_corpus(folder).select("eval")


def test_tar_without_split_is_split_by_speaker(data):
    foreign_tar(data / "downloads" / "emodb4.tar")
    table = open_corpus("emodb").manifest
    assert table.id[0] == "x/a" and (table.group == table.speaker).all() and (table.text == "Hm.").all()
    assert table.split.value_counts().to_dict() == {"train": 6, "dev": 2, "test": 2}
    assert open_corpus("emodb").manifest.equals(table)
    assert len(list((data / "cache").iterdir())) == 1


def test_tar_with_official_split_keeps_it(tmp_path):
    assert set(open_corpus(foreign_tar(tmp_path / "x.tar", split="val")).manifest.split) == {"dev"}


def test_another_tar_with_the_same_name_is_unpacked_again(tmp_path):
    assert len(open_corpus(foreign_tar(tmp_path / "x.tar", "abc")).dataset) == 3
    assert len(open_corpus(foreign_tar(tmp_path / "x.tar", "abcd")).dataset) == 4


def test_bad_tars_leave_no_files(tmp_path, data):
    evil = make_tar(tmp_path / "evil.tar", {"../outside.txt": b"x"})
    whole = foreign_tar(tmp_path / "short.tar")
    whole.write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "text.tar").write_text("no tar")
    for tar in (evil, whole, tmp_path / "text.tar"):
        with pytest.raises(FedexitError, match=rf"{tar.name}: cannot be unpacked"):
            open_corpus(tar)
    assert not list((data / "cache").iterdir())


@pytest.mark.parametrize("top", ["", "c/", "./c/", "data/c/"])
def test_a_corpus_is_found_at_any_depth_of_a_tar(tmp_path, top):
    whole = foreign_tar(tmp_path / "x.tar")
    with tarfile.open(whole) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    deep = {name.replace("top/", top): content for name, content in files.items()}
    corpus = open_corpus(make_tar(tmp_path / "my.corpus.tar", {"._c": b"x", "c/._manifest.csv": b"x", **deep}))
    assert len(corpus.dataset) == 10 and corpus.name == "my.corpus"


def test_archives_without_exactly_one_corpus_are_refused_in_one_line(tmp_path, data):
    two = make_tar(tmp_path / "two.tar", {"a/manifest.csv": b"x", "b/manifest.csv": b"x"})
    linked = tmp_path / "linked.tar"
    with tarfile.open(linked, "w") as archive:
        link = tarfile.TarInfo("c/1.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "2.wav"
        archive.addfile(link)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("c/manifest.csv", "x")
    for place, message in [
        (two, "holds several corpora, 'a' and 'b'"),
        (linked, "'c/1.wav' is a link or device"),
        (tmp_path / "c.zip", r"a \.zip archive"),
    ]:
        with pytest.raises(FedexitError, match=message) as caught:
            open_corpus(place)
        assert "\n" not in str(caught.value)


def test_a_corpus_has_the_name_of_its_folder(folder, monkeypatch):
    renamed = folder.rename(folder.with_name("my.corpus.v2"))
    monkeypatch.chdir(renamed)
    assert open_corpus(renamed).name == open_corpus(".").name == "my.corpus.v2"


def test_groups_are_split_equally_on_every_machine():
    names = [f"speaker {number}" for number in range(40)]
    split = split_groups(names)
    assert split == split_groups(reversed(names * 2))
    assert pd.Series(split).value_counts().to_dict() == {"train": 28, "dev": 6, "test": 6}
    assert [sorted(split_groups(names[:count]).values()) for count in (1, 2, 3)] == [
        ["train"],
        ["test", "train"],
        ["dev", "test", "train"],
    ]
    assert split_groups(["a", "b", "c", "d"]) == {"d": "test", "c": "dev", "b": "train", "a": "train"}


def test_datasets_writes_nothing_to_the_home_folder(folder, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = f"import fedexit; print(len(fedexit.open_corpus({str(folder)!r}).dataset))"
    environment = {**os.environ, "HOME": str(home), "HF_HOME": "", "XDG_CACHE_HOME": ""}
    environment = {key: value for key, value in environment.items() if value}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout.split() == [b"2"] and not list(home.iterdir())


# ---- fetching ----------------------------------------------------------------------------------------------------


def test_fetch_from_deb_and_from_queen_1c(tmp_path, data, queen_1c):
    deb = make_deb(tmp_path / "game_9.deb", {"./usr/readme": b"x", "./usr/share/game/queen.1c": queen_1c})
    (tmp_path / "other.1c").write_bytes(queen_1c)
    for source in (deb, tmp_path / "other.1c"):
        corpus = fetch_corpus("queen", str(source))
        assert list(corpus.manifest.text) == ["Just a rope."] and corpus.folder == data / "cache" / "queen"
        assert [path.name for path in (data / "downloads").iterdir()] == ["queen.1c"]
    assert open_corpus("queen").checksum == corpus.checksum


def test_fetch_uses_a_file_fetched_earlier(data, queen_1c, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (data / "downloads").mkdir(parents=True)
    (data / "downloads" / "queen.1c").write_bytes(queen_1c)
    assert len(fetch_corpus("queen").dataset) == 1


def test_fetching_by_apt_does_not_change_the_system(tmp_path, data, queen_1c, monkeypatch):
    deb = make_deb(tmp_path / "kept.deb", {"./usr/share/game/queen.1c": queen_1c})
    log, tools = tmp_path / "log", tmp_path / "bin"
    tools.mkdir()
    fake = tools / "apt-get"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n'
        f'case "$*" in *download*) cp {deb} ./{fetch.PACKAGE}_1_all.deb; exit;; esac\n'
        'echo "E: a third party" >&2; exit 100\n'
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    assert len(fetch_corpus("queen").dataset) == 1
    update, download = log.read_text().splitlines()
    state = re.search(r"Dir::State=(\S+)", update)[1]
    assert "/var/" not in update and update.endswith(" update") and not Path(state).exists()
    assert download.endswith(f"download {fetch.PACKAGE}") and f"Dir::State={state}" in download


def test_fetch_without_network_or_apt_names_the_fix(tmp_path, data, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text('#!/bin/sh\necho "E: Unable to locate package" >&2\nexit 100\n')
    (tools / "apt-get").chmod(0o755)
    for path, message in [(f"{tools}:/bin:/usr/bin", "E: Unable to locate package"), ("", "no apt-get")]:
        monkeypatch.setenv("PATH", path)
        with pytest.raises(FedexitError, match=f"{message}.*fedexit data fetch queen --from FILE"):
            fetch_corpus("queen")
    assert not data.exists()


def test_bad_sources_are_refused(tmp_path, data, queen_1c):
    (tmp_path / "old.1c").write_bytes(queen_1c + b"x")
    deb = make_deb(tmp_path / "short.deb", {"./queen.1c": queen_1c})
    deb.write_bytes(deb.read_bytes()[:600])
    found = hashlib.sha256(queen_1c + b"x").hexdigest()
    for source, message in [
        (tmp_path / "none.deb", "none.deb: cannot be read"),
        (tmp_path / "old.1c", f"{found}, expected {fetch.QUEEN_SHA256}"),
        (deb, "not a readable .deb"),
        (make_deb(tmp_path / "other.deb", {"./usr/readme": b"x"}), "holds no queen.1c"),
    ]:
        with pytest.raises(FedexitError, match=message):
            fetch_corpus("queen", source)
    assert not data.exists()


def test_fetch_of_the_other_corpora(tmp_path, data):
    foreign_tar(tmp_path / "mine.tar")
    assert len(fetch_corpus("emodb", tmp_path / "mine.tar").dataset) == 10
    assert len(fetch_corpus("emodb").dataset) == 10
    with pytest.raises(FedexitError, match=r"not a \.tar"):
        fetch_corpus("emodb", __file__)
    with pytest.raises(FedexitError, match="unknown corpus 'timit', expected queen"):
        fetch_corpus("timit")
    states = list_corpora().set_index("name").state
    assert states["emodb"] == "ready" and states["queen"] == "not fetched"


# ---- writing and converting --------------------------------------------------------------------------------------


def test_write_manifest(folder, tmp_path):
    out = tmp_path / "out.csv"
    assert write_manifest(folder, out) == out
    expected = ",".join(COLUMNS) + "\na,a.flac,NA,g,None,,0.100,train\nb,b.flac,,,,,0.100,test\n"
    assert out.read_bytes() == expected.encode()
    with pytest.raises(FedexitError, match="cannot be written"):
        write_manifest(folder, tmp_path / "none" / "out.csv")


def test_convert_tree_of_any_audio(tmp_path):
    for place, rate, channels in [("ann/x/1.wav", 44_100, 2), ("ann/2.ogg", 48_000, 1), ("bob/1.flac", 16_000, 1)]:
        path = tmp_path / "raw" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, np.zeros((rate, channels)), rate)
    (tmp_path / "raw" / "notes.txt").write_text("not audio")
    table = convert_folder(tmp_path / "raw", tmp_path / "out").manifest
    assert list(table.id) == ["ann/2", "ann/x/1", "bob/1"] and list(table.speaker) == ["ann", "ann", "bob"]
    assert table.seconds.tolist() == [1, 1, 1] and table.groupby("speaker").split.nunique().max() == 1
    assert set(table.split) == {"train", "test"}
    assert open_corpus(tmp_path / "out").waveform("ann/x/1").shape == (16_000,)


def test_convert_keeps_a_manifest(folder, tmp_path):
    sf.write(folder / "a.flac", np.zeros((8000, 2)), 8000)
    table = convert_folder(folder, tmp_path / "out").manifest
    assert list(table.text) == ["None", ""] and list(table.split) == ["train", "test"]
    assert table.seconds.tolist() == [1.0, 0.1]


def test_failed_conversions_leave_no_files(folder, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"RIFFnothing")
    for source, out, message in [
        (tmp_path / "none", "out", "no audio files"),
        (tmp_path / "gone", "out", "no such folder"),
        (tmp_path / "bad", "out", r"a\.wav: not readable"),
        (folder, "none", "already exists"),
    ]:
        with pytest.raises(FedexitError, match=message):
            convert_folder(source, tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "mine", "none"]


# ---- the real ones -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "clips", "speakers", "splits"),
    [
        ("asc_digits", 3000, 30, {"train": 18, "dev": 6, "test": 6}),
        ("speechocean", 1200, 60, {"train": 40, "test": 20}),
        ("emodb", 339, 10, {"train": 6, "dev": 2, "test": 2}),
    ],
)
def test_real_tars(data, name, clips, speakers, splits):
    tar = SHARED / f"{corpora.TARS[name][0]}.tar"
    if not tar.is_file():
        pytest.skip(f"{tar.name} is not here")
    (data / "downloads").mkdir(parents=True)
    (data / "downloads" / tar.name).symlink_to(tar)
    corpus = open_corpus(name)
    table = corpus.manifest
    assert len(table) == clips and table.speaker.nunique() == speakers
    assert table.drop_duplicates("speaker").split.value_counts().to_dict() == splits
    assert table.groupby("speaker").split.nunique().max() == 1
    assert len(corpus.waveform(table.id[0])) / 16_000 == pytest.approx(table.seconds[0], abs=0.01)


def test_numbers_in_the_readme_are_those_of_the_manifest(monkeypatch):
    monkeypatch.delenv("FEDEXIT_DATA")
    monkeypatch.setenv("FEDEXIT_ROOT", str(ROOT))
    try:
        table = open_corpus("queen").manifest
    except FedexitError:
        pytest.skip("queen is not fetched here (fedexit data fetch queen)")
    voices = table[table.speaker != ""]
    said = table[table.text != ""]
    words = said.text.str.lower().str.replace("[^a-z0-9' ]", "", regex=True).str.split().str.join(" ")
    seen = words.isin(set(words[said.split == "train"]))
    numbers = {"all clips": table, "with text": said, "with a voice": voices, "of JOE": voices[voices.speaker == "JOE"]}
    numbers["with a sentence type"] = table[table.label != ""]
    numbers["with a text that train has too"] = said[seen]
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-zA-Z ]+) \| ([\d, |]+) \|$", readme, flags=re.MULTILINE))
    for name, part in numbers.items():
        counts = [len(part), *(int((part.split == split).sum()) for split in ("train", "dev", "test"))]
        assert rows[name] == " | ".join(f"{count:,}" for count in counts), name


def test_the_tar_of_another_known_corpus_is_refused(tmp_path, data):
    foreign_tar(tmp_path / "mine.tar")
    other = {"m/manifest.csv": b"path,speaker,label,transcript,seconds\ndataset/one/1.flac,ann,one,one,0.1\n"}
    make_tar(tmp_path / "digits.tar", {**other, "m/dataset/one/1.flac": flac()})
    said = []
    fetch_corpus("emodb", tmp_path / "mine.tar", say=said.append)
    assert len(said) == 1 and said[0].startswith("the checksum of the corpus is ")
    with pytest.raises(FedexitError, match=r"digits\.tar: holds the corpus asc_digits, not emodb; run: .*digits\.tar"):
        fetch_corpus("emodb", tmp_path / "digits.tar")
    assert len(open_corpus("emodb").table) == 10


def test_a_given_tar_is_used_although_a_release_was_fetched_before(folder, tmp_path, data):
    shutil.copytree(folder, data / "cache" / "emodb4")
    assert len(open_corpus("emodb").table) == 2
    assert len(fetch_corpus("emodb", foreign_tar(tmp_path / "mine.tar"), say=str).table) == 10


def tar_of(folder, file):
    with tarfile.open(file, "w") as archive:
        archive.add(folder, "inside")
    return file


def test_a_tar_that_is_no_corpus_does_not_replace_the_one_that_is_there(folder, tmp_path):
    assert len(fetch_corpus("emodb", tar_of(folder, tmp_path / "good.tar")).dataset) == 2
    (folder / "manifest.csv").unlink()
    with pytest.raises(FedexitError, match=r"no release of EMO-DB in it; expected 03a01Wa.*, found inside"):
        fetch_corpus("emodb", tar_of(folder, tmp_path / "bad.tar"))
    (tmp_path / "cut.tgz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0")
    for broken, says in (
        (tmp_path / "cut.tgz", "end-of-stream"),
        (folder / "a.flac", r"not a \.tar archive, or a damaged"),
    ):
        with pytest.raises(FedexitError, match=f"{broken.name}: cannot be unpacked .*{says}"):
            fetch_corpus("emodb", broken)
    assert len(open_corpus("emodb").dataset) == 2


def test_a_source_that_cannot_be_used_is_refused_by_name(tmp_path):
    with pytest.raises(FedexitError, match=r"unlabelled is made of 13 packages, so x\.tar cannot be used"):
        fetch_corpus("unlabelled", "x.tar")
    (tmp_path / "cut.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(FedexitError, match=r"cut\.deb: not a readable \.deb package"):
        fetch_corpus("queen", tmp_path / "cut.deb")


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", None, 5, b"mine", ["mine"]])
def test_what_names_no_corpus_is_refused(name):
    with pytest.raises(FedexitError, match=r"is not there; expected queen|cannot be of type"):
        open_corpus(name)


def test_wrong_ids_and_columns_are_named(folder):
    corpus = open_corpus(folder)
    for clip in ("c", 5, None):
        with pytest.raises(FedexitError, match=f"has no clip {clip!r}"):
            corpus.waveform(clip)
    with pytest.raises(FedexitError, match="unknown column 'age', expected id, path"):
        corpus.select("train", having="age")


def test_a_manifest_that_cannot_be_written_is_named_without_temporary_names(folder, tmp_path):
    for out in (tmp_path, f"{tmp_path}/a\0b"):
        with pytest.raises(FedexitError, match=r"cannot be written \([\w ]+\); choose another place"):
            write_manifest(folder, out)
