"""Write what README.md and results/README.md say of the results (`fedexit readme`): no number there is typed.

README.md has the findings, the paper's claims beside ours, the recommended recipe, the speed and the minutes.
results/README.md has a row per notebook, from nbs_ci.yml and the published results. The last column of a row is the
first sentence of the table declared as `headline`, if that has a column `says`. Nothing in the rows comes from the
machine that made the results. All of it shows stored results; `fedexit status` reports whether those are up to date.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from fedexit.lab.found import write_found
from fedexit.lab.paper import published
from fedexit.lab.wording import bullets, listed
from fedexit.runner.manifest import Notebook, load_manifest
from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text
from fedexit.support.paths import PUBLISHED, project_root

DEEP, ALONE = 12, "everyone at 3, exit 3"  # is a deep exit worth more than what every device could have?
NOT_YET = "The published results do not say yet."
MIXED, DEPTH = "11_heterogeneous_depth", "10_depth_by_task"
# Each finding: the question, and the declared comparison of notebook 11 that answers it (exit, one arm, the other)
FINDINGS = (
    ("What do weak devices lose in a mixed fleet?", 3, "Eq. (1)", "everyone at 3"),
    ("Does it help to take the loss at all exits of a client?", 3, "Eq. (1), all exits", "Eq. (1)"),
    ("What do the weights $n_i L_i$ of Eq. (1) cost the shallow exit?", 3, "Eq. (1)", "masked"),
    ("And what do they bring to the deep exit?", 12, "Eq. (1)", "masked"),
)


def render(readme: str, root: Path) -> str:
    """Return the text of README.md with new lines between its markers, from the project at `root`.

    The markers are those of `findings`, `claims`, `minutes`, `recommendation` and `speed`.

    Raises:
        FedexitError: a marker is missing or nbs_ci.yml has a fault.
    """
    results = root / "results"
    readme = _between(readme, "findings", partial(_findings, results))
    readme = _between(readme, "claims", partial(_claims, results))
    readme = _between(readme, "minutes", partial(_minutes, root))
    readme = _between(readme, "recommendation", partial(_recommendation, results / "14_local_objectives" / "tables"))
    return _between(readme, "speed", partial(_speed, results / "bench" / "tables" / "engine.csv"))


def render_results(text: str, root: Path) -> str:
    """Return the text of results/README.md with a new table between its markers. Raises as `render` does."""
    return _between(text, "table", partial(_results, root))


def _between(readme: str, name: str, lines: Callable[[], list[str]]) -> str:
    marks = [f"<!-- {name}:{end} -->" for end in ("begin", "end")]
    before, begin, rest = readme.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise FedexitError(f"README.md lacks {' followed by '.join(marks)}; put the two lines where {name} belongs")
    return before + "\n".join([begin, *lines(), end]) + after


def _findings(results: Path) -> list[str]:
    """Return the questions of `FINDINGS`, each with the sentence of notebook 11 that answers it."""
    said = [_said(results, exit, one, other) for _, exit, one, other in FINDINGS]
    return [f"{place}. *{row[0]}* {answer}" for place, (row, answer) in enumerate(zip(FINDINGS, said, strict=True), 1)]


def _said(results: Path, exit: int, one: str, other: str) -> str:
    """Return the sentence of notebook 11 on a declared comparison at an exit."""
    table = results / MIXED / "tables" / "says.csv"
    sentences = pd.read_csv(table)["says"] if table.is_file() else []
    wanted = (f"at exit {exit}: **{one}** ", f" errors than **{other}** (")
    found = (text for text in sentences if all(part in text for part in wanted))
    return next((text[0].upper() + text[1:] for text in found), NOT_YET)


def _claims(results: Path) -> list[str]:
    """Return what the paper says, what we find and where, a row per claim; the paper's numbers are those it printed."""
    wide = published(2).pivot_table(index="task", columns="setting", values="value")
    new = wide["heterogeneous layer-wise"]
    fedavg, alone = new - wide["heterogeneous FedAvg"], new - wide["homogeneous"]
    first = published(1).query("setting == 'federated'")
    best = first.loc[first.groupby("task")["value"].idxmin(), "depth"]
    rows = [
        (
            f"The best depth depends on the task: it is 12 in {(best == 12).sum()} of {len(best)} federated rows "
            "(Table 1).",
            _chosen_exits(results),
            DEPTH,
        ),
        (
            f"Eq. (1) beats FedAvg on mixed depths, by {-fedavg.max():.2f} to {-fedavg.min():.2f} points (Table 2).",
            " ".join(
                dict.fromkeys(  # NOT_YET once
                    _said(results, exit, f"Eq. (1){tiers}", f"stale{tiers}")
                    for exit, tiers in ((12, ""), (6, ", tiers 3 and 6"))
                )
            ),
            MIXED,
        ),
        (
            f"Eq. (1) minus one depth for all: {alone.min():+.2f} to {alone.max():+.2f} points, which the paper calls "
            "close (Table 2).",
            _said(results, 12, "Eq. (1)", "everyone at 12"),
            MIXED,
        ),
        (f"Depth 3 saves {_saved(published(3))} of the memory (Table 3).", _savings(results), "12_cost_of_depth"),
    ]
    lines = [f"| {says} | {finds} | [{name}](results/{name}/notebook.ipynb) |" for says, finds, name in rows]
    return ["| the paper says | we find | evidence |", "|" + " --- |" * 3, *lines]


