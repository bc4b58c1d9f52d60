"""Test the runner on a tiny project of two notebooks; the second reads a table of the first."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from PIL import Image
from small_project import FIRST, SECOND, Project, fedexit, write_notebook

from fedexit.data.places import corpus_checksum
from fedexit.runner import execution, fingerprint, provenance
from fedexit.runner import run as runner
from fedexit.runner.execution import MAX_LINE, MAX_PRINTED, _remove_volatile, add_printed
from fedexit.runner.manifest import load_manifest
from fedexit.runner.yaml_text import parse_yaml
from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash
from fedexit.support.reads import note_read


def test_only_changed_notebooks_run_and_the_reason_is_printed(project, capsys):
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


def test_a_forced_rerun_is_bit_identical_and_contains_no_machine_path(project, capsys):
    def contents() -> dict[str, bytes]:
        folder = project.result("01_first")
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "provenance.json"]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    fedexit(capsys, "run", "--profile", "smoke", "01_first")
    before, record = contents(), json.loads(project.result("01_first/provenance.json").read_text())
    code, out, _ = fedexit(capsys, "run", "--profile", "smoke", "01_first", "--force")
    after = json.loads(project.result("01_first/provenance.json").read_text())
    assert code == 0 and "(forced)" in out
    assert contents() == before and set(before) == {"notebook.ipynb", "tables/x.csv"}
    assert record == after and "seconds" not in record
    assert record["fingerprint"]["modules"].keys() >= {"fedexit.runner.results"}
    assert record["artifacts"]["tables/x.csv"] == file_hash(project.result("01_first/tables/x.csv"))
    for content in (before["notebook.ipynb"], json.dumps(after).encode()):
        assert str(project.root).encode() not in content and sys.prefix.encode() not in content


def test_results_that_came_with_the_project_are_reproduced_and_compared(project, capsys):
    """A fresh clone holds committed results, but nothing was run in it."""
    fedexit(capsys, "run", "--profile", "smoke", "01_first")
    shutil.rmtree(project.root / "results/.state")
    came = "the results came with the project and were not run here"
    assert f"01_first: to run ({came})" in fedexit(capsys, "status", "--profile", "smoke")[1]
    _, out, _ = fedexit(capsys, "run", "--profile", "smoke", "01_first")
    assert re.search(r"01_first: ran in \d+ s; tables bit-identical to the earlier ones", out)
    assert "01_first: up to date" in fedexit(capsys, "status", "--profile", "smoke")[1]
    _, out, _ = fedexit(capsys, "run", "--profile", "smoke", "01_first", "-p", "rounds=3")
    assert "tables changed: x" in out


def test_a_needed_notebook_is_not_run_if_its_results_came_with_the_project(project, capsys):
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


def test_checks_are_made_even_if_nothing_runs(project, capsys):
    project.save(rounds=-1)
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "01_first")
    assert code == 1 and "tables/x.csv has 1 rows where value > 0; its check requires at least 2" in err
    manifest = project.root / "nbs_ci.yml"
    manifest.write_text(manifest.read_text().replace("min_rows: 2", "max_rows: 0"))
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "01_first")
    assert code == 1 and "tables/x.csv has 1 rows where value > 0; its check requires 0 to 0" in err


def test_a_table_without_columns_is_one_message_and_keeps_the_earlier_results(project, capsys):
    assert fedexit(capsys, "run", "--profile", "smoke")[0] == 0
    source = SECOND.replace('run.read("01_first", "x") * 2', 'run.read("01_first", "x")[[]]')
    write_notebook(project.root / "notebooks/02_second.ipynb", 'profile = ""', source)
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "02_second")
    assert code == 1 and "02_second: tables/y.csv is no table (No columns to parse from file)" in err
    assert len(pd.read_csv(project.result("02_second/tables/y.csv"))) == 2


@pytest.mark.parametrize("content", ["[]", "null", "[" * 100_000, '{"fingerprint": null, "artifacts": {}}'])
def test_an_unreadable_provenance_counts_as_damaged(project, capsys, content):
    project.result("01_first").mkdir(parents=True)
    (project.result("01_first") / "provenance.json").write_text(content)
    assert "01_first: to run (provenance.json is damaged)" in fedexit(capsys, "status", "--profile", "smoke")[1]


def test_an_edit_of_an_own_corpus_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.wav").write_bytes(b"one")
    (tmp_path / "mine/manifest.csv").write_text("path,speaker\na.wav,ann\n")
    read = {name: {"checksum": corpus_checksum(tmp_path / "mine"), "code": ""} for name in ("mine", "queen")}
    assert provenance._corpora_compared(read, tmp_path) == []
    (tmp_path / "mine/a.wav").write_bytes(b"two")
    assert provenance._corpora_compared(read, tmp_path) == ["corpus mine changed"]
    (tmp_path / "mine/manifest.csv").unlink()
    assert provenance._corpora_compared(read, tmp_path) == ["corpus mine is gone"]


def test_a_provenance_that_cannot_be_read_is_damaged(project, capsys):
    (project.result("01_first") / "provenance.json").mkdir(parents=True)
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
    """Start a runner whose kernel sleeps in the first notebook; return it and the kernel's process id."""
    command = [sys.executable, "-m", "fedexit", "run", "--profile", "smoke", "01_first"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=project.root)
    for _ in range(3000):
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
    with pytest.raises(FedexitError, match="being run by another process"):
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
    assert err == "fedexit: interrupted; run the command again to resume\n"
    assert ended(kernel)


