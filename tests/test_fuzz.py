"""Change bytes of everything that comes from outside: only FedexitError may be raised, and nothing may hang.

FUZZ=N in the environment gives every test N cases, for a long run.
"""

import io
import json
import os
import tarfile
import warnings
import wave
import zipfile
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_queen import cut_scene, dialogue, make_queen_1c

from fedexit.data.archives import unpack
from fedexit.data.audio import decode_audio
from fedexit.data.folder import as_manifest, check_manifest, read_table
from fedexit.data.packages import package_files
from fedexit.data.queen import read_clips
from fedexit.flower.fleet import read_fleet
from fedexit.runner.manifest import load_manifest
from fedexit.runner.provenance import state_of
from fedexit.runner.yaml_text import parse_yaml
from fedexit.support.checkpoints import load_checkpoint, save_checkpoint
from fedexit.support.errors import FedexitError
from fedexit.teach.checking import RECORDED, read_key
from fedexit.teach.exercises import BY_NAME
from fedexit.teach.grading import _cells_of, _verdict

CASES = int(os.environ.get("FUZZ", 60))
fuzzed = settings(
    max_examples=CASES, database=None, derandomize="FUZZ" not in os.environ, print_blob=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
EDIT = st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=6))
EDITS = st.lists(EDIT, min_size=1, max_size=4)
FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3)
CHANGES = st.tuples(EDITS | st.just([]), FLIPS | st.just([]), st.none() | st.floats(0, 1))


def changed(content: bytes, change: tuple) -> bytes:
    """Return `content` with bytes replaced and inserted, bits flipped, and perhaps cut."""
    edits, flips, cut = change
    found = bytearray(content)
    for place, gone, added in edits:
        start = int(place * len(found))
        found[start : start + gone] = added
    for place, bit in flips:
        if found:
            found[min(int(place * len(found)), len(found) - 1)] ^= 1 << bit
    return bytes(found if cut is None else found[: int(cut * len(found))])


def refused_or_read(function, *arguments) -> None:
    """Call `function`; a FedexitError has one line, and no other error comes out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*arguments)
        except FedexitError as error:
            assert str(error) and "\n" not in str(error)


QUEEN = make_queen_1c(
    {
        "JOE1.DOG": dialogue(12, [(0, "Hello."), (3, "Who?")], [(1, "Nobody *XY12345678901 at all.")], ("a", "b")),
        "C1A.CUT": cut_scene("", ["", "*", "Look!", "#x", "Run..."]),
        "QUEEN2.JAS": b"One.\r\nTwo!\r\n",
        "12SSSSJ1.SB": b"mp3",
    }
)  # fmt: skip


@fuzzed
@given(CHANGES)
def test_queen(change):
    refused_or_read(read_clips, changed(QUEEN, change))


def tar_with(size: bytes | None = None, compressed: str = "") -> bytes:
    """Return a tar of two files and a folder; `size` replaces the twelve bytes of the first size in its header."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=f"w:{compressed}", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("c/" + "é" * 60 + ".wav", b"abc"), ("c/manifest.csv", b"path,speaker\na.wav,b\n")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    found = target.getvalue()
    return found if size is None else found[:124] + size + found[136:]


def deb_of(files: bytes) -> bytes:
    parts = {b"debian-binary": b"2.0\n", b"data.tar": files}
    return b"!<arch>\n" + b"".join(
        name.ljust(48) + str(len(own)).encode().ljust(10) + b"`\n" + own + b"\n" * (len(own) % 2)
        for name, own in parts.items()
    )


NEGATIVE = (b"\xff" * 10) + b"\xfe\x00"  # -512 in the binary form of sizes


@fuzzed
@given(st.sampled_from(["", "gz", "xz", "zst"]), CHANGES, CHANGES)
def test_deb(kind, inner, outer):
    files = changed(tar_with(compressed="" if kind == "zst" else kind), inner)
    files = zstandard.compress(files) if kind == "zst" else files
    refused_or_read(lambda: list(package_files(changed(deb_of(files), outer))))


