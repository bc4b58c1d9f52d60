"""Test that the command line reports mistakes in one line and with the right exit code."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fedexit import __version__, cli
from fedexit.runner import run as runner
from fedexit.support.errors import FedexitError

ROOT = Path(__file__).parents[1]
COMMANDS = (
    ["run"],
    ["status"],
    ["predict"],
    ["export"],
    ["pretrain"],
    ["ctc"],
    ["bench"],
    ["data"],
    ["data", "list"],
    ["data", "fetch"],
    ["data", "manifest"],
    ["data", "trials"],
    ["data", "convert"],
    ["cells"],
    ["cells", "list"],
    ["cells", "check"],
    ["cells", "publish"],
)


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fedexit {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert "example: fedexit " + " ".join(command) in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FedexitError("no such thing; name another"), 2, "fedexit: no such thing; name another\n"),
        (KeyboardInterrupt(), 130, "fedexit: interrupted; run the command again to resume\n"),
        (OSError(errno.ENOSPC, "x"), 1, "fedexit: disk full; free space, then run the command again to resume\n"),
    ],
)
def test_errors_are_one_line(error, code, message, monkeypatch, capsys):
    def fail(profile: str) -> None:
        raise error

    monkeypatch.setattr(runner, "status", fail)
    assert cli.main(["status"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("error", "says", "code"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "results/x.csv"), "results/x.csv: Permission denied", 1),
        (OSError("Cannot save file into 'nowhere'"), "system: Cannot save file into 'nowhere'", 1),  # as pandas does
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x"), "file/x: Not a directory", 2),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "folder"), "folder: Is a directory", 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", 300 * "x"), f"{100 * 'x'}...: File name too long", 2),
    ],
)
def test_other_errors_of_the_system_are_one_line_that_names_the_file(error, says, code, monkeypatch, capsys):
    def fail(profile: str) -> None:
        raise error

    monkeypatch.setattr(runner, "status", fail)
    assert cli.main(["status"]) == code
    assert capsys.readouterr().err == f"fedexit: {says}; fix this, then run the command again\n"


WRITING = {
    "figure": ["figure", "1", "--rerun"],
    "table": ["table", "1", "--rerun"],
    "bench": ["bench", "engine"],
    "key": ["key", "--answers", "answers"],
    "grade": ["grade", "ann.ipynb"],
}


@pytest.mark.parametrize("out", ["folder.csv", "file/a.csv", "file/more/a.csv", 300 * "x" + ".csv", "."])
@pytest.mark.parametrize("command", WRITING)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(command, out, tmp_path, monkeypatch, capsys):
    def work(*given, **named):
        raise AssertionError("the work began")

    for place in ("figure_commands._rerun", "bench.suite._engines", "teach.keys._record", "teach.grading._verdicts"):
        monkeypatch.setattr(f"fedexit.{place}", work)
    monkeypatch.setenv("FEDEXIT_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for folder in ("folder.csv", "folder.csv/provenance.json", "provenance.json"):  # the last two are those of bench
        (tmp_path / folder).mkdir()
    (tmp_path / "ann.ipynb").write_text('{"cells": []}')
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([*WRITING[command], "--out", out]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot be written (" in err and err.endswith("; choose another place\n")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", ["-1", "0", "99999999999999999999"])
@pytest.mark.parametrize("limit", ["cpu", "memory"])
def test_limits_with_which_no_answer_gets_a_mark_are_refused(limit, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ann.ipynb").write_text('{"cells": []}')
    assert cli.main(["grade", "ann.ipynb", "--out", "grades.csv", f"--{limit}", value]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fedexit: --{limit} must be from ") and captured.err.endswith(f", not {value}\n")
    assert not captured.out and [file.name for file in tmp_path.iterdir()] == ["ann.ipynb"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["figure", "1", "--out", ""], "number 4, after --out,"),
        (["figure", "1", "--out="], "--out"),
        (["predict", "", "a.wav"], "number 2, after predict,"),
    ],
)
def test_an_empty_argument_is_refused_by_its_place(arguments, named, capsys):
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == f"fedexit: argument {named} is empty; give a value, or leave it out\n"


def test_parameters_are_yaml(monkeypatch):
    seen = {}
    monkeypatch.setattr(runner, "run", lambda *arguments: seen.update(arguments=arguments) or False)
    given = [part for text in ("rate=1e-3", "depths=[2,3]", "name=x=y", "none=") for part in ("-p", text)]
    code = cli.main(["run", "01_a", "--profile", "smoke", *given, "--force", "--jobs", "2"])
    assert code == 1  # a notebook failed
    parameters = {"rate": 0.001, "depths": [2, 3], "name": "x=y", "none": None}
    assert seen["arguments"] == ("smoke", ["01_a"], parameters, True, 2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rounds", "write -p NAME=VALUE"),
        ("profile=smoke", "write --profile smoke"),
        ("rounds=[1", "not YAML"),
        ("rounds={1: 2}", "a mapping from text"),
        ("rounds={a: 1, a: 2}", "a is given twice"),
        ("rounds=!!timestamp 2020-01-01", "give a number, text"),
        ("rounds=@x", "not YAML"),
        ("rate=.nan", "give a number"),
        ("a=--- 1\n--- 2", "another document"),
    ],
)
def test_bad_parameters(text, complaint, capsys):
    assert cli.main(["run", "01_a", "-p", text]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fedexit: -p {' '.join(text.split())}") and complaint in err and err.count("\n") == 1


def test_outside_a_project(tmp_path):
    """Test one more thing: `python -m fedexit` works, and a mistake imports neither torch nor papermill."""
    code = (
        "import sys; from fedexit.cli import main; c = main(['status']); assert 'torch' not in sys.modules; sys.exit(c)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 2
    assert done.stderr.startswith("fedexit: no nbs_ci.yml in ") and done.stderr.count("\n") == 1
    done = subprocess.run([sys.executable, "-m", "fedexit", "nonsense"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'nonsense'" in done.stderr


def test_any_console_can_show_the_output(tmp_path):
    code = "from fedexit.cli import main; import sys; sys.exit(main(['data', 'manifest', 'Zoë 🎤', '--out', 'x.csv']))"
    environment = {"PYTHONIOENCODING": "ascii", "FEDEXIT_ROOT": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and r"Zo\xeb \U0001f3a4" in done.stderr and "Traceback" not in done.stderr


def test_works_where_fcntl_is_missing(tmp_path):
    """Simulate Windows, which has neither `fcntl` nor `os.ttyname`."""
    code = (
        "import os, sys; sys.modules['fcntl'] = None; del os.ttyname; import fedexit; from fedexit.runner import run; "
        "from fedexit.cli import main; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "COMMAND" in done.stdout, done.stderr
