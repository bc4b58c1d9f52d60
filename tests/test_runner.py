"""The runner on a tiny project of two notebooks, the second reading a table of the first."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml

from fedexit.cli import main
from fedexit.runner import execution, fingerprint
from fedexit.runner import run as runner
from fedexit.runner.execution import _remove_volatile
from fedexit.runner.manifest import load_manifest

FIRST = """
import os, time
import pandas as pd
from fedexit.runner.results import Run
run = Run("01_first", profile)
counter = run.state("tries")
counter.write_text(f"{os.getpid()}")
if mode == "fail":
    unlucky = 1 / 0
if mode == "sleep":
    time.sleep(60)
if mode != "missing":
    run.table(pd.DataFrame({"value": [0.1 * rounds, 0.3]}), "x")
if mode == "undeclared":
    run.table(pd.DataFrame({"value": [1]}), "surplus")
print("rounds", rounds)
"""
SECOND = """
from fedexit.runner.results import Run
run = Run("02_second", profile)
run.table(run.read("01_first", "x") * 2, "y")
"""


def write_notebook(path: Path, parameters: str, code: str, text: str = "A claim") -> None:
    cells = [
        nbformat.v4.new_markdown_cell(text, id="claim"),
        nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code.strip(), id="body"),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


class Project:
    """A throwaway project that tests change by editing `parameters` and calling `save`."""

    def __init__(self, root: Path):
        self.root = root
        self.parameters = {"rounds": 1, "note": "a", "mode": "ok"}
        self.limit = 1
        (root / "notebooks").mkdir()
        parameters = 'profile = ""\nrounds = 0\nnote = ""\nmode = ""  # ok, fail, ...'
        write_notebook(root / "notebooks/01_first.ipynb", parameters, FIRST)
        write_notebook(root / "notebooks/02_second.ipynb", 'profile = ""', SECOND)
        self.save()

    def save(self, **parameters) -> None:
        self.parameters |= parameters
        first = {
            "id": "01_first",
            "title": "First",
            "artifacts": ["tables/x.csv"],
            "checks": [{"table": "tables/x.csv", "columns": ["value"], "query": "value > 0", "min_rows": 2}],
            "profiles": {"smoke": {"minutes": 0.1, "limit": self.limit, "parameters": self.parameters}},
        }
        second = {
            "id": "02_second",
            "title": "Second",
            "needs": ["01_first"],
            "artifacts": ["tables/y.csv"],
            "headline": "tables/y.csv",
            "profiles": {"smoke": {"minutes": 0.1, "limit": 1}},
        }
        (self.root / "nbs_ci.yml").write_text(yaml.safe_dump({"notebooks": [first, second]}))

    def result(self, name: str) -> Path:
        return self.root / "results/smoke" / name


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.setenv("FEDEXIT_ROOT", str(tmp_path))
    for name in ("FEDEXIT_RESULTS", "FEDEXIT_DATA", "FEDEXIT_OUT"):
        monkeypatch.delenv(name, raising=False)
    return Project(tmp_path)


def fedexit(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_only_what_changed_runs_and_says_why(project, capsys):
    code, out, _ = fedexit(capsys, "run", "--profile", "smoke")
    assert code == 0
    assert "[1/2] 01_first ... about 0.1 min (never run)" in out and "[2/2] 02_second" in out
    assert out.rstrip().endswith("value\n   0.2\n   0.6")  # the headline table, in full
    assert not (project.root / "results/.state/smoke/01_first/checkpoints").exists()

    first = project.root / "notebooks/01_first.ipynb"
    first.write_text(first.read_text().replace("A claim", "Another claim"))
    assert fedexit(capsys, "status", "--profile", "smoke")[1] == "01_first: up to date\n02_second: up to date\n"

    project.save(note="b")  # changes no table
    _, out, _ = fedexit(capsys, "status", "--profile", "smoke")
    assert "01_first: to run (parameter note: a -> b)" in out
    assert "02_second: up to date unless 01_first changes its tables" in out
    code, out, _ = fedexit(capsys, "run", "--profile", "smoke", "02_second")
    assert code == 0 and "[1/2] 01_first" in out and "02_second: up to date" in out

    project.result("01_first/tables/x.csv").write_text("value\n1.0\n")
    _, out, _ = fedexit(capsys, "status", "--profile", "smoke")
    assert "01_first: to run (tables/x.csv changed by hand)" in out
    assert "02_second: to run (01_first/tables/x.csv changed)" in out

    code, out, _ = fedexit(capsys, "run", "--profile", "smoke", "01_first", "-p", "rounds=2")
    assert code == 0 and "parameter rounds: 1 -> 2" in out and "02_second" not in out
    assert "02_second: to run (01_first/tables/x.csv changed)" in fedexit(capsys, "status", "--profile", "smoke")[1]


def test_forced_rerun_gives_the_same_bytes_and_no_machine_path(project, capsys):
    def contents() -> dict[str, bytes]:
        folder = project.result("01_first")
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "provenance.json"]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    fedexit(capsys, "run", "--profile", "smoke", "01_first")
    before, provenance = contents(), json.loads(project.result("01_first/provenance.json").read_text())
    code, out, _ = fedexit(capsys, "run", "--profile", "smoke", "01_first", "--force")
    after = json.loads(project.result("01_first/provenance.json").read_text())
    assert code == 0 and "(forced)" in out
    assert contents() == before and set(before) == {"notebook.ipynb", "tables/x.csv"}
    assert provenance | {"seconds": 0} == after | {"seconds": 0}
    assert provenance["fingerprint"]["modules"].keys() >= {"fedexit.runner.results"}
    assert provenance["artifacts"]["tables/x.csv"] == fingerprint.file_hash(project.result("01_first/tables/x.csv"))
    for content in (before["notebook.ipynb"], json.dumps(after).encode()):
        assert str(project.root).encode() not in content and sys.prefix.encode() not in content


def test_results_that_came_with_the_project_are_reproduced_and_compared(project, capsys):
    """A fresh clone holds committed results, but nothing was run in it."""
    fedexit(capsys, "run", "--profile", "smoke", "01_first")
    shutil.rmtree(project.root / "results/.state")
    came = "the results came with the project and were not run here"
    assert f"01_first: to run ({came})" in fedexit(capsys, "status", "--profile", "smoke")[1]
    _, out, _ = fedexit(capsys, "run", "--profile", "smoke", "01_first")
    assert re.search(r"01_first: ran in \d+ s; tables as before, to the byte", out)
    assert "01_first: up to date" in fedexit(capsys, "status", "--profile", "smoke")[1]
    _, out, _ = fedexit(capsys, "run", "--profile", "smoke", "01_first", "-p", "rounds=3")
    assert "tables changed: x" in out


def test_what_is_only_needed_is_taken_as_it_came(project, capsys):
    """A figure from committed tables must not cost the run that made the tables."""
    fedexit(capsys, "run", "--profile", "smoke")
    shutil.rmtree(project.root / "results/.state")
    _, out, _ = fedexit(capsys, "run", "--profile", "smoke", "02_second")
    assert "01_first: up to date" in out and "02_second: ran in" in out
    assert "01_first: ran in" in fedexit(capsys, "run", "--profile", "smoke")[1]


def test_recordings_are_not_stored(tmp_path):
    """Executed notebooks are committed; the speech in their players must not be."""
    cell = nbformat.v4.new_code_cell("listen")
    player = nbformat.v4.new_output("display_data", {"text/html": '<audio src="data:' + 'audio/wav;base64,UklGRg==">'})
    table = nbformat.v4.new_output("display_data", {"text/html": "<table></table>"})
    cell.outputs = [player, table]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    _remove_volatile(tmp_path / "n.ipynb")
    stored = (tmp_path / "n.ipynb").read_text()
    assert "audio/wav" not in stored and "recordings are not stored" in stored and "<table>" in stored


def test_failing_cell_is_shown_and_earlier_results_stay(project, capsys):
    fedexit(capsys, "run", "--profile", "smoke", "01_first")
    before = project.result("01_first/tables/x.csv").read_bytes()
    project.save(mode="fail")
    code, out, err = fedexit(capsys, "run", "--profile", "smoke")
    assert code == 1
    assert "unlucky = 1 / 0" in err and "papermill" not in err
    assert "fedexit: 01_first failed in cell In [3]: ZeroDivisionError: division by zero; the notebook is kept" in err
    assert "01_first: failed\n02_second: not run" in out
    assert project.result("01_first.failed.ipynb").is_file()
    assert project.result("01_first/tables/x.csv").read_bytes() == before
    project.save(mode="ok")
    assert "01_first: up to date" in fedexit(capsys, "status", "--profile", "smoke")[1]


@pytest.mark.parametrize(
    ("mode", "complaint"),
    [("missing", "did not write tables/x.csv"), ("undeclared", "wrote tables/surplus.csv; declare it")],
)
def test_artifacts_are_those_declared(project, capsys, mode, complaint):
    project.save(mode=mode)
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "01_first")
    assert code == 1 and complaint in err
    assert not project.result("01_first").exists()


def test_checks_hold_even_when_nothing_runs(project, capsys):
    project.save(rounds=-1)
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "01_first")
    assert code == 1 and "tables/x.csv has 1 rows where value > 0; its check wants at least 2" in err
    manifest = project.root / "nbs_ci.yml"
    manifest.write_text(manifest.read_text().replace("min_rows: 2", "max_rows: 0"))
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "01_first")
    assert code == 1 and "tables/x.csv has 1 rows where value > 0; its check wants 0 to 0" in err


def test_a_table_without_columns_is_one_message_and_keeps_the_earlier_results(project, capsys):
    assert fedexit(capsys, "run", "--profile", "smoke")[0] == 0
    source = SECOND.replace('run.read("01_first", "x") * 2', 'run.read("01_first", "x")[[]]')
    write_notebook(project.root / "notebooks/02_second.ipynb", 'profile = ""', source)
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "02_second")
    assert code == 1 and "02_second: tables/y.csv is no table (No columns to parse from file)" in err
    assert len(pd.read_csv(project.result("02_second/tables/y.csv"))) == 2


@pytest.mark.parametrize("content", ["[]", "null", '{"fingerprint": null, "artifacts": {}}'])
def test_a_provenance_that_is_none_is_damaged(project, capsys, content):
    project.result("01_first").mkdir(parents=True)
    (project.result("01_first") / "provenance.json").write_text(content)
    assert "01_first: to run (provenance.json is damaged)" in fedexit(capsys, "status", "--profile", "smoke")[1]


def test_time_limit_kills_the_kernel(project, capsys):
    project.limit = 0.06
    project.save(mode="sleep")
    begin = time.monotonic()
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "01_first")
    assert code == 1 and time.monotonic() - begin < 20
    assert "01_first took longer than its limit of 0.06 min; raise it in nbs_ci.yml" in err
    assert not [child for child in psutil.Process().children(recursive=True) if "ipykernel" in str(child.cmdline())]


def start_sleeping_run(project) -> tuple[subprocess.Popen, int]:
    """A runner whose kernel sleeps in the first notebook, and the kernel's process id."""
    command = [sys.executable, "-m", "fedexit", "run", "--profile", "smoke", "01_first"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=project.root)
    for _ in range(300):
        tries = list(project.root.glob("results/.state/smoke/01_first/checkpoints/*/tries"))
        if tries and tries[0].read_text():
            return process, int(tries[0].read_text())
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"the notebook did not start: {process.communicate()}")