def test_an_interrupt_that_the_event_loop_loses_still_ends_the_run(project, monkeypatch):
    """Do as nbclient may do: swallow the exception, wait for the cell, and fail when the kernel is gone."""

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


def test_mistakes_are_reported_before_anything_starts(project, capsys):
    cases = {
        ("03_third",): "unknown notebook 03_third; nbs_ci.yml has: 01_first, 02_second",
        (
            "01_first",
            "-p",
            "round=2",
        ): "01_first: unknown parameter round; its cell tagged parameters sets: mode, note,",
        ("-p", "rounds=2"): "-p needs a notebook",
        ("01_first", "-p", "rounds=x"): "01_first: -p rounds is 'x' (text); give a value like 0 (whole number)",
        ("01_first", "-p", "rounds=nan"): "01_first: -p rounds is 'nan' (text); give a value like 0 (whole number)",
        ("01_first", "-p", "rounds=true"): "-p rounds is True (true or false); give a value like 0 (whole number)",
        ("01_first", "-p", "rounds=[1]"): "-p rounds is [1] (list); give a value like 0 (whole number)",
        ("01_first", "-p", "rounds="): "-p rounds is None (null, no value); give a value like 0 (whole number)",
        ("01_first", "-p", "note=3"): "-p note is 3 (number); give a value like '' (text)",
        ("--profile", "huge"): "unknown profile huge; nbs_ci.yml has: default, smoke",
    }
    for arguments, complaint in cases.items():
        code, out, err = fedexit(capsys, "run", "--profile", "smoke", *arguments)
        assert (code, out) == (2, "") and complaint in err and err.count("\n") == 1, arguments
    assert not os.path.exists(project.result("01_first"))


