"""Write the tables of results, recommendation and speed in the README (`fedexit readme`).

No number in them is typed. The results have one row per notebook, from nbs_ci.yml and the published results. The last
column is the first sentence of the table declared as `headline`, if that has a column `says`. Nothing in the rows comes
from the machine that made the results. The tables show stored results; `fedexit status` reports whether those are up to
date.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from fedexit.runner.manifest import Notebook, load_manifest
from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text
from fedexit.support.paths import PUBLISHED, project_root


def render(readme: str, root: Path) -> str:
    """Return the text `readme` with new tables between its markers, from the project at `root`.

    The markers are those of `table`, `recommendation` and `speed`.

    Raises:
        FedexitError: a marker is missing or nbs_ci.yml has a fault.
    """
    readme = _between(readme, "table", partial(_results, root))
    losses = root / "results" / "14_local_objectives" / "tables"
    readme = _between(readme, "recommendation", partial(_recommendation, losses))
    return _between(readme, "speed", partial(_speed, root / "results" / "bench" / "tables" / "engine.csv"))


def _between(readme: str, name: str, lines: Callable[[], list[str]]) -> str:
    marks = [f"<!-- {name}:{end} -->" for end in ("begin", "end")]
    before, begin, rest = readme.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise FedexitError(f"README.md lacks {' followed by '.join(marks)}; put the two lines where the table belongs")
    return before + "\n".join([begin, *lines(), end]) + after


def _recommendation(tables: Path) -> list[str]:
    """Return the arm of notebook 14 that is best on dev, and its comparison on test, a row per task."""
    if not ((tables / "choice.csv").is_file() and (tables / "verdicts.csv").is_file()):
        return ["The published results hold no search for a recipe yet."]
    best = pd.read_csv(tables / "choice.csv").query("best").drop_duplicates("task")
    judged = pd.read_csv(tables / "verdicts.csv").query("one == 'best on dev'")
    lines = [
        "Notebook 14 takes for each task the arm with the lowest error on dev, as the mean over exits. It compares "
        "this arm on test with a fleet whose clients all stop at the shallowest exit:",
        "",
        "| task | arm | `method` | against | exit | seeds | difference, points | 95 % interval | verdict |",
        "|" + " --- |" * 9,
    ]
    for row in judged.merge(best, on="task").itertuples():
        difference, low, high = (f"{value:+.1f}" for value in (row.difference, row.low, row.high))
        cells = [row.task, row.arm, f"`{row.method}`", row.other, row.exit, row.seeds, difference, f"{low} to {high}"]
        lines.append(f"| {' | '.join(map(str, [*cells, row.verdict]))} |")
    return lines


def _speed(table: Path) -> list[str]:
    """Return a row per engine, workload and number of processes of `fedexit bench`; none before it has run."""
    if not table.is_file():
        return []
    cell = ["engine", "kind", "processes"]
    frame = pd.read_csv(table).query("equal_weights")
    wide = frame.pivot_table(index=cell, columns="quantity", values=["median", "ratio"], sort=False)
    head = "| engine | clients | processes | round, s | round, ratio | start-up and first round, ratio | memory, MB |"
    lines = [head, "|" + " --- |" * 7]
    for (engine, kind, processes), row in wide.iterrows():
        cells = [engine, kind, processes, f"{row['median', 'round']:.3g}", f"{row['ratio', 'round']:.3g}"]
        cells += [f"{row['ratio', 'startup_and_first_round']:.3g}", f"{row['median', 'peak_memory']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _results(root: Path) -> list[str]:
    rows = [_row(notebook, root) for notebook in load_manifest(root) if PUBLISHED in notebook.profiles]
    head = ["| notebook | figures | tables | command | minutes | says |", "|" + " --- |" * 6]
    return [*head, *rows]


def _row(notebook: Notebook, root: Path) -> str:
    folder = Path("results") / notebook.id
    done = (root / folder / "provenance.json").is_file()
    figures = [Path(name) for name in notebook.artifacts if name.endswith(".png")]
    declared = [name for name in notebook.artifacts if name.startswith("tables/")]
    tables = sum((root / folder / name).is_file() for name in declared) if done else len(declared)
    links = [f"[{name.stem}]({(folder / name).as_posix()})" for name in figures]
    cells = [
        f"[{notebook.id}](notebooks/{notebook.id}.ipynb): {notebook.title}",
        ", ".join(links if done else [name.stem for name in figures]),
        f"[{tables}]({(folder / 'tables').as_posix()})" if done and tables else str(tables),
        f"`fedexit run {notebook.id}`",
        f"about {notebook.profiles[PUBLISHED].minutes:g}",
        _headline(root / folder / notebook.headline) if done and notebook.headline else "",
    ]
    return f"| {' | '.join(cells)} |"


def _headline(table: Path) -> str:
    if not table.is_file():  # the results are older than this table
        return ""
    frame = pd.read_csv(table)
    return str(frame["says"].iloc[0]) if "says" in frame else ""


def write_readme() -> None:
    """Write the tables in the project's README.md again.

    Raises:
        FedexitError: a marker is missing or nbs_ci.yml has a fault.
    """
    path = project_root() / "README.md"
    write_text(path, render(path.read_text(encoding="utf-8"), path.parent))
