"""Write the cell *What we found* of each notebook from its table of sentences; no sentence there is typed.

The cell is prose with the tag `found`, below the contract. A notebook writes the table tables/says.csv, and
`fedexit readme` copies its first sentences into the notebook and into the published, executed one.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from fedexit.runner.manifest import Notebook, load_manifest
from fedexit.support.files import write_text
from fedexit.support.paths import PUBLISHED

TAG = "found"
MOST = 5  # sentences of the cell; the last section of a notebook has all of them
NOT_RUN = "This notebook has not been run for the published results, so it has found nothing yet."


def found_text(table: Path) -> str:
    """Return the Markdown of the cell: the first sentences of the column `says` of `table`.

    A table that is missing, or that has no such column, gives the sentence that the notebook has not been run.
    """
    said = pd.read_csv(table) if table.is_file() else pd.DataFrame()
    lines = [str(line) for line in said["says"]] if "says" in said else []
    if not lines:
        return f"## What we found\n\n{NOT_RUN}"
    more = f" It has {len(lines)} sentences in all." if len(lines) > MOST else ""
    source = f"*From the table `says` of profile `{PUBLISHED}`.{more}*"
    return "\n".join(["## What we found", "", *(f"- {line}" for line in lines[:MOST]), "", source])


def with_found(text: str, found: str) -> str:
    """Return the notebook `text` (JSON) with the cell `found` in second place; an earlier one is replaced."""
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if TAG not in cell["metadata"].get("tags", [])]
    cell = {"cell_type": "markdown", "id": TAG, "metadata": {"tags": [TAG]}, "source": found.splitlines(keepends=True)}
    return json.dumps(notebook | {"cells": [*cells[:1], cell, *cells[1:]]}, indent=1, ensure_ascii=False) + "\n"


def renewed(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each notebook of the project at `root`, and each published one, with the text that it should have.

    Raises:
        FedexitError: nbs_ci.yml has a fault.
    """
    for notebook in load_manifest(root):
        found = found_text(root / "results" / notebook.id / "tables" / "says.csv")
        for path in _copies(notebook, root):
            yield path, with_found(path.read_text(encoding="utf-8"), found)


def _copies(notebook: Notebook, root: Path) -> list[Path]:
    published = root / "results" / notebook.id / "notebook.ipynb"
    return [notebook.path, published] if published.is_file() else [notebook.path]


def write_found(root: Path) -> None:
    """Write the cell *What we found* of all notebooks of the project at `root` again. Raises as `renewed` does."""
    for path, text in renewed(root):
        write_text(path, text)
