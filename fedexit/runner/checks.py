"""Check what a notebook wrote: every declared artifact is there, nothing else is, and its tables meet the checks."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedexit.runner.manifest import Notebook
from fedexit.support.errors import FedexitError

if TYPE_CHECKING:
    import pandas as pd


def check_artifacts(notebook: Notebook, folder: Path) -> None:
    """Raise FedexitError unless `folder` holds exactly the artifacts that nbs_ci.yml declares."""
    produced = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if missing := sorted(set(notebook.artifacts) - produced):
        raise FedexitError(f"{notebook.id} did not write {', '.join(missing)}, which nbs_ci.yml declares")
    if undeclared := sorted(produced - set(notebook.artifacts)):
        raise FedexitError(f"{notebook.id} wrote {', '.join(undeclared)}; declare it in nbs_ci.yml")


def check_tables(notebook: Notebook, folder: Path) -> None:
    """Raise FedexitError unless the tables in `folder` can be read and meet the checks of nbs_ci.yml."""
    if notebook.headline:
        read_table(notebook, folder, notebook.headline)
    for check in notebook.checks:
        where = f"{notebook.id}: {check.table}"
        frame = read_table(notebook, folder, check.table)
        if missing := [name for name in check.columns if name not in frame.columns]:
            raise FedexitError(f"{where} lacks the column {missing[0]}; it has: {', '.join(frame.columns)}")
        try:
            rows = len(frame if check.query is None else frame.query(check.query))
        except Exception as error:  # pandas and numexpr raise errors of many kinds
            reason = " ".join(str(error).split())
            raise FedexitError(f"{where}: the check's query {check.query!r} cannot be used: {reason}") from None
        only_most = check.min_rows is None and check.max_rows is not None
        least = check.min_rows if check.min_rows is not None else 0 if only_most else 1
        most = len(frame) if check.max_rows is None else check.max_rows
        if not least <= rows <= most:
            kind = f"where {check.query}" if check.query is not None else "in all"
            wanted = f"at least {least}" if check.max_rows is None else f"{least} to {most}"
            raise FedexitError(f"{where} has {rows} rows {kind}; its check requires {wanted}")


def read_table(notebook: Notebook, folder: Path, name: str) -> "pd.DataFrame":
    """Return a table of `notebook` in `folder`. Raise FedexitError when it has no columns or is not a CSV file."""
    import pandas as pd

    try:
        return pd.read_csv(folder / name)
    except ValueError as error:  # pandas' own errors are of this kind
        raise FedexitError(f"{notebook.id}: {name} is no table ({error}); write one that has columns") from None
