"""Test that figures and tables are made again by name, from stored results alone."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from fedexit import cli
from fedexit.lab import diagram, drawing, looks
from fedexit.lab.counterparts import OURS, counterpart
from fedexit.lab.paper import published

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    """Read the committed results, and close what a test draws."""
    monkeypatch.setenv("FEDEXIT_ROOT", str(ROOT))
    yield
    drawing.plt.close("all")


def test_every_figure_has_a_function_and_draws_its_rows():
    undrawn = []
    for item in drawing.items("figure"):
        drawing.function_of(item.source)
        path = RESULTS / item.notebook / "figures" / f"{item.source.split('/')[1]}.csv"
        if path.is_file():
            rows = drawing.read(item)
            figure = drawing.drawn(item, rows)
            shown = [axis for axis in figure.axes if axis.has_data()]
            undrawn += [] if shown or rows.empty else [item.name]  # Flower may be missing
            drawing.plt.close(figure)
    assert undrawn == []
    drawing.function_of("20_paper_tables/table2")  # of a profile that is not published


def test_figures_and_tables_need_no_torch_and_are_vector_files(tmp_path):
    code = (
        "import sys; from fedexit.cli import main\n"
        "for file in ('a.svg', 'b.svg', 'c.pdf'):\n"
        f"    assert main(['figure', '11_heterogeneous_depth/differences', '--out', r'{tmp_path}/' + file]) == 0\n"
        "assert main(['table', '1', '--format', 'tex']) == 0\n"
        "assert 'torch' not in sys.modules and 'fedexit.lab.cells' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count("<path") > 30 and "<image" not in svg
    assert svg == (tmp_path / "b.svg").read_text(), "equal rows give equal files"
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    assert r"\begin{tabular}" in done.stdout and "WER" in done.stdout


def test_names_are_listed_and_a_wrong_name_gives_near_ones(capsys, tmp_path):
    assert cli.main(["table"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[:3]] == ["1", "2", "3"]
    assert all(re.match(r"\S+ +[\d.]+ min  \S", line) for line in listed)
    assert any(line.startswith("11_heterogeneous_depth/verdicts ") for line in listed)
    for wrong, near in (
        ("11_heterogenous_depth/diferences", "11_heterogeneous_depth/differences"),
        ("kinship", "05_pre"),
    ):
        assert cli.main(["figure", wrong]) == 2
        assert f"no figure '{wrong}' in profile default; did you mean {near}" in capsys.readouterr().err
    assert cli.main(["table", "1", "--format", "png"]) == 2
    assert "'png' is no format of a table; available: csv, tex, html" in capsys.readouterr().err
    assert cli.main(["figure", "2", "--profile", "ful"]) == 2
    assert "unknown profile ful" in capsys.readouterr().err


def test_a_table_in_csv_keeps_its_digits(capsys):
    assert cli.main(["table", "11_heterogeneous_depth/main", "--format", "csv"]) == 0
    assert capsys.readouterr().out == (RESULTS / "11_heterogeneous_depth/tables/main.csv").read_text()


def test_rerun_runs_the_notebook_first(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr("fedexit.runner.run.run", lambda *given, **how: ran.append((given, how)) or True)
    assert cli.main(["table", "2", "--rerun"]) == 0
    assert ran == [(("default", ["11_heterogeneous_depth"], {}), {"force": True})]
    monkeypatch.setattr("fedexit.runner.run.run", lambda *given, **how: False)
    assert cli.main(["table", "2", "--rerun"]) == 2 and "11_heterogeneous_depth failed" in capsys.readouterr().err


def test_numbers_of_the_paper_and_ours_stay_apart():
    first = counterpart("1", RESULTS)
    ours = first["source"] == OURS
    assert first[~ours].filter(like="exit ").to_numpy().sum() == pytest.approx(published(1)["value"].sum())
    main = pd.read_csv(RESULTS / "10_depth_by_task/tables/main.csv").query("arm == 'everyone at 3'")
    shown = first[ours & (first["setting"] == "federated")]
    assert shown["exit 3"].tolist() == main["error"].tolist() and first["source"].nunique() == 2
    second = counterpart("2", RESULTS)
    theirs = second["source"].str.startswith("Guo")
    assert second.loc[theirs, "percent"].tolist() == published(2)["value"].tolist()
    assert second.loc[theirs, ["low", "high", "seeds"]].isna().all(axis=None)
    main = pd.read_csv(RESULTS / "11_heterogeneous_depth/tables/main.csv").query("exit == 12").set_index("arm")["error"]
    mine = second[~theirs].set_index("setting")["percent"]
    assert mine["heterogeneous layer-wise"] == main["Eq. (1)"] and mine["heterogeneous FedAvg"] == main["stale"]
    third = counterpart("3", RESULTS).set_index(["task", "what"])
    assert third.loc[("KWS", "MB as published"), "saved at depth 3, %"] == pytest.approx(100 * (1 - 319.02 / 562.36))
    assert {what for _, what in third.index} == {"MB as published", "MiB, forward", "MiB, training"}


def grey(colour: str) -> float:
    """Return the lightness of a colour in a grey print."""
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_palettes_are_apart_and_readable_in_grey():
    shades = [grey(looks.EXITS[exit][0]) for exit in (3, 6, 9, 12)]
    assert min(light - dark for light, dark in pairwise(shades)) > 0.1, "deeper exits are darker"
    methods = {name: look for name, look in looks.METHODS.items() if not name.startswith(("everyone", "central "))}
    verdicts = {looks.VERDICTS[name][0] for name in ("better", "worse")}
    palettes = [{look[0] for look in looks.EXITS.values()}, {look[0] for look in methods.values()}, verdicts]
    assert not (palettes[0] & palettes[1] or palettes[1] & palettes[2] or palettes[0] & palettes[2])
    arms = ("stale", "masked", "Eq. (1)", "Eq. (1), all exits")
    assert len({methods[arm][1:] for arm in arms}) == len(arms), "marks and dashes repeat what colours say"


def test_the_diagram_shows_the_weights_of_equation_1():
    clients = pd.DataFrame({"client": ["a", "b", "c"], "depth": [3, 6, 12], "clips": [40, 10, 20]})
    server = diagram.method(clients).axes[2]
    bars = sorted((round(bar.get_y() + 0.4), bar.get_x(), bar.get_width()) for bar in server.patches)
    lowest = [width for layer, _, width in bars if layer == 1]
    assert lowest == pytest.approx([120 / 420, 60 / 420, 240 / 420])
    assert [width for layer, _, width in bars if layer == 12] == [1]
    assert len(bars) == 3 * 3 + 3 * 2 + 6