@pytest.mark.parametrize("size", [NEGATIVE, b"-0000000001\0", b"99999999999\0", b"\x80" + b"\x7f" * 11])
def test_a_size_that_is_negative_or_huge_ends(size, tmp_path):
    """A negative size lets `tarfile` read one entry for ever."""
    plain = tarfile.TarInfo("a.wav")
    content = plain.tobuf(tarfile.GNU_FORMAT)
    broken = bytearray(content[:124] + size + content[136:])
    broken[148:156] = b" " * 8
    broken[148:156] = b"%06o\0 " % sum(broken)
    (tmp_path / "a.tar").write_bytes(bytes(broken) + bytes(1024))
    (tmp_path / "out").mkdir()
    with pytest.raises(FedexitError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    with pytest.raises(FedexitError, match=r"not a readable \.deb package"):
        list(package_files(deb_of(bytes(broken) + bytes(1024))))


@fuzzed
@given(st.sampled_from(["", "gz", "bz2", "xz"]), CHANGES, CHANGES)
def test_tar(tmp_path_factory, kind, inner, outer):
    folder = tmp_path_factory.mktemp("tar")
    (folder / "out/deep").mkdir(parents=True)
    archive = folder / "a.tar"
    archive.write_bytes(changed(tar_with(compressed=kind) if kind else changed(tar_with(), inner), outer))
    refused_or_read(unpack, archive, folder / "out/deep")
    assert {path.name for path in folder.iterdir()} == {"a.tar", "out"} and len(list((folder / "out").iterdir())) == 1


def zip_with(method: int) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.mkdir("c")
        archive.writestr("c/é.wav", b"abc" * 9)
        archive.writestr("c/manifest.csv", b"path,speaker\na.wav,b\n")
    return target.getvalue()


@fuzzed
@given(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]), CHANGES)
def test_zip(tmp_path_factory, method, change):
    folder = tmp_path_factory.mktemp("zip")
    (folder / "out/deep").mkdir(parents=True)
    (folder / "a.zip").write_bytes(changed(zip_with(method), change))
    refused_or_read(unpack, folder / "a.zip", folder / "out/deep")
    assert {path.name for path in folder.iterdir()} == {"a.zip", "out"} and len(list((folder / "out").iterdir())) == 1


def sounds() -> list[bytes]:
    samples, found = torch.sin(torch.arange(2000) / 9).numpy(), []
    for form, kind in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None), ("AIFF", "PCM_16")):
        target = io.BytesIO()
        soundfile.write(target, samples, 16000, format=form, subtype=kind)
        found.append(target.getvalue())
    for form in ("AU", "CAF", "RF64", "W64", "NIST", "SVX", "AVR", "SDS", "VOC", "PAF", "IRCAM", "WVE", "HTK", "MAT4"):
        target = io.BytesIO()
        try:
            soundfile.write(target, samples, 8000 if form == "WVE" else 16000, format=form)
        except (soundfile.LibsndfileError, ValueError):
            continue
        found.append(target.getvalue())
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(4000))
    return [*found, target.getvalue(), found[0] * 2, found[2] * 2]


@fuzzed
@given(st.sampled_from(sounds()), CHANGES)
def test_audio(sound, change):
    refused_or_read(decode_audio, changed(sound, change))


TABLE = "id,path,speaker,group,text,label,seconds,split\n" + "".join(
    f'{k},a.wav,s{k},g{k},"Hello, ""you""\n there",x,1.0,train\n' for k in range(3)
)


@fuzzed
@given(st.sampled_from([TABLE.encode(), TABLE.replace(",", ";").encode("utf-16"), b"path,speaker\na.wav,b\n"]), CHANGES)
def test_manifest(tmp_path_factory, table, change):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.wav").touch()
    file = folder / "manifest.csv"
    file.write_bytes(changed(table, change))
    refused_or_read(lambda: check_manifest(as_manifest(read_table(file), file).assign(seconds="1"), folder))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("checkpoint") / "state"
    save_checkpoint(file, {"run": 1}, {"round": 3, "rows": [0.25]}, {"w": torch.arange(6.0), "b": torch.ones(2, 2)})
    return file