def ended(pid: int) -> bool:
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_killed_runner_leaves_no_kernel_and_the_next_run_works(project, capsys):
    project.save(mode="sleep")
    process, kernel = start_sleeping_run(project)
    with pytest.raises(runner.FedexitError, match="being run by another process"):
        runner.run("smoke", [], {})
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ended(kernel)
    assert not project.result("01_first").exists()
    assert list(project.root.glob("results/.state/smoke/01_first/checkpoints/*/tries"))  # kept to resume from
    project.save(mode="ok")
    assert fedexit(capsys, "run", "--profile", "smoke", "01_first")[0] == 0


def test_interrupt_is_one_line_and_ends_the_kernel(project):
    project.save(mode="sleep")
    process, kernel = start_sleeping_run(project)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "fedexit: interrupted; run the same command again, it resumes\n"
    assert ended(kernel)


def test_an_interrupt_that_the_event_loop_loses_still_ends_the_run(project, monkeypatch):
    """As nbclient may: the exception is swallowed, the cell is waited for, and a kernel that is gone is an error."""

    def lossy(*_, **__):
        kernel = subprocess.Popen(["sleep", "60"])
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert kernel.wait(timeout=10) == -signal.SIGKILL
        raise RuntimeError("Kernel died")

    monkeypatch.setattr("papermill.execute_notebook", lossy)
    notebook = load_manifest(project.root)[0]
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        execution.execute(notebook, {}, project.root / "executed.ipynb", {}, minutes=1)
    assert signal.getsignal(signal.SIGINT) is usual


