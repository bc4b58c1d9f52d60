"""Test that a run leaves published results alone, and every other file that git tracks, unless a result changed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_project import FIRST, fedexit, write_notebook

from fedexit.runner import publish as publishing
from fedexit.runner.manifest import load_manifest
from fedexit.support import files

ROOT = Path(__file__).parents[1]
PARAMETERS = 'profile = ""\nrounds = 0\nnote = ""\nmode = ""'
MEASURING = FIRST + 'run.table(pd.DataFrame({"seconds": [time.perf_counter()]}), "seconds")\n'


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def clone(project, capsys):
    """Return a committed project with published results; its first notebook also measures seconds."""
    shutil.copy(ROOT / ".gitignore", project.root)
    write_notebook(project.root / "notebooks/01_first.ipynb", PARAMETERS, MEASURING)
    project.limit = 5
    save(project)
    git(project.root, "init", "-q")
    code, _, err = fedexit(capsys, "run")
    assert code == 0, err
    commit(project)
    return project


def save(project, **parameters) -> None:
    """Save the list of notebooks with the measured table declared."""
    project.save(**parameters)
    listing = project.root / "nbs_ci.yml"
    declared = "  - tables/x.csv\n  - tables/seconds.csv\n  measured: [tables/seconds.csv]\n"
    listing.write_text(listing.read_text().replace("  - tables/x.csv\n", declared, 1))


def commit(project) -> None:
    git(project.root, "add", "-A")
    git(project.root, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "results")


def changed(project) -> list[str]:
    """Return the names of files that git calls changed or new."""
    return [line[3:] for line in git(project.root, "status", "--porcelain", "-uall").splitlines()]


def test_results_have_one_folder_per_notebook_and_no_time_of_the_machine(clone):
    names = {path.relative_to(clone.root).as_posix() for path in (clone.root / "results").rglob("*") if path.is_file()}
    tracked = {name for name in names if not name.startswith("results/.state/")}
    first = {f"results/01_first/{name}" for name in ("notebook.ipynb", "provenance.json", "tables/x.csv")}
    assert tracked >= first and {name.split("/")[1] for name in tracked} == {"01_first", "02_second"}
    record = json.loads((clone.root / "results/01_first/provenance.json").read_text())
    assert "seconds" not in record and "cpus" not in record["platform"]
    assert float((clone.root / "results/.state/default/01_first/seconds.txt").read_text()) > 0


def test_a_run_that_gives_the_published_results_changes_no_tracked_file(clone, capsys):
    shutil.rmtree(clone.root / "results/.state")  # as in a fresh clone
    _, out, _ = fedexit(capsys, "run")
    last = "results/.state/default/01_first/last"
    same = r"01_first: ran in \d+ s; tables bit-identical to the earlier ones; measured again: seconds"
    assert re.search(rf"{same} \(see {last}\)", out)
    assert out.rstrip().endswith("value\n   0.2\n   0.6")
    assert changed(clone) == []
    assert fedexit(capsys, "status")[1] == "01_first: up to date\n02_second: up to date\n"

    assert fedexit(capsys, "publish", "01_first")[0] == 0
    files = ("notebook.ipynb", "provenance.json", "tables/seconds.csv")  # the notebook shows the seconds
    assert changed(clone) == [f"results/01_first/{name}" for name in files]
    expected = "01_first: up to date\n02_second: to run (01_first/tables/seconds.csv changed)\n"
    assert fedexit(capsys, "status")[1] == expected
    code, _, err = fedexit(capsys, "publish", "01_first")
    assert code == 2 and "01_first: its last run here left nothing to publish" in err


def test_other_code_with_the_same_results_leaves_the_published_record(clone, capsys):
    """The record of the last run is compared with the present, until other results or another record come from git."""
    file = clone.root / "results/01_first/provenance.json"
    record = json.loads(file.read_text())
    record["fingerprint"]["modules"]["fedexit.runner.results"] = "hash of earlier code"
    file.write_text(json.dumps(record))
    shutil.rmtree(clone.root / "results/.state")
    commit(clone)
    assert "01_first: to run (module fedexit.runner.results changed)" in fedexit(capsys, "status")[1]
    fedexit(capsys, "run")
    assert changed(clone) == []
    assert "01_first: up to date" in fedexit(capsys, "status")[1]
    file.write_text(json.dumps(record, indent=1))  # git pull
    assert "01_first: to run (module fedexit.runner.results changed)" in fedexit(capsys, "status")[1]


def test_a_changed_result_replaces_the_published_one(clone, capsys):
    save(clone, rounds=2)
    commit(clone)
    _, out, _ = fedexit(capsys, "run", "01_first")
    assert "; tables changed: x; measured again: seconds\n" in out
    assert {name.split("/")[1] for name in changed(clone)} == {"01_first"}
    assert "results/01_first/tables/x.csv" in changed(clone)


def test_failed_and_interrupted_runs_change_no_tracked_file(clone, capsys):
    save(clone, mode="fail")
    commit(clone)
    assert fedexit(capsys, "run")[0] == 1
    assert (clone.root / "results/01_first.failed.ipynb").is_file() and changed(clone) == []
    save(clone, mode="sleep")
    commit(clone)
    process = subprocess.Popen([sys.executable, "-m", "fedexit", "run"], cwd=clone.root, stdout=subprocess.DEVNULL)
    waiting = (list(clone.root.glob("results/.state/default/01_first/checkpoints/*/tries")) for _ in range(600))
    keys = {path.parent.name for path in next(waiting)}  # of the run that failed
    while {path.parent.name for path in next(waiting)} == keys:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert changed(clone) == []


def copied(project, name: str) -> Path:
    return Path(shutil.copytree(project.root / "results/01_first", project.root / name))


def edited(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def test_what_counts_as_a_change(clone):
    first = load_manifest(clone.root)[0]
    published, out = clone.root / "results/01_first", copied(clone, "out")
    assert publishing.is_published(first, out, published)
    edited(out, "notebook.ipynb", "rounds 1", "rounds, on another machine: 1")  # an output
    edited(out, "provenance.json", '"fedexit.runner.results"', '"another_module"')
    assert publishing.is_published(first, out, published)
    edited(out, "notebook.ipynb", "A claim", "Another claim")
    assert not publishing.is_published(first, out, published)
    for name, old, new in (
        ("provenance.json", '"rounds": 1', '"rounds": 2'),
        ("tables/seconds.csv", "seconds", "edited by hand"),
    ):
        damaged = copied(clone, name.replace("/", "-"))
        edited(damaged, name, old, new)
        assert not publishing.is_published(first, published, damaged)
    for name, content in (("provenance.json", "[]"), ("left_over.csv", "x\n")):
        damaged = copied(clone, f"other-{name}")
        (damaged / name).write_text(content)
        assert not publishing.is_published(first, published, damaged)


def test_an_interrupt_between_two_renames_leaves_the_earlier_results(tmp_path, monkeypatch):
    """Systems that cannot exchange two folders need two renames."""
    new, final = (tmp_path / name for name in ("new", "final"))
    for folder in (new, final):
        folder.mkdir()
        (folder / "x").write_text(folder.name)
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        if source == new:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.swap(new, final)
    assert (final / "x").read_text() == "final" and (new / "x").is_file()