@fuzzed
@given(CHANGES)
def test_checkpoint(checkpoint, change):
    content = checkpoint.read_bytes()
    broken = checkpoint.with_name("broken")
    broken.write_bytes(changed(content, change))
    expected = load_checkpoint(checkpoint, {"run": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            state, tensors = load_checkpoint(broken, {"run": 1})
        except FedexitError as error:
            assert "\n" not in str(error)
        else:  # no change that matters
            assert state == expected[0] and all(torch.equal(tensors[name], own) for name, own in expected[1].items())


@fuzzed
@given(CHANGES)
@example(([(0.3, 0, b"*" * 6)], [], None))
def test_nbs_ci(tmp_path_factory, change):
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    (root / "notebooks/01_a.ipynb").write_text("{}")
    profiles = {"smoke": {"minutes": 1, "limit": 2, "parameters": {"rounds": 3, "exits": [3, 12], "note": None}}}
    check = {"table": "tables/x.csv", "query": "value > 0 and method in ['a']", "min_rows": 1}
    entry = {"id": "01_a", "title": "t", "artifacts": ["tables/x.csv"], "checks": [check], "profiles": profiles}
    (root / "nbs_ci.yml").write_bytes(changed(yaml.safe_dump({"notebooks": [entry]}).encode(), change))
    refused_or_read(load_manifest, root)


@fuzzed
@given(st.text("[]{},:-&*!'\"#?|>@%<> \n\tab01e.", max_size=40))
@example("[" * 3000)
@example("? !!set {a, b}\n: !!timestamp x")
@example("!!binary é")
def test_yaml(text):
    refused_or_read(parse_yaml, text, "nbs_ci.yml")


PARTS = st.sampled_from(
    [
        "value",
        "@os",
        ".system",
        "(",
        ")",
        "[",
        "]",
        "'a'",
        "1",
        "*",
        "**",
        "%",
        "==",
        " in ",
        " and ",
        "not ",
        "`",
        "_",
    ]
)


@fuzzed
@given(st.lists(PARTS, max_size=9).map("".join))
@example("'a' * 999999999999")
@example("'%999999999d' % 5 == value")
@example("[0] * 999999999999 == value")
@example("(" * 5000 + "1" + ")" * 5000)
@example("not " * 20000 + "value")
@example("@os.system('touch ran')")
@example("value.__class__")
@example("1\0")
def test_queries_only_compare(project, capsys, query):
    """What the manifest accepts can be asked of a table without any effect but an answer or one line."""
    from fedexit.runner.checks import check_tables

    raw = yaml.safe_load((project.root / "nbs_ci.yml").read_text())
    raw["notebooks"][0]["checks"][0] = {"table": "tables/x.csv", "query": query}
    (project.root / "nbs_ci.yml").write_text(yaml.safe_dump(raw))
    (project.root / "tables").mkdir(exist_ok=True)
    (project.root / "tables/x.csv").write_text("value,a\n1,b\n")
    refused_or_read(lambda: check_tables(load_manifest(project.root)[0], project.root))
    project.save()


@fuzzed
@given(CHANGES)
def test_provenance(project, change):
    """A record that is damaged says so, and never stops `fedexit status`."""
    notebook = load_manifest(project.root)[0]
    record = {
        "artifacts": {"tables/x.csv": "0"},
        "fingerprint": {"parameters": {"rounds": 1}, "corpora": {}, "code": "0", "versions": {"torch": "2"}},
        "reads": {"cell": {"kept/a/b": {"checksum": "0", "code": "1"}}, "corpus": {}, "backbone": {}},
    }
    folder = project.result("01_first")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "provenance.json").write_bytes(changed(json.dumps(record).encode(), change))
    refused_or_read(lambda: state_of(notebook, "smoke", {"profile": "smoke"}))


FLEET_CSV = b"client,depth,examples,tier,device,data,key\nann,3,40,weak,phone,ANN1.DOG,ssh-rsa AAAA\nben,12,9,,,,\n"
FLEET_TOML = b'[[client]]\nclient = "ann"\ndepth = 3\nexamples = 40\nkey = "ssh-rsa AAAA"\n[[client]]\nclient = "ben"\n'


@fuzzed
@given(st.sampled_from([("csv", FLEET_CSV), ("csv", FLEET_CSV.replace(b",", b";")), ("toml", FLEET_TOML)]), CHANGES)
def test_fleet(tmp_path_factory, form, change):
    file = tmp_path_factory.mktemp("fleet") / f"fleet.{form[0]}"
    file.write_bytes(changed(form[1], change))
    refused_or_read(read_fleet, file)


WER = BY_NAME["wer"]
CASES_OF_WER = read_key(RECORDED)["wer"]
SUBMISSION = json.dumps(
    {"cells": [{"cell_type": "code", "source": ["def f():\n", " return 1"]}, {"cell_type": "markdown", "source": "x"}]}
).encode()
FORGED = [
    json.dumps({"outputs": [{"value": [1, 2.5, "x", {"a": -0.0}]}, {"error": "ValueError", "text": "no"}] * 3}),
    json.dumps({"outputs": [{"value": 0.25}] * len(CASES_OF_WER)}),
    '{"error": "KeyError", "text": "\\ud800 é"}',
    '{"missing": true}',
]


@fuzzed
@given(st.sampled_from([SUBMISSION, SUBMISSION.decode().encode("utf-16")]), CHANGES)
def test_submission(content, change):
    """No notebook stops the grading of the others: one that cannot be read has no cells."""
    cells = _cells_of(changed(content, change))
    assert all(isinstance(cell, str) for cell in cells)
    json.dumps(cells)


@fuzzed
@given(st.sampled_from(FORGED), CHANGES)
def test_results_of_a_submission(text, change):
    """A result that a submission forged is wrong, and its hint is one line."""
    forged = changed(text.encode(), change).decode("utf-8", "replace")
    verdict = _verdict(WER, {"end": "", "text": forged}, CASES_OF_WER)
    assert not verdict.right and 0 < len(verdict.hint) <= 300 and "\n" not in verdict.hint
