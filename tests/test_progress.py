import sys

from fedexit.support.progress import progress


def test_quiet_without_a_terminal(monkeypatch, capsys):
    monkeypatch.delenv("FEDEXIT_PROGRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert list(progress(range(3), "training")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_forced_and_silenced(monkeypatch, capsys):
    for wish, shown in (("1", True), ("0", False)):
        monkeypatch.setenv("FEDEXIT_PROGRESS", wish)
        list(progress(range(3), "training"))
        assert ("training" in capsys.readouterr().err) == shown


def test_drawn_on_the_runners_terminal(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FEDEXIT_PROGRESS", str(tmp_path / "terminal"))
    bar = progress(range(3), "training")
    assert list(bar) == [0, 1, 2]
    bar.fp.flush()
    assert "training" in (tmp_path / "terminal").read_text()
    assert capsys.readouterr() == ("", "")
