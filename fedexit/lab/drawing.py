"""Draw published figures and tables again by name, from stored results, without training and without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from fedexit.lab import diagram, figures, figures_basics, figures_devices, figures_faults, figures_fleet, figures_listen
from fedexit.lab.counterparts import TABLES, counterpart
from fedexit.lab.looks import style
from fedexit.runner.manifest import load_manifest, select
from fedexit.runner.results import DPI
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.files import replacing
from fedexit.support.paths import project_root, results_of

with extra("notebooks"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

BENCH = "bench/engine"  # the one figure of `fedexit bench`
FIGURES = {"1": "00_start_here/method", "2": "02_aggregation/shares"}  # of the paper: its framework and its average
FORMATS = {"figure": ("png", "pdf", "svg", "csv"), "table": ("csv", "tex", "html")}
_MODULES = (figures, figures_basics, figures_devices, figures_faults, figures_fleet, figures_listen, diagram)
_OTHER_NAMES = {"bytes": "bytes_sent"}  # a name of Python
_METADATA: dict[str, dict[str, Any]] = {  # no dates and no versions: equal data gives equal files
    "png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A figure or table that can be made again.

    kind: `figure` or `table`.
    name: what the user types: `NOTEBOOK/NAME`, or the number in the paper.
    source: the `NOTEBOOK/NAME` whose rows are shown; of a table of the paper, the notebook alone.
    about: title of the notebook, or what the paper's counterpart is.
    minutes: expected time of the notebook on two cores; 0 for `fedexit bench`.
    """

    kind: str
    name: str
    source: str
    about: str
    minutes: float

    @property
    def notebook(self) -> str:
        """Return the notebook that makes the rows."""
        return self.source.split("/")[0]


def items(kind: str, profile: str = "default") -> list[Item]:
    """Return all figures or tables of a profile, those of the paper first. `kind` is `figure` or `table`.

    Raises:
        FedexitError: there is no such profile, or nbs_ci.yml has a fault.
    """
    notebooks = select(load_manifest(project_root()), profile, [])
    minutes = {notebook.id: notebook.profiles[profile].minutes for notebook in notebooks}
    found = [
        Item(
            kind,
            number,
            source,
            f"{kind.capitalize()} {number} of the paper: our counterpart",
            minutes[source.split("/")[0]],
        )
        for number, source in (TABLES if kind == "table" else FIGURES).items()
        if source.split("/")[0] in minutes
    ]
    for notebook in notebooks:
        files = [Path(name) for name in notebook.artifacts if name.startswith(f"{kind}s/")]
        names = [f"{notebook.id}/{file.stem}" for file in files if file.suffix == ".csv"]
        found += [Item(kind, name, name, notebook.title, minutes[notebook.id]) for name in names]
    if kind == "figure":
        found.append(Item(kind, BENCH, BENCH, "Speed beside other engines (fedexit bench)", 0))
    return found


def find(kind: str, name: str, profile: str = "default") -> Item:
    """Return the figure or table called `name`.

    Raises:
        FedexitError: there is none; the message lists names like it.
    """
    known = {item.name: item for item in items(kind, profile)}
    if name in known:
        return known[name]
    short = {full.split("/")[-1]: full for full in known}
    near = [full for full in known if name and (full.startswith(name) or full.endswith(f"/{name}"))]
    near += [full for full in get_close_matches(name, known, 3) if full not in near]
    near += [short[match] for match in get_close_matches(name.split("/")[-1], short, 3) if short[match] not in near]
    says = f"did you mean {', '.join(near[:5])}?" if near else f"list all with: fedexit {kind}"
    raise FedexitError(f"no {kind} {name!r} in profile {profile}; {says}")


def read(item: Item, profile: str = "default") -> pd.DataFrame:
    """Return the rows of a figure or table from the stored results of a profile.

    Raises:
        FedexitError: the notebook has not run in this profile.
    """
    if item.kind == "table" and item.name in TABLES:
        return counterpart(item.name, results_of(profile))
    path = results_of(profile) / item.notebook / f"{item.kind}s" / f"{item.source.split('/')[1]}.csv"
    if not path.is_file():
        raise FedexitError(f"no rows of {item.kind} {item.name} in profile {profile}; make them with --rerun")
    return pd.read_csv(path)


def drawn(item: Item, data: pd.DataFrame) -> Figure:
    """Return the figure of its rows, drawn by the function that its notebook calls."""
    style()
    return function_of(item.source)(data)


def function_of(source: str) -> Callable[[pd.DataFrame], Figure]:
    """Return the function that draws the figure `NOTEBOOK/NAME`.

    Raises:
        FedexitError: no module of figures has it.
    """
    name = source.split("/")[1]
    for module in _MODULES:
        if found := getattr(module, _OTHER_NAMES.get(name, name), None):
            return found
    raise FedexitError(f"no function draws {source}; add one of that name to fedexit.lab.figures")


def save(item: Item, data: pd.DataFrame, format: str, path: Path) -> None:
    """Write a figure or table to a file, in a format of `FORMATS`. Equal data gives equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if item.kind == "table" or format == "csv":
        with replacing(path) as part:
            part.write_text(as_text(data, format), encoding="utf-8")
        return
    figure = drawn(item, data)
    with replacing(path) as part, plt.rc_context({"svg.hashsalt": "fedexit"}):
        figure.savefig(part, dpi=DPI, format=format, bbox_inches="tight", metadata=_METADATA[format])
    plt.close(figure)


def as_text(data: pd.DataFrame, format: str) -> str:
    """Return a table as `csv` with all digits, or as `tex` or `html` with two decimals."""
    if format == "csv":
        return data.to_csv(index=False, lineterminator="\n", float_format="%.10g")
    shown = data.astype(object).where(data.notna(), "")
    look: dict[str, Any] = {"index": False, "float_format": "{:.2f}".format}
    if format == "html":
        return shown.to_html(**look) + "\n"
    return shown.to_latex(escape=True, **look)
