"""A tiny project of two notebooks for tests of the runner; the second reads a table of the first."""

from pathlib import Path

import nbformat
import yaml

from fedexit.cli import main

PROFILES = ("smoke", "default")
FIRST = """
import os, time
import pandas as pd
from fedexit.runner.results import Run
run = Run("01_first", profile)
counter = run.state("tries")
counter.write_text(f"{os.getpid()}")
if mode == "fail":
    unlucky = 1 / 0
if mode == "sleep":
    time.sleep(60)
if mode != "missing":
    run.table(pd.DataFrame({"value": [0.1 * rounds, 0.3]}), "x")
if mode == "undeclared":
    run.table(pd.DataFrame({"value": [1]}), "surplus")
print("rounds", rounds)
"""
SECOND = """
from fedexit.runner.results import Run
run = Run("02_second", profile)
run.table(run.read("01_first", "x") * 2, "y")
"""


def write_notebook(path: Path, parameters: str, code: str, text: str = "A claim") -> None:
    cells = [
        nbformat.v4.new_markdown_cell(text, id="claim"),
        nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code.strip(), id="body"),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


class Project:
    """A temporary project. Tests change it by editing `parameters` and calling `save`."""

    def __init__(self, root: Path):
        self.root = root
        self.parameters = {"rounds": 1, "note": "a", "mode": "ok"}
        self.limit = 1
        (root / "notebooks").mkdir()
        parameters = 'profile = ""\nrounds = 0\nnote = ""\nmode = ""  # ok, fail, ...'
        write_notebook(root / "notebooks/01_first.ipynb", parameters, FIRST)
        write_notebook(root / "notebooks/02_second.ipynb", 'profile = ""', SECOND)
        self.save()

    def save(self, **parameters) -> None:
        self.parameters |= parameters
        first = {
            "id": "01_first",
            "title": "First",
            "artifacts": ["tables/x.csv"],
            "checks": [{"table": "tables/x.csv", "columns": ["value"], "query": "value > 0", "min_rows": 2}],
            "profiles": {
                name: {"minutes": 0.1, "limit": self.limit, "parameters": {**self.parameters}} for name in PROFILES
            },
        }
        second = {
            "id": "02_second",
            "title": "Second",
            "needs": ["01_first"],
            "artifacts": ["tables/y.csv"],
            "headline": "tables/y.csv",
            "profiles": {name: {"minutes": 0.1, "limit": 1} for name in PROFILES},
        }
        (self.root / "nbs_ci.yml").write_text(yaml.safe_dump({"notebooks": [first, second]}))

    def result(self, name: str) -> Path:
        return self.root / "results/smoke" / name


def fedexit(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    output = capsys.readouterr()
    return code, output.out, output.err