def _chosen_exits(results: Path) -> str:
    """Return the sentences of notebook 10 on the exit that dev chooses, one per task."""
    table = results / DEPTH / "tables" / "says.csv"
    sentences = pd.read_csv(table)["says"] if table.is_file() else []
    return " ".join(text for text in sentences if "the exit chosen on dev" in text) or NOT_YET


def _saved(memory: pd.DataFrame) -> str:
    wide = memory.pivot_table(index="task", columns="depth", values="memory_mb")
    share = 100 * (1 - wide[3] / wide[12])
    return f"{share.min():.0f} to {share.max():.0f} %"


def _savings(results: Path) -> str:
    """Return what depth 3 saves a model of the paper's size by our memory model, forward and in training."""
    table = results / "12_cost_of_depth" / "tables" / "savings.csv"
    if not table.is_file():
        return NOT_YET
    rows = pd.read_csv(table)
    saved = 100 * rows[rows["of"].str.startswith("base, ")].groupby("source")["saved"].agg(["min", "max"])
    forward, training = (saved.loc[f"{kind}, model"] for kind in ("forward", "training"))
    return (
        "For a model of the size of wav2vec2-base, depth 3 saves "
        f"{training['min']:.0f} to {training['max']:.0f} % of the memory of training and "
        f"{forward['min']:.0f} to {forward['max']:.0f} % of that of a forward pass, by our memory model."
    )


def _minutes(root: Path) -> list[str]:
    """Return how long the two commands take, from the minutes in nbs_ci.yml."""
    sums = [
        sum(notebook.profiles[name].minutes for notebook in load_manifest(root) if name in notebook.profiles)
        for name in (PUBLISHED, "smoke")
    ]
    return [
        f"After installation, the notebooks of `make reproduce` take about {sums[0]:.0f} minutes of one core, two at a "
        f"time; those of `make test` take about {sums[1]:.0f} minutes, and its tests come on top."
    ]


def _recommendation(tables: Path) -> list[str]:
    """Return the arm of notebook 14 that is best on dev, and its comparison on test, a row per task."""
    if not ((tables / "choice.csv").is_file() and (tables / "verdicts.csv").is_file()):
        return ["The published results hold no search for a recipe yet."]
    tried = pd.read_csv(tables / "choice.csv")
    best = tried.query("best").drop_duplicates("task")
    judged = pd.read_csv(tables / "verdicts.csv").query("one == 'best on dev'")
    lines = [
        f"Of the arms {listed(f'**{arm}**' for arm in tried['arm'].unique())}, notebook 14 takes for each task the one "
        "with the lowest error on dev, as the mean over exits. It compares this arm on test with a fleet whose clients "
        "all stop at the shallowest exit:",
        "",
        "| task | arm | `method` | against | exit | seeds | difference, points | 95 % interval | verdict |",
        "|" + " --- |" * 9,
    ]
    for row in judged.merge(best, on="task").itertuples():
        difference, low, high = (f"{value:+.1f}" for value in (row.difference, row.low, row.high))
        cells = [row.task, row.arm, f"`{row.method}`", row.other, row.exit, row.seeds, difference, f"{low} to {high}"]
        lines.append(f"| {' | '.join(map(str, [*cells, row.verdict]))} |")
    deep = [_said(tables.parents[1], DEEP, arm, ALONE) for arm in best["arm"].unique()]
    deep = [sentence for sentence in deep if sentence != NOT_YET]
    if deep:
        lines += [
            "",
            f"Exit {DEEP} of this arm, beside exit 3 of a fleet that stops there (notebook 11):",
            "",
            bullets(deep),
        ]
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
    rows = [_row(notebook, root / "results") for notebook in load_manifest(root) if PUBLISHED in notebook.profiles]
    head = ["| notebook | figures | tables | command | minutes | says |", "|" + " --- |" * 6]
    return [*head, *rows]


def _row(notebook: Notebook, results: Path) -> str:
    """Return the row of a notebook; links start in the folder results/."""
    folder = Path(notebook.id)
    done = (results / folder / "provenance.json").is_file()
    figures = [Path(name) for name in notebook.artifacts if name.endswith(".png")]
    declared = [name for name in notebook.artifacts if name.startswith("tables/")]
    tables = sum((results / folder / name).is_file() for name in declared) if done else len(declared)
    links = [f"[{name.stem}]({(folder / name).as_posix()})" for name in figures]
    cells = [
        f"[{notebook.id}](../notebooks/{notebook.id}.ipynb): {notebook.title}",
        ", ".join(links if done else [name.stem for name in figures]),
        f"[{tables}]({(folder / 'tables').as_posix()})" if done and tables else str(tables),
        f"`fedexit run {notebook.id}`",
        f"about {notebook.profiles[PUBLISHED].minutes:g}",
        _headline(results / folder / notebook.headline) if done and notebook.headline else "",
    ]
    return f"| {' | '.join(cells)} |"


def _headline(table: Path) -> str:
    if not table.is_file():  # the results are older than this table
        return ""
    frame = pd.read_csv(table)
    return str(frame["says"].iloc[0]) if "says" in frame else ""


def write_readme() -> None:
    """Write again what README.md, results/README.md and the notebooks (`fedexit.lab.found`) say of the results.

    Raises:
        FedexitError: a marker is missing or nbs_ci.yml has a fault.
    """
    root = project_root()
    for path, write in ((root / "README.md", render), (root / "results" / "README.md", render_results)):
        write_text(path, write(path.read_text(encoding="utf-8"), root))
    write_found(root)
