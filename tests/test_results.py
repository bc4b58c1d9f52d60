"""Test the files that notebooks write: bit-identical each time and in the right folder."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fedexit.runner import results
from fedexit.support.errors import FedexitError


@pytest.fixture
def run(tmp_path, monkeypatch) -> results.Run:
    """Return a run of notebook 02_b outside the runner."""
    (tmp_path / "nbs_ci.yml").touch()
    monkeypatch.setenv("FEDEXIT_ROOT", str(tmp_path))
    for name in ("FEDEXIT_OUT", "FEDEXIT_STATE", "FEDEXIT_NEEDS", "FEDEXIT_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    return results.Run("02_b", "smoke")


def test_table_has_fixed_floats_and_line_ends_and_reads_back(run, tmp_path):
    frame = pd.DataFrame({"name": ["a", "é"], "value": [np.float32(0.9), 0.1 + 0.2], "n": [2, 3], "gap": [np.nan, 4.0]})
    assert run.table(frame, "scores") is frame
    path = tmp_path / "results/interactive/smoke/02_b/tables/scores.csv"
    assert path.read_bytes() == "name,value,n,gap\na,0.8999999762,2,\né,0.3,3,4.0\n".encode()
    back = run.read("02_b", "scores")
    assert list(back.dtypes.iloc[1:].astype(str)) == ["float64", "int64", "float64"]
    assert [path.name for path in path.parent.iterdir()] == ["scores.csv"]


def test_a_figure_is_bit_identical_each_time_and_comes_with_its_data(run, tmp_path):
    def draw() -> bytes:
        fig = Figure()
        fig.subplots().plot([1, 2], [3.0, 4.0])
        run.figure(fig, "line", pd.DataFrame({"x": [1, 2], "y": [3.0, 4.0]}))
        return (tmp_path / "results/interactive/smoke/02_b/figures/line.png").read_bytes()

    first = draw()
    assert draw() == first and matplotlib.__version__.encode() not in first
    assert (tmp_path / "results/interactive/smoke/02_b/figures/line.csv").read_text() == "x,y\n1,3.0\n2,4.0\n"


def test_a_failed_write_leaves_only_the_old_file(run, tmp_path):
    class Broken(Figure):
        def savefig(self, path, **kwargs):
            path.write_bytes(b"half")
            raise OSError("disk full")

    data = pd.DataFrame({"x": [1]})
    run.figure(Figure(), "line", data)
    folder = tmp_path / "results/interactive/smoke/02_b/figures"
    before = (folder / "line.png").read_bytes()
    with pytest.raises(OSError, match="disk full"):
        run.figure(Broken(), "line", data)
    assert (folder / "line.png").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["line.csv", "line.png"]


@pytest.mark.parametrize("name", ["x.csv", "../x", "", "a b"])
def test_bad_names_are_refused(run, name):
    with pytest.raises(FedexitError, match="without a suffix"):
        run.table(pd.DataFrame({"x": [1]}), name)


def test_index_that_would_be_lost_is_refused(run):
    frame = pd.DataFrame({"method": ["a", "b"], "value": [1, 2]}).groupby("method").mean()
    with pytest.raises(FedexitError, match=r"index \['method'\] would be lost; use reset_index"):
        run.table(frame, "x")


def test_read_prefers_the_results_of_the_profile(run):
    with pytest.raises(FedexitError, match="no table x of 01_a; make it with: fedexit run --profile smoke 01_a"):
        run.read("01_a", "x")
    results.Run("01_a", "smoke").table(pd.DataFrame({"value": [1]}), "x")
    assert run.read("01_a", "x")["value"].tolist() == [1]
    declared = results.results_dir() / "smoke/01_a/tables/x.csv"
    declared.parent.mkdir(parents=True)
    declared.write_text("value\n2\n")
    assert run.read("01_a", "x")["value"].tolist() == [2]
    published = results.results_dir() / "01_a/tables/x.csv"
    published.parent.mkdir(parents=True)
    published.write_text("value\n3\n")
    assert results.Run("02_b", "default").read("01_a", "x")["value"].tolist() == [3]


def test_under_fedexit_run_only_declared_needs_are_read(run, tmp_path, monkeypatch, capsys):
    results.Run("01_a", "smoke").table(pd.DataFrame({"value": [1]}), "x")  # interactive results do not count
    monkeypatch.setenv("FEDEXIT_OUT", str(tmp_path / "state/02_b/out"))
    monkeypatch.setenv("FEDEXIT_STATE", str(tmp_path / "state/02_b/checkpoints/key"))
    monkeypatch.setenv("FEDEXIT_NEEDS", "01_a")
    with pytest.raises(FedexitError, match="no table x of 01_a"):
        run.read("01_a", "x")
    with pytest.raises(FedexitError, match="add 03_c to its needs"):
        run.read("03_c", "x")
    run.table(pd.DataFrame({"value": [1]}), "y")
    assert (tmp_path / "state/02_b/out/tables/y.csv").is_file()
    assert run.state("round.safetensors") == tmp_path / "state/02_b/checkpoints/key/round.safetensors"
    assert run.state("round.safetensors").parent.is_dir()
    with pytest.raises(FedexitError, match="is called in the notebook 02_b; write start"):
        results.start("01_a", "smoke")
    assert results.start("02_b", "smoke", seed=7) == run
    out = capsys.readouterr().out
    assert "torch" in out and "device" in out and out.endswith("profile smoke | seed 7\n") and out.count("\n") == 2


def test_tidy_tables_have_the_agreed_columns():
    frame = pd.DataFrame(columns=results.TIDY)
    assert results.check_tidy(frame) is frame
    with pytest.raises(FedexitError, match=r"lacks \['n'\], has \['count'\]"):
        results.check_tidy(frame.rename(columns={"n": "count"}))
    with pytest.raises(FedexitError, match="order the columns"):
        results.check_tidy(frame[results.TIDY[::-1]])
