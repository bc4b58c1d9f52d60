"""Test that nothing is lost: damage is noticed, one process works at a time, and a killed command can be restarted."""

import gzip
import json
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus
from test_frozen import keyword_clips
from test_published import CODE, ONE, keep

from fedexit import FedexitError, MultiExitModel, load_backbone
from fedexit.central.speech_pool import open_pool, open_speech
from fedexit.data import archives
from fedexit.data.archives import unpack
from fedexit.data.corpora import convert_folder, open_corpus
from fedexit.lab import kept
from fedexit.lab.cells import Measured
from fedexit.lab.kept import read_cell
from fedexit.model.features import freezer
from fedexit.support import files
from fedexit.support.arrays import record_file
from fedexit.support.cache import feature_files
from fedexit.support.checkpoints import (
    append_rows,
    load_checkpoint,
    owned_checkpoint,
    previous_file,
    read_rows,
    remove_checkpoint,
    rows_file,
    save_checkpoint,
)
from fedexit.support.errors import ending
from fedexit.support.files import new_folder, replacing, write_text
from fedexit.support.locks import owned, sweep
from fedexit.support.tensors import read_tensors, write_tensors

TESTS = Path(__file__).parent
FLIPS = int(os.environ.get("FLIPS", 60))  # of each file


def flips(file: Path):
    """Yield after each flip of a bit, evenly over the file; the file is as before in the end."""
    content = file.read_bytes()
    for place in np.unique(np.linspace(0, 8 * len(content) - 1, FLIPS).astype(int)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        yield place
    file.write_bytes(content)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(file: Path, rounds: int) -> dict:
    for number in range(1, rounds + 1):
        tensors = {"w": torch.arange(40.0) * number, "step": torch.tensor(number)}
        save_checkpoint(file, "run", {"round": number}, tensors)
    return tensors


def test_no_flipped_bit_of_a_checkpoint_is_silent(tmp_path):
    tensors = saved(tmp_path / "state", 1)
    for place in flips(tmp_path / "state"):
        with pytest.raises(FedexitError, match=r"^checkpoint state is damaged") as caught:
            load_checkpoint(tmp_path / "state", "run")
        assert "\n" not in str(caught.value), place
    assert equal(load_checkpoint(tmp_path / "state", "run")[1], tensors)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    file = tmp_path / "state"
    saved(file, 3)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="checkpoint state is damaged .*; resuming from the state before it"):
        assert load_checkpoint(file, "run")[0] == {"round": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(file, "run")[0] == {"round": 2}
    saved(file, 3)
    for own in (file, previous_file(file)):
        own.write_bytes(b"")
    with pytest.raises(FedexitError, match=r"^checkpoint state is damaged"):
        load_checkpoint(file, "run")
    saved(file, 2)
    file.write_bytes(b"")
    with pytest.raises(FedexitError, match=r"^checkpoint state is damaged"):
        load_checkpoint(file, "another run")
    remove_checkpoint(file)
    assert load_checkpoint(file, "run") is None and not list(tmp_path.iterdir())


def test_checkpoints_of_earlier_versions_are_read(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "state"
    saved(file, 1)
    tensors, texts = read_tensors(file)
    save_file(tensors, file, texts)
    rows_file(file).write_text('{"a": 1}\n')
    assert load_checkpoint(file, "run")[0] == {"round": 1} and read_rows(file, 9) == [{"a": 1}]
    save_file(tensors, file, {**texts, "identitz": "x"})
    with pytest.raises(FedexitError, match="damaged"):
        load_checkpoint(file, "run")


def test_no_flipped_bit_of_the_ledger_is_silent(tmp_path):
    file = tmp_path / "state"
    size = append_rows(file, [{"client": "ann", "loss": 0.5}, {"client": "ben", "loss": 0.25}], 0)
    for _ in flips(rows_file(file)):
        with pytest.raises(FedexitError, match=r"^checkpoint state is damaged"):
            read_rows(file, size)


def test_no_flipped_bit_of_a_saved_model_is_silent(tmp_path):
    model = MultiExitModel(load_backbone("nano").truncated(1), ["yes", "no"], [1])
    model.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        for place in flips(tmp_path / name):
            with pytest.raises(FedexitError, match="is not a multi-exit model") as caught:
                MultiExitModel.from_pretrained(tmp_path)
            assert "\n" not in str(caught.value), place
    model.save_heads(tmp_path / "heads")
    for _ in flips(tmp_path / "heads"):
        with pytest.raises(FedexitError, match="holds no heads"):
            model.load_heads(tmp_path / "heads")
    assert MultiExitModel.from_pretrained(tmp_path).checksum() == model.checksum()


def test_a_model_from_before_checksums_is_read(tmp_path):
    from safetensors.torch import save_file

    model = MultiExitModel(load_backbone("nano").truncated(1), ["yes", "no"], [1])
    model.save_pretrained(tmp_path)
    for header in (None, {"format": "pt"}):
        save_file(model.state_dict(), tmp_path / "model.safetensors", header)
        assert MultiExitModel.from_pretrained(tmp_path).checksum() == model.checksum()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "cache"


def test_damaged_features_and_pools_are_made_again(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "FLIPS", 3)
    folder = write_small_corpus(tmp_path / "own", clips=2)
    _, clips = keyword_clips(folder)
    backbone, speech = load_backbone("nano"), open_speech([str(folder)])
    expected = [freezer(clips, backbone)(clips)[place][0].clone() for place in range(len(clips))]
    (features,) = feature_files()
    whole = features.read_bytes()
    for file in (features, record_file(features)):
        for _ in flips(file):
            again = freezer(clips, backbone)(clips)
            assert features.read_bytes() == whole
            assert all(torch.equal(again[place][0], own) for place, own in enumerate(expected))
    pool = open_pool(speech, "train")
    whole = pool.file.read_bytes()
    for file in (pool.file, record_file(pool.file)):
        for _ in flips(file):
            assert np.array_equal(open_pool(speech, "train").lengths, pool.lengths)
            assert pool.file.read_bytes() == whole


def test_no_flipped_bit_of_a_kept_cell_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "present_code", lambda: CODE)
    monkeypatch.setattr(sys.modules[__name__], "FLIPS", FLIPS // 5)
    cell = ONE
    keep(tmp_path, cell)
    for file in sorted(file for file in tmp_path.rglob("*") if file.is_file()):
        for place in flips(file):
            try:
                found, verified = read_cell(file.parent, cell)
            except FedexitError as error:
                assert "\n" not in str(error) and "is damaged" in str(error)
            else:
                assert not verified, f"bit {place} of {file.name}"
                assert isinstance(found, Measured)


def test_a_kept_table_that_pandas_describes_in_two_lines_is_refused_in_one(tmp_path):
    keep(tmp_path, ONE)
    table = tmp_path / "key" / f"{ONE.name}.items.csv.gz"
    ragged = gzip.decompress(table.read_bytes()) + b"a,row,that,is,longer,than,the,header" + b"," * 20 + b"\n"
    table.write_bytes(gzip.compress(ragged))
    with pytest.raises(ValueError, match="\n"):
        pd.read_csv(table)
    with pytest.raises(
        FedexitError, match=r"\.items\.csv\.gz is damaged \(Error token.*\); delete it and run"
    ) as caught:
        read_cell(tmp_path / "key", ONE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", ["[" * 100_000, '{"cell":' * 100_000, "[1]", "", "\0"])
def test_an_entry_of_another_form_makes_a_kept_cell_unverified(tmp_path, monkeypatch, entry):
    monkeypatch.setattr(kept, "present_code", lambda: CODE)
    keep(tmp_path, ONE)
    assert read_cell(tmp_path / "key", ONE)[1]
    (tmp_path / "key" / f"{ONE.name}.json").write_text(entry)
    assert read_cell(tmp_path / "key", ONE)[1] is False


HOLD = """
import sys, time
from fedexit.support.locks import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """Hold the lock of the path `mine` by another process."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "mine"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield tmp_path / "mine"
        process.kill()


def test_a_second_process_gets_one_line(held):
    with pytest.raises(FedexitError, match=r"mine is in use by another process; wait for it or stop it$"), owned(held):
        pass
    with pytest.raises(FedexitError, match="in use by another process"), owned_checkpoint(held):
        pass
    write_small_corpus(held.parent / "own", clips=1)
    with pytest.raises(FedexitError, match="in use by another process"):
        convert_folder(held.parent / "own", held)
    assert not held.exists()


def test_a_conversion_does_not_replace_one_that_ended_meanwhile(tmp_path, monkeypatch):
    from fedexit.data import convert

    own = write_small_corpus(tmp_path / "own", clips=1)
    check = convert.check_groups

    def meanwhile(*arguments):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "theirs").touch()
        check(*arguments)

    monkeypatch.setattr(convert, "check_groups", meanwhile)
    with pytest.raises(FedexitError, match="already exists"):
        convert_folder(own, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["theirs"]


def test_leftovers_of_killed_processes_are_swept_and_others_stay(tmp_path):
    for name in (".out.abcd1234.part", ".out.b.abcd1234.part.b", "out.part", ".out.part"):
        (tmp_path / name).mkdir()
    (tmp_path / ".state.abcd1234.part").touch()
    with owned(tmp_path / "out"):
        pass
    assert {file.name for file in tmp_path.iterdir()} == {
        ".out.b.abcd1234.part.b", "out.part", ".out.part", ".state.abcd1234.part",
    }  # fmt: skip
    sweep(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"out.part", ".out.part"}


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
import torch
from fedexit.support import tensors

def half(content, path, **_):
    Path(path).with_name(".tmpQ7xY2a").write_bytes(b"half")  # the library's own temporary name
    os._exit(9)

tensors.save_file = half
tensors.write_tensors(sys.argv[1], {"w": torch.zeros(3)})
"""


def test_what_safetensors_leaves_of_a_killed_process_is_swept_but_not_a_file_of_the_user(tmp_path):
    saved(tmp_path / "state", 1)
    (tmp_path / ".tmpAbCdEf").write_text("mine")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, tmp_path / "state"])
    assert done.returncode == 9
    assert [file.read_bytes() for file in tmp_path.glob(".state.*/.tmpQ7xY2a")] == [b"half"]
    with owned_checkpoint(tmp_path / "state"):
        assert load_checkpoint(tmp_path / "state", "run")[0] == {"round": 1}
    assert {file.name for file in tmp_path.iterdir()} == {"state", ".tmpAbCdEf"}


@pytest.mark.parametrize("atomic", [True, False])
def test_a_new_folder_replaces_the_old_one_without_a_gap(tmp_path, monkeypatch, atomic):
    if not atomic:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for text in ("old", "new"):
        with new_folder(tmp_path / "out") as part:
            (part / "text").write_text(text)
    assert (tmp_path / "out/text").read_text() == "new" and [file.name for file in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out").rename(tmp_path / ".out.old_copy.part")  # killed between the two steps
    with owned(tmp_path / "out"):
        assert (tmp_path / "out/text").read_text() == "new"


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, call=call: (events.append(name), call(*given)))
    write_text(tmp_path / "a", "text")
    assert events == ["fsync", "replace", "fsync"]
    with pytest.raises(ValueError), replacing(tmp_path / "a") as part:
        part.write_text("other")
        raise ValueError
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "text")]


def test_an_error_of_the_system_names_the_file_and_not_a_temporary_one(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", 245 * "x"):  # the second is short enough, but not with the ending of a temporary name
        with pytest.raises(OSError) as caught:
            write_text(tmp_path / name, "text")
        assert caught.value.filename == str(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, target
    return made


BAD = {
    "link": entry("c/l", tarfile.SYMTYPE, target="/etc"),
    "hard link": entry("c/l", tarfile.LNKTYPE, target="c/a"),
    "device": entry("c/d", tarfile.CHRTYPE),
    "pipe": entry("c/p", tarfile.FIFOTYPE),
    "absolute": entry("/c/a"),
    "above": entry("c/../../a"),
    "windows": entry("c\\..\\..\\a"),
    "drive": entry("C:/a"),
}


@pytest.mark.parametrize("name", BAD)
def test_tars_hold_files_and_folders_inside_alone(tmp_path, name):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(entry("c", tarfile.DIRTYPE))
        archive.addfile(BAD[name])
    with pytest.raises(FedexitError, match=r"a\.tar: cannot be unpacked \(.*(link or device|leads out).*\); make it"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    with pytest.raises(FedexitError, match=r"a\.tar: cannot be unpacked"):
        open_corpus(tmp_path / "a.tar")
    assert {path.name for path in tmp_path.rglob("*")} <= {"a.tar", "out", "c", "data", "cache"}


def test_zips_hold_files_and_folders_inside_alone(tmp_path):
    for name, mode in (("../a", 0), ("/a", 0), ("l", 0o120777 << 16)):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            made = zipfile.ZipInfo(name)
            made.external_attr = mode
            archive.writestr(made, "x")
        with pytest.raises(FedexitError, match=r"a\.zip: cannot be unpacked"):
            unpack(tmp_path / "a.zip", tmp_path / "out")
    assert {path.name for path in tmp_path.rglob("*")} == {"a.zip", "out"}


@pytest.mark.parametrize("limit", ["MAX_MEMBERS", "MAX_BYTES"])
def test_archives_have_limits(tmp_path, monkeypatch, limit):
    (tmp_path / "c").mkdir()
    for name in ("a", "b"):
        (tmp_path / "c" / name).write_bytes(bytes(500))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "c", "c")
    unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    monkeypatch.setattr(archives, limit, {"MAX_MEMBERS": 2, "MAX_BYTES": 999}[limit])
    with pytest.raises(FedexitError, match=r"are the most\); free space, or get a smaller one"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")


def test_an_end_is_told_by_its_signal_or_exit_code():
    assert [ending(-9), ending(3), ending(-70), ending(None)] == [
        "killed by SIGKILL", "exit code 3", "killed by signal 70", "how it ended is unknown",
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the injector forks")
@pytest.mark.parametrize(("command", "step"), [("convert", 1), ("run", 1), ("federate", 4), ("pretrain", 23)])
def test_a_command_that_broke_anywhere_gives_the_same_bytes_when_restarted(tmp_path, command, step):
    """`python tests/fault_driver.py FOLDER 1 federate pretrain convert fetch run` breaks all at every event."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    script = [sys.executable, TESTS / "fault_driver.py", tmp_path, str(step), command]
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["kill"] for one in found] == [True, False]
    assert all(one["events"] > 5 and one["wrong"] == [] for one in found), found


def test_tensors_of_any_type_and_order_keep_their_checksum(tmp_path):
    tensors = {"b": torch.ones(2, 3).T, "a": torch.tensor(2), "c": torch.zeros(0), "d": torch.ones(2).bfloat16()}
    write_tensors(tmp_path / "one", tensors, {"x": "é", "y": ""})
    write_tensors(tmp_path / "two", dict(reversed(tensors.items())), {"y": "", "x": "é"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found, texts = read_tensors(tmp_path / "one")
    assert equal(found, tensors) and texts == {"x": "é", "y": ""}