@pytest.mark.parametrize(
    ("cell", "profile", "text", "says"),
    [
        ("rounds = [3, 6]", [3], "rounds=[3, x]", "-p rounds is [3, 'x'] (list); give a value like [3, 6] (list)"),
        ("rounds = [3, 6]", [3], "rounds=3", "-p rounds is 3 (number); give a value like [3, 6] (list)"),
        ("rounds = {'a': 1}", None, "rounds=[]", "-p rounds is [] (list); give a value like {'a': 1} (mapping)"),
        ("rounds = 3", None, "rounds=x", "-p rounds is 'x' (text); give a value like 3 (whole number)"),
        ("rounds = 3", None, "rounds=1e9", "-p rounds is 1000000000.0 (number); give a value like 3 (whole number)"),
        ("rounds = 3", 1.5, "rounds=0.5", ""),
        ("rounds = 3", None, "rounds=", ""),  # a profile gives no value, so it is allowed
        ("rounds = []", [], "rounds=[3, x]", ""),  # no part is known
        ("rounds = 2 * 3", None, "rounds=x", ""),  # no value is known
        ("rounds = 1.5", 2, "rounds=1", ""),
    ],
)
def test_a_parameter_of_another_kind_is_refused(cell, profile, text, says, project):
    write_notebook(project.root / "notebooks/01_first.ipynb", f'profile = ""\nmode = ""\nnote = ""\n{cell}', "1")
    project.save(rounds=profile)
    given = {"rounds": parse_yaml(text.partition("=")[2], text)}
    if says:
        with pytest.raises(FedexitError, match=f"^{re.escape(f'01_first: {says}')}$"):
            runner.check_kinds("smoke", ["01_first"], given)
    runner.check_kinds("smoke", ["02_second"] if says else ["01_first"], given)


def test_a_missing_corpus_is_reported_before_anything_starts(project, capsys, monkeypatch):
    def missing(name: str) -> str:
        raise FedexitError(f"corpus {name} is not here; fetch it")

    monkeypatch.setattr(fingerprint, "corpus_checksum", missing)
    listing = project.root / "nbs_ci.yml"
    listing.write_text(listing.read_text().replace("  headline:", "  data: [queen]\n  headline:"))
    code, out, err = fedexit(capsys, "run", "--profile", "smoke")
    assert (code, out, err) == (2, "", "fedexit: corpus queen is not here; fetch it\n")
    assert (
        "02_second: to run (corpus queen is not here; fetch it)" in fedexit(capsys, "status", "--profile", "smoke")[1]
    )


def test_a_broken_notebook_is_reported_before_anything_starts(project, capsys):
    (project.root / "notebooks/02_second.ipynb").write_text("<<<<<<< HEAD")
    code, out, err = fedexit(capsys, "run", "--profile", "smoke")
    assert (code, out) == (2, "") and "02_second: the file is not a notebook" in err
    write_notebook(project.root / "notebooks/02_second.ipynb", "rounds = 0", SECOND)
    assert "02_second: unknown parameter profile" in fedexit(capsys, "run", "--profile", "smoke")[2]


READING = """
from fedexit.support.reads import note_read
for kind, name in [("backbone", "own"), ("backbone", "hub/name"), ("corpus", f"{run_folder}/x"), ("cell", ".state/x")]:
    note_read(kind, name, "c")
"""


