"""Break each command at every write, flush and rename, restart it, and compare the files; a script for subprocesses.

`python fault_driver.py FOLDER COMMAND ...` prints one JSON line per command. Every attempt runs in a fork of a process
that has imported everything and trained nothing, because torch cannot train in a fork of a process that has.
"""

import errno
import json
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import small_releases
import torch
from small_corpus import write_small_corpus
from small_project import Project

from fedexit import Client, MultiExitModel, federate, load_backbone
from fedexit.central.masked_prediction import pretrain
from fedexit.central.pretraining import pretraining_settings
from fedexit.data import corpora
from fedexit.federated.clients import LocalTraining
from fedexit.runner import run as runner
from fedexit.support import checkpoints, files, tensors
from fedexit.support.errors import FedexitError

FINISHED, REFUSED, RAW, SURVIVED, KILLED = 0, 3, 4, 5, 137


class Faults:
    """Count events; break at number `at` by an error of the system, or by death in the middle of the write."""

    def __init__(self, at: int, kill: bool):
        self.at, self.kill, self.count = at, kill, 0

    def due(self) -> bool:
        self.count += 1
        return self.count == self.at

    def around(self, function, half=None):
        def called(*arguments, **named):
            if not self.due():
                return function(*arguments, **named)
            if half:
                half(*arguments, **named)
            if self.kill:
                os._exit(KILLED)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        return called

    def opened(self, *arguments, **named):
        file = open(*arguments, **named)  # noqa: SIM115 (the caller closes it)
        if file.writable():
            write = file.write
            proxy = type("Proxy", (), {"__getattr__": lambda _, name: getattr(file, name)})()
            proxy.write = self.around(write, lambda data: (write(data[: len(data) // 2]), file.flush()))
            proxy_type = type(proxy)
            proxy_type.__enter__, proxy_type.__exit__ = lambda own: own, lambda own, *_: file.close()
            return proxy
        return file


def half_bytes(path, content):
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])


def half_tensors(content, path, **_):
    """Write as safetensors does: to a file of its own beside `path`, which takes that name in the end."""
    half_bytes(Path(path).with_name(".tmpQ7xY2a"), bytes(range(200)))


def with_faults(faults: Faults, action, folder: Path) -> None:
    wrapped = [(os, name) for name in ("fsync", "sync", "replace", "rename", "link", "unlink")]
    wrapped += [(tempfile, "mkstemp"), (tempfile, "mkdtemp"), (files, "_exchange")]
    patches = [patch.object(owner, name, faults.around(getattr(owner, name))) for owner, name in wrapped]
    patches.append(patch.object(pathlib.Path, "write_bytes", whole_path_write(faults)))
    patches.append(patch.object(tensors, "save_file", faults.around(tensors.save_file, half_tensors)))
    patches.append(patch.object(checkpoints, "open", faults.opened, create=True))
    for one in patches:
        one.start()
    action(folder)
    os._exit(SURVIVED if faults.count >= faults.at else FINISHED)


def whole_path_write(faults: Faults):
    write = pathlib.Path.write_bytes
    called = faults.around(write, half_bytes)
    return lambda path, content: called(path, content)


def forked(work) -> int:
    """Run `work` in a fork and return how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        warnings.simplefilter("ignore")
        work()
    except (FedexitError, OSError) as error:
        os._exit(REFUSED if "\n" not in str(error) else RAW)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(RAW)
    os._exit(FINISHED)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def tones(count: int) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1600, generator=generator), place % 2) for place in range(count)]


def run_federate(folder: Path) -> None:
    model = MultiExitModel(load_backbone("nano").truncated(3), ["a", "b"], [1, 3])
    clients = [Client(name, tones(2), depth) for name, depth in (("ann", 1), ("ben", 3))]
    found = federate(model, clients, rounds=2, dev=tones(2), training=LocalTraining(), checkpoint=folder / "out/state")
    write = [found.model.checksum(), found.table.to_csv(), found.clients.to_csv()]
    (folder / "out/result").write_text("\n".join(write))


def run_pretrain(folder: Path) -> None:
    given = {"corpora": [str(folder / "own")], "backbone": "nano", "codebooks": ["mfcc:2:1"], "updates": 2}
    given |= {"seconds": 1.0, "log_every": 1, "dev_every": 2}
    pretrain(pretraining_settings(given), folder / "out", checkpoint_every=1)


def run_convert(folder: Path) -> None:
    if not (folder / "out").exists():
        corpora.convert_folder(folder / "own/clips", folder / "out", say=lambda line: None)


def run_fetch(folder: Path) -> None:
    corpora.fetch_corpus("librispeech", folder / "release.tar", say=lambda line: None)


def run_notebook(folder: Path) -> None:
    if not runner.run("smoke", ["01_first"], {}):
        raise FedexitError("the notebook failed")


def executed(notebook, parameters, target, environment, minutes, bar=True):
    shutil.copyfile(notebook.path, target)
    table = Path(environment["FEDEXIT_OUT"]) / "tables" / "x.csv"
    files.write_text(table, pd.DataFrame({"value": [0.5, 0.3]}).to_csv(index=False))


def prepared(command: str, folder: Path) -> None:
    folder.mkdir()
    if command in ("pretrain", "convert"):
        write_small_corpus(folder / "own", clips=1)
    if command == "convert":  # two files have the same kinds of events as many
        for file in sorted((folder / "own/clips").iterdir())[2:]:
            file.unlink()
    if command == "fetch":
        with tarfile.open(folder / "release.tar", "w") as archive:
            archive.add(small_releases.librispeech(folder / "release"), "LibriSpeech")
    if command == "run":
        Project(folder)
    os.environ["FEDEXIT_ROOT"], os.environ["FEDEXIT_DATA"] = str(folder), str(folder / "data")
    (folder / "data").mkdir(exist_ok=True)


ACTIONS = {
    "federate": (run_federate, "out"),
    "pretrain": (run_pretrain, "out"),
    "convert": (run_convert, "out"),
    "fetch": (run_fetch, "data/cache"),
    "run": (run_notebook, "results"),
}
LEFT = (".lock", "lock", "hashes-")  # files that may stay, or that hold times


def kept(folder: Path, result: str) -> dict[str, bytes]:
    return {name: own for name, own in content(folder / result).items() if not any(part in name for part in LEFT)}


def broken_everywhere(command: str, folder: Path, kill: bool, step: int) -> dict:
    """Break `command` at every `step`-th event; return counts, and the events after which a restart differs."""
    action, result = ACTIONS[command]
    wrong, ends, at = [], {}, 1
    prepared(command, folder / "start")
    whole = folder / "whole"
    fresh(folder, command)
    assert forked(lambda: action(folder / "work")) == FINISHED
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(folder / "work", whole, symlinks=True)
    expected = kept(whole, result)
    while True:
        fresh(folder, command)
        end = forked(lambda at=at: with_faults(Faults(at, kill), action, folder / "work"))
        ends[end] = ends.get(end, 0) + 1
        again = forked(lambda: action(folder / "work"))
        if again != FINISHED or kept(folder / "work", result) != expected or end == RAW:
            found = kept(folder / "work", result)
            different = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
            wrong.append({"event": at, "end": end, "again": again, "different": different[:5]})
        if end == FINISHED:
            return {"command": command, "kill": kill, "events": at - 1, "ends": ends, "wrong": wrong}
        at += step


def fresh(folder: Path, command: str) -> None:
    shutil.rmtree(folder / "work", ignore_errors=True)
    shutil.copytree(folder / "start", folder / "work", symlinks=True)
    os.environ["FEDEXIT_ROOT"], os.environ["FEDEXIT_DATA"] = str(folder / "work"), str(folder / "work/data")


def main(folder: Path, step: int, commands: list[str]) -> None:
    torch.set_num_threads(1)
    time.perf_counter = time.monotonic = lambda: 0.0
    runner.execute = executed
    runner.known_parameters = lambda notebook: ["profile", "rounds", "note", "mode"]
    for command in commands:
        for kill in (True, False):
            own = folder / f"{command}-{kill}"
            own.mkdir()
            with open(os.devnull, "w") as silent:
                sys.stdout, shown = silent, sys.stdout
                found = broken_everywhere(command, own, kill, step)
                sys.stdout = shown
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
