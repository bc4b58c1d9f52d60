"""Test that progress bars reach people and not logs, and that wrong environment variables give one sentence."""

import os
import select
import sys

import pytest

from fedexit.support.errors import FedexitError
from fedexit.support.paths import data_dir, project_root, results_dir
from fedexit.support.progress import progress


def test_quiet_without_a_terminal(monkeypatch, capsys):
    monkeypatch.delenv("FEDEXIT_PROGRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert list(progress(range(3), "training")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("wish", "shown"), [("1", True), ("0", False)])
def test_forced_and_silenced(wish, shown, monkeypatch, capsys):
    monkeypatch.setenv("FEDEXIT_PROGRESS", wish)
    list(progress(range(3), "training"))
    assert ("training" in capsys.readouterr().err) == shown


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python")
def test_drawn_on_the_named_terminal(monkeypatch, capsys):
    reader, terminal = os.openpty()
    monkeypatch.setenv("FEDEXIT_PROGRESS", os.ttyname(terminal))
    assert list(progress(range(3), "training")) == [0, 1, 2]
    drawn = b""
    while b"training" not in drawn and select.select([reader], [], [], 5)[0]:
        drawn += os.read(reader, 1000)
    assert b"training" in drawn
    assert capsys.readouterr() == ("", "")
    os.close(reader)
    os.close(terminal)


@pytest.mark.parametrize("wish", ["yes", "2", "/dev/null", "folder/bar", "."])
def test_a_path_that_is_not_a_terminal_is_refused_and_not_created(wish, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDEXIT_PROGRESS", wish)
    with pytest.raises(FedexitError, match=r"FEDEXIT_PROGRESS is '.+', which is not a terminal; set it to 0, 1 or"):
        progress(range(3), "training")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_refused_as_a_terminal_and_not_changed(monkeypatch, tmp_path):
    (tmp_path / "notes").write_text("mine")
    monkeypatch.setenv("FEDEXIT_PROGRESS", str(tmp_path / "notes"))
    with pytest.raises(FedexitError, match="not a terminal"):
        progress(range(3), "training")
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_terminal_that_was_closed_does_not_stop_the_run(monkeypatch, capsys):
    monkeypatch.setenv("FEDEXIT_PROGRESS", "/dev/pts/no-longer-there")
    assert list(progress(range(3), "training")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


FOLDERS = {"FEDEXIT_DATA": data_dir, "FEDEXIT_RESULTS": results_dir}


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_named_folder_may_be_new_but_not_its_parent_and_not_a_file(variable, monkeypatch, tmp_path):
    folder = FOLDERS[variable]
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "new"))
    assert folder() == tmp_path / "new"
    for wrong in ("no/where", "file", "file/below"):
        monkeypatch.setenv(variable, str(tmp_path / wrong))
        with pytest.raises(FedexitError, match=rf"{variable} is .*{wrong}.*; .* unset it$"):
            folder()


def test_a_tilde_in_a_named_folder_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("FEDEXIT_DATA", "~/speech")
    assert data_dir() == tmp_path / "speech"


def test_root_must_be_the_projects_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDEXIT_ROOT", str(tmp_path))
    with pytest.raises(FedexitError, match=r"no nbs_ci\.yml in FEDEXIT_ROOT, .*; set FEDEXIT_ROOT to"):
        project_root()
    (tmp_path / "nbs_ci.yml").touch()
    assert project_root() == tmp_path