def store(project, *reads: tuple) -> None:
    """Store results of the second notebook as if its run had noted `reads`: (kind, name, checksum, code)."""
    second = load_manifest(project.root)[1]
    notes, folder = project.root / "reads.jsonl", project.result("02_second")
    keys = ("kind", "name", "checksum", "code")
    notes.write_text("".join(json.dumps(dict(zip(keys, read, strict=True))) + "\n" for read in reads))
    found = provenance.recorded_reads(notes)
    for name in ("notebook.ipynb", "tables/y.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("value\n1\n")
    parts = fingerprint.components(second, "smoke", {"profile": "smoke"}, project.root / "results/smoke")
    provenance.write(second, "smoke", parts, found, folder)
    provenance.mark_as_run_here(second, "smoke")


@pytest.mark.parametrize(("kind", "name", "section"), [("corpus", "emodb", "data"), ("backbone", "own", "backbones")])
def test_a_notebook_must_declare_its_inputs(project, monkeypatch, kind, name, section):
    (project.root / "data/backbones/own").mkdir(parents=True)
    (project.root / "data/backbones/own/config.json").write_text("{}")
    second = load_manifest(project.root)[1]
    monkeypatch.setenv("FEDEXIT_UNDECLARED", json.dumps(provenance.undeclared(second, "smoke")))
    complaint = f"02_second reads the {kind} {name}, which nbs_ci.yml does not declare; add {name} to {section} of the"
    with pytest.raises(FedexitError, match=complaint):
        note_read(kind, name, "c")
    note_read(kind, "my_folder", "c")
    note_read("cell", name, "c")


def test_a_run_stores_what_it_read_except_what_it_made_for_itself(project, capsys):
    (project.root / "data/backbones/own").mkdir(parents=True)
    (project.root / "data/backbones/own/config.json").write_text("{}")
    code = f"run_folder = {str(project.root / 'results/.state')!r}\n" + READING + SECOND
    write_notebook(project.root / "notebooks/02_second.ipynb", 'profile = ""', code)
    code, _, err = fedexit(capsys, "run", "--profile", "smoke", "02_second")
    assert code == 1 and "FedexitError: 02_second reads the backbone own, which nbs_ci.yml does not declare" in err
    assert not project.result("02_second").exists() and project.result("02_second.failed.ipynb").is_file()
    listing = project.root / "nbs_ci.yml"
    listing.write_text(listing.read_text().replace("  headline:", "  backbones: [own]\n  headline:"))
    assert fedexit(capsys, "run", "--profile", "smoke", "02_second")[0] == 0
    record = json.loads(project.result("02_second/provenance.json").read_text())
    noted = {name: {"checksum": "c", "code": ""} for name in ("own", "hub/name")}
    assert record["reads"] == {"backbone": noted, "cell": {}, "corpus": {}}
    assert set(record["fingerprint"]["versions"]) == set(fingerprint.VERSIONS)
    assert {"scipy", "pandas", "peft", "flashlight-text", "soundfile", "jiwer"} <= set(fingerprint.VERSIONS)
    assert "02_second: up to date" in fedexit(capsys, "status", "--profile", "smoke")[1]


def test_kept_cells_of_other_or_unknown_code_are_unverified(project, capsys):
    cells = project.root / "results/kept/smoke"
    cells.mkdir(parents=True)
    for name in ("a.errors.csv.gz", "a.json", "a.5.json", "b.json", "c"):
        (cells / name).write_text(name)
    now = fingerprint.code_hash(provenance.CELLS_CODE)
    a, b, c = (("cell", f"kept/smoke/{name}", "as its maker hashes it") for name in ("a", "b", "c"))

    def status() -> str:
        return fedexit(capsys, "status", "--profile", "smoke")[1].splitlines()[1]

    store(project, (*a, now), (*b, now))
    (cells / "a.5.json").write_text("another cell")
    assert status() == "02_second: up to date unless 01_first changes its tables"
    store(project, (*a, now), (*b, ""), (*c, "other"))
    assert status() == (
        "02_second: unverified (1 of 3 kept cells were made by unknown code (kept/smoke/b); "
        "1 of 3 kept cells were made by other code than the present (kept/smoke/c))"
    )
    (cells / "a.errors.csv.gz").write_text("changed")
    (cells / "b.json").unlink()
    assert status().startswith(
        "02_second: to run (1 of 3 kept cells changed (kept/smoke/a); "
        "1 of 3 kept cells are gone (kept/smoke/b); 1 of 3 kept cells were made by unknown code"
    )


def test_results_from_before_reads_were_recorded_are_unverified(project, capsys):
    fedexit(capsys, "run", "--profile", "smoke", "01_first")
    file = project.result("01_first/provenance.json")
    record = json.loads(file.read_text())
    del record["reads"]
    file.write_text(json.dumps(record))
    _, out, _ = fedexit(capsys, "status", "--profile", "smoke")
    assert "01_first: unverified (made before fedexit recorded what a notebook reads; run it again)" in out
    _, out, _ = fedexit(capsys, "run", "--profile", "smoke", "02_second")
    assert "01_first: up to date" not in out and "01_first: used as it is, unverified" in out
    assert "01_first: ran in" in fedexit(capsys, "run", "--profile", "smoke", "01_first")[1]
    assert "01_first: up to date" in fedexit(capsys, "status", "--profile", "smoke")[1]


def test_speed_options_do_not_make_results_out_of_date(project, capsys):
    first = project.root / "notebooks/01_first.ipynb"
    first.write_text(first.read_text().replace('mode = \\"\\"', 'workers = 1\\nmode = \\"\\"'))
    project.save(workers=2)
    assert fedexit(capsys, "run", "--profile", "smoke", "01_first")[0] == 0
    project.save(workers=4)
    first.write_text(first.read_text().replace("workers = 1", "workers = 8"))
    assert "01_first: up to date" in fedexit(capsys, "status", "--profile", "smoke")[1]
    project.save(rounds=2)
    assert "01_first: to run (parameter rounds: 1 -> 2)" in fedexit(capsys, "status", "--profile", "smoke")[1]


def test_given_parameters_are_printed_as_they_were_read(project, capsys):
    given = ("-p", "note=010", "-p", "rounds=3", "-p", "mode=no")
    _, out, _ = fedexit(capsys, "run", "--profile", "smoke", "01_first", *given)
    assert out.startswith("note = '010' (text)\nrounds = 3 (number)\nmode = 'no' (text)\n[1/1] 01_first")


@pytest.mark.parametrize(
    ("printed", "stored"),
    [
        (["a\n", "b\n"], "a\nb\n"),
        (["10 %\r", "20 %\r", "done\n"], "done\n"),
        (["10 %", "\r20 %", "\n", "30 %\r"], "20 %\n30 %\r"),
        (["a\r\nb"], "a\r\nb"),
        (["x" * MAX_LINE], "x" * MAX_LINE),
        (["x" * MAX_LINE, "yyy\n", "next"], "x" * MAX_LINE + execution._LINE_CUT + "\nnext"),
        (["x" * 50_000_000], "x" * MAX_LINE + execution._LINE_CUT),
        (["line\n" * 50_000] * 3 + ["more"], ("line\n" * 50_000)[:MAX_PRINTED] + execution._OUTPUT_CUT),
        (["\x00\x1b[31mred\x07\x08"], "\x00\x1b[31mred\x07\x08"),
    ],
)
def test_printed_text_is_stored_up_to_a_limit(printed, stored):
    outputs = []
    for text in printed:
        add_printed(outputs, "stdout", text)
    assert [output["text"] for output in outputs] == [stored]


def test_a_long_progress_loop_keeps_its_end():
    outputs = []
    for step in range(30_000):
        add_printed(outputs, "stderr", f"\rstep {step}")
    add_printed(outputs, "stdout", "done")
    assert [output["text"] for output in outputs] == ["done", "step 29999"]


def test_a_long_line_and_braces_in_the_path_are_handled(tmp_path, monkeypatch, capsys):
    odd = tmp_path / "{x} $HOME 100% 'é"
    odd.mkdir()
    monkeypatch.setenv("FEDEXIT_ROOT", str(odd))
    for name in ("FEDEXIT_RESULTS", "FEDEXIT_DATA", "FEDEXIT_OUT"):
        monkeypatch.delenv(name, raising=False)
    project = Project(odd)
    code = FIRST + "print('x' * 2_000_000)\n"
    write_notebook(odd / "notebooks/01_first.ipynb", 'profile = ""\nrounds = 0\nnote = ""\nmode = "ok"', code)
    project.limit = 0.5
    project.save()
    assert fedexit(capsys, "run", "--profile", "smoke", "01_first")[0] == 0
    assert "the rest of this line is not stored" in project.result("01_first/notebook.ipynb").read_text()


def test_jobs_run_side_by_side_and_wait_for_their_needs(project, capsys):
    third = project.root / "notebooks/03_third.ipynb"
    write_notebook(third, 'profile = ""', SECOND.replace("02_second", "03_third").replace('"y"', '"z"'))
    listing = project.root / "nbs_ci.yml"
    raw = yaml.safe_load(listing.read_text())
    raw["notebooks"].append(raw["notebooks"][1] | {"id": "03_third", "artifacts": ["tables/z.csv"]})
    raw["notebooks"][2].pop("headline")
    raw["notebooks"][2]["profiles"] = {
        name: own | {"minutes": 5} for name, own in raw["notebooks"][1]["profiles"].items()
    }
    listing.write_text(yaml.safe_dump(raw))
    code, out, _ = fedexit(capsys, "run", "--profile", "smoke", "--jobs", "2")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("[1/3] 01_first") and lines[1].startswith("01_first: ran in")
    assert [line[:5] for line in lines[2:4]] == ["[3/3]", "[2/3]"]  # the longer first, both before one of them ended
    assert fedexit(capsys, "run", "--profile", "smoke", "--jobs", "2")[1].count("up to date") == 6
    assert fedexit(capsys, "run", "--jobs", "0")[0] == 2


def test_results_that_need_a_missing_package_are_kept(project, capsys):
    assert fedexit(capsys, "run", "--profile", "smoke")[0] == 0
    shutil.rmtree(project.root / "results/.state")

    def need_package():
        """Let the first notebook need a package."""
        listing = project.root / "nbs_ci.yml"
        raw = yaml.safe_load(listing.read_text())
        raw["notebooks"][0]["profiles"]["smoke"]["package"] = "package_that_is_not_there"
        listing.write_text(yaml.safe_dump(raw))

    need_package()
    out = fedexit(capsys, "run", "--profile", "smoke")[1]
    assert "01_first: used as it is, because package_that_is_not_there is not installed" in out
    assert "02_second: ran in" in out and "01_first: ran in" not in out
    project.save(rounds=7)
    need_package()
    assert "01_first: ran in" in fedexit(capsys, "run", "--profile", "smoke")[1]  # its parameters changed


def test_the_first_failure_stops_the_other_jobs(project, capsys):
    second = project.root / "notebooks/02_second.ipynb"
    write_notebook(second, 'profile = ""', "import time\ntime.sleep(100)")
    listing = project.root / "nbs_ci.yml"
    project.save(mode="fail")
    listing.write_text(listing.read_text().replace("  needs:\n  - 01_first\n", ""))
    code, out, err = fedexit(capsys, "run", "--profile", "smoke", "--jobs", "2")
    assert code == 1 and "01_first: failed\n02_second: not run\n" in out and "01_first failed in cell" in err
    assert not [child for child in psutil.Process().children(recursive=True) if "ipykernel" in str(child.cmdline())]


def test_images_of_a_large_notebook_keep_their_size_and_lose_colours(tmp_path):
    plain = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(plain).save(made := io.BytesIO(), "PNG")
    image = base64.b64encode(made.getvalue()).decode()
    cells = [
        {"outputs": [{"data": {"image/png": image, "text/plain": "a figure"}}, {"text": "said"}]},
        {"source": "x"},
    ]
    file = tmp_path / "a.ipynb"
    file.write_text(json.dumps({"cells": cells}))
    execution._take_few_colours(file)
    [cell, other] = json.loads(file.read_text())["cells"]
    few = cell["outputs"][0]["data"].pop("image/png")
    with Image.open(io.BytesIO(base64.b64decode(few))) as small:
        assert small.size == (60, 40) and len(small.convert("RGB").getcolors()) <= execution.COLOURS
    assert len(few) < len(image) and other == {"source": "x"}
    assert cell == {"outputs": [{"data": {"text/plain": "a figure"}}, {"text": "said"}]}
