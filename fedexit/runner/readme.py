"""Write the results, recommendation and speed of the README (`python -m fedexit.runner.readme`); no number is typed.

Of results, one row per notebook, from nbs_ci.yml and results/default, and one for each whose larger results are in
results/study. The last column is the first sentence of the table declared as `headline`, where it has a column `says`.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from fedexit.runner.manifest import Notebook, load_manifest
from fedexit.support.errors import FedexitError
from fedexit.support.paths import project_root

PROFILE, LARGER = "default", "study"


def render(readme: str, root: Path) -> str:
    """The text `readme` with what is between its markers made anew from the project at `root`.

    The markers are those of `table`, `recommendation` and `speed`.

    Raises FedexitError when a marker is missing or nbs_ci.yml is at fault.
    """
    readme = _between(readme, "table", partial(_results, root))
    search = root / "results" / LARGER / "14_local_objectives" / "tables"
    readme = _between(readme, "recommendation", partial(_recommendation, search))
    return _between(readme, "speed", partial(_speed, root / "results" / "bench" / "tables" / "engine.csv"))


def _between(readme: str, name: str, lines: Callable[[], list[str]]) -> str:
    marks = [f"<!-- {name}:{end} -->" for end in ("begin", "end")]
    before, begin, rest = readme.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise FedexitError(f"README.md lacks {' followed by '.join(marks)}; put the two lines where the table belongs")
    return before + "\n".join([begin, *lines(), end]) + after


def _recommendation(tables: Path) -> list[str]:
    """What notebook 14 found by its search (hypothesis o4), a row per task; nothing before its study has run."""
    if not (tables / "verdicts.csv").is_file():
        return []
    found = pd.read_csv(tables / "verdicts.csv").query("hypothesis == 'o4'")
    one, other = found.iloc[0][["one", "other"]]
    search = pd.read_csv(tables / "search.csv").set_index("method")
    row = search.loc[one]
    less, more = f"{row['dev_ratio']:.2f}", f"{row['more_cost']:.1f} %"
    if row["dev_ratio"] >= 1:
        return [f"No entry with all tasks that costs a client about as much is better on dev: take `{other}`."]
    lines = [
        f"Of the entries that cost a client about as much as the paper's recipe (`{other}`) and ran all tasks, the "
        f'best on dev is **`{one}`**, that is `federate(..., method="{one}")`: its error on dev is {less} of the '
        f"recipe's, and it costs a client at most {more} more.{_close(search, one)}",
        "",
        f"On test, mean of exits, difference to `{other}`:",
        "",
        "| task | seeds | difference, points | 95 % interval, outer limits of two | clearly better |",
        "|" + " --- |" * 5,
    ]
    for part in found.itertuples():
        difference, low, high = (f"{100 * value:+.1f}" for value in (part.difference, part.low, part.high))
        better = {"supported": "yes", "refuted": "no, worse", "undecided": "no"}[part.verdict]
        cells = [part.task, part.seeds, difference, f"{low} to {high}", better]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if "asr" in set(found["task"]):
        lines += ["", "Points of `asr` are of characters, all others of clips."]
    return lines


def _close(search: pd.DataFrame, best: str) -> str:
    """Which entries dev can hardly tell from the `best`, as notebook 14 says it."""
    near = search[search["equal_cost"] & (search["dev_ratio"] < search["dev_ratio"][best] + 0.02)].index.drop(best)
    return f" Hardly to be told from it on dev: {', '.join(f'`{name}`' for name in near)}." if len(near) else ""


def _speed(table: Path) -> list[str]:
    """A row per engine, workload and number of processes of `fedexit bench`; none before it has run."""
    if not table.is_file():
        return []
    cell = ["engine", "kind", "processes"]
    frame = pd.read_csv(table).query("equal_weights")
    wide = frame.pivot_table(index=cell, columns="quantity", values=["median", "ratio"], sort=False)
    lines = ["| engine | clients | processes | round, s | of the bare loop's | start-up and first round | memory, MB |"]
    lines.append("|" + " --- |" * 7)
    for (engine, kind, processes), row in wide.iterrows():
        cells = [engine, kind, processes, f"{row['median', 'round']:.3g}", f"{row['ratio', 'round']:.3g}"]
        cells += [f"{row['ratio', 'startup_and_first_round']:.3g}", f"{row['median', 'peak_memory']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _results(root: Path) -> list[str]:
    notebooks = load_manifest(root)
    rows = [_row(notebook, root, PROFILE) for notebook in notebooks if PROFILE in notebook.profiles]
    larger = [notebook for notebook in notebooks if (root / "results" / LARGER / notebook.id).is_dir()]
    rows += [_row(notebook, root, LARGER) for notebook in larger if LARGER in notebook.profiles]
    head = ["| notebook | figures | tables | command | minutes | says |", "|" + " --- |" * 6]
    return [*head, *rows]


def _row(notebook: Notebook, root: Path, profile: str) -> str:
    folder = Path("results") / profile / notebook.id
    provenance = root / folder / "provenance.json"
    done = provenance.is_file()
    figures = [Path(name) for name in notebook.artifacts if name.endswith(".png")]
    declared = [name for name in notebook.artifacts if name.startswith("tables/")]
    tables = sum((root / folder / name).is_file() for name in declared) if done else len(declared)
    links = [f"[{name.stem}]({(folder / name).as_posix()})" for name in figures]
    minutes = f"about {notebook.profiles[profile]['minutes']:g}"
    if done:
        facts = json.loads(provenance.read_text(encoding="utf-8"))
        minutes = f"{facts['seconds'] / 60:.1f} on {facts['platform']['cpus']} cores"
    cells = [
        f"[{notebook.id}](notebooks/{notebook.id}.ipynb): {notebook.title}",
        ", ".join(links if done else [name.stem for name in figures]),
        f"[{tables}]({(folder / 'tables').as_posix()})" if done and tables else str(tables),
        f"`fedexit run {notebook.id}{'' if profile == PROFILE else f' --profile {profile}'}`",
        minutes,
        _headline(root / folder / notebook.headline) if done and notebook.headline else "",
    ]
    return f"| {' | '.join(cells)} |"


def _headline(table: Path) -> str:
    if not table.is_file():  # results from before the notebook had it
        return ""
    frame = pd.read_csv(table)
    return str(frame["says"].iloc[0]) if "says" in frame else ""


def main() -> int:
    """Bring the table in the project's README.md up to date; exit code 2 and one line when it cannot be."""
    try:
        path = project_root() / "README.md"
        temporary = path.with_name(".README.md.part")
        temporary.write_text(render(path.read_text(encoding="utf-8"), path.parent), encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except FedexitError as error:
        print(f"fedexit: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