def test_mistakes_are_said_before_anything_starts(project, capsys):
    cases = {
        ("03_third",): "unknown notebook 03_third; nbs_ci.yml has: 01_first, 02_second",
        (
            "01_first",
            "-p",
            "round=2",
        ): "01_first: unknown parameter round; its cell tagged parameters sets: mode, note,",
        ("-p", "rounds=2"): "-p needs the notebook it is for",
        ("--profile", "huge"): "unknown profile huge; nbs_ci.yml has: smoke",
    }
    for arguments, complaint in cases.items():
        code, out, err = fedexit(capsys, "run", "--profile", "smoke", *arguments)
        assert (code, out) == (2, "") and complaint in err and err.count("\n") == 1, arguments
    assert not os.path.exists(project.result("01_first"))


def test_missing_corpus_is_said_before_anything_starts(project, capsys, monkeypatch):
    def missing(name: str) -> str:
        raise fingerprint.FedexitError(f"corpus {name} is not here; fetch it")

    monkeypatch.setattr(fingerprint, "corpus_checksum", missing)
    listing = project.root / "nbs_ci.yml"
    listing.write_text(listing.read_text().replace("  headline:", "  data: [queen]\n  headline:"))
    code, out, err = fedexit(capsys, "run", "--profile", "smoke")
    assert (code, out, err) == (2, "", "fedexit: corpus queen is not here; fetch it\n")
    assert (
        "02_second: to run (corpus queen is not here; fetch it)" in fedexit(capsys, "status", "--profile", "smoke")[1]
    )


def test_broken_notebook_is_said_before_anything_starts(project, capsys):
    (project.root / "notebooks/02_second.ipynb").write_text("<<<<<<< HEAD")
    code, out, err = fedexit(capsys, "run", "--profile", "smoke")
    assert (code, out) == (2, "") and "02_second.ipynb is not a notebook" in err
    write_notebook(project.root / "notebooks/02_second.ipynb", "rounds = 0", SECOND)
    assert "02_second: unknown parameter profile" in fedexit(capsys, "run", "--profile", "smoke")[2]
