"""Write the notebooks that students get: texts, stubs and checks, without answers."""

from itertools import groupby
from pathlib import Path
from typing import Any

from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.files import check_target, write_text
from fedexit.teach.exercises import EXERCISES, Exercise

_INTRODUCTION = """# Exercises: {title}

Write one function for each exercise, and run the cell below it. It prints a verdict, and a hint if the answer is not
right yet. Each function must work alone: put its imports and helpers into its own cell. You need NumPy and the
standard library only; fedexit itself cannot be imported when your work is graded. Keep the names of the functions.
"""


def write_notebooks(folder: str | Path) -> list[Path]:
    """Write the notebooks of students to `folder` and return those that are new.

    A notebook that is already there and the same stays untouched.

    Raises:
        FedexitError: a notebook with other content is there, which may hold a student's work; or the folder cannot be
            written.
    """
    contents = {
        Path(folder) / f"{name}.ipynb": _notebook(name, list(own))
        for name, own in groupby(EXERCISES, lambda exercise: exercise.notebook)
    }
    for path, text in contents.items():
        if check_target(path).exists() and path.read_bytes() != text.encode():
            raise FedexitError(f"{path} has other content, perhaps answers; choose another folder or delete the file")
    new = [path for path in contents if not path.exists()]
    for path in new:
        write_text(path, contents[path])
    return new


def _notebook(name: str, exercises: list[Exercise]) -> str:
    """Return the text of a notebook. Its cells have fixed ids, so equal exercises give equal files."""
    with extra("notebooks"):
        import nbformat
    make: Any = nbformat.v4
    title = name.partition("_")[2]
    cells = [
        make.new_markdown_cell(_INTRODUCTION.format(title=title), id="introduction"),
        make.new_code_cell("import numpy as np\n\nfrom fedexit.teach import check", id="imports"),
    ]
    for one in exercises:
        cells += [
            make.new_markdown_cell(f"## {one.title}\n\n{one.text}", id=f"{one.name}-text"),
            make.new_code_cell(f"import numpy as np\n\n\n{one.stub}", id=f"{one.name}-answer"),
            make.new_code_cell(f'check("{one.name}", {one.function});', id=f"{one.name}-check"),
        ]
    if name == EXERCISES[-1].notebook:
        cells.append(make.new_markdown_cell("Your text on the row that you reproduced:", id="row-report"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(make.new_notebook(cells=cells, metadata={"kernelspec": kernel})) + "\n"
