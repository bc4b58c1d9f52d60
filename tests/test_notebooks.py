"""Test that every notebook has the same frame, so that a reader knows where to look. No notebook is run."""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import nbformat
import pytest

from fedexit.runner.manifest import load_manifest
from fedexit.support.errors import FedexitError

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHORT = {"00_start_here", "22_audit", "90_figures_and_tables"}  # a map, an audit and a gallery need fewer cells
BY_HAND = {"01_backbone_and_exits": 215, "02_aggregation": 165}  # lines: these rebuild the method in small steps
FORBIDDEN = {
    "pip": r"\bpip install\b|^\s*[%!]\s*pip\b",
    "sys.path": r"\bsys\.path\b",
    "change of folder": r"^\s*%cd\b|\bos\.chdir\(",
    "warning filter": r"\bwarnings\.(?:filterwarnings|simplefilter)\(",
    "absolute path": r"""["'](?:/[A-Za-z]\w*/|~/|[A-Z]:\\)""",
}

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parsed(source: str) -> ast.Module:
    """Return the syntax tree of a cell without its magics."""
    return ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", source))


def parameters(path: Path) -> set[str]:
    """Return the names set in the one cell tagged `parameters`."""
    [cell] = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    return {target.id for node in parsed(cell.source).body for target in node.targets}


def written(path: Path) -> set[str]:
    """Return the artifacts of the calls `run.table(..., "name")` and `run.figure(..., "name", ...)`."""
    calls = [
        node
        for cell in code_cells(path)
        for node in ast.walk(parsed(cell.source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("run.table", "run.figure")
    ]
    names = [(call.func.attr, next(k.value for k in call.keywords if k.arg == "name")) if len(call.args) < 2
             else (call.func.attr, call.args[1]) for call in calls]  # fmt: skip
    assert all(isinstance(name, ast.Constant) for _, name in names), "write the names of tables and figures out"
    suffixes = {"table": ["tables/{}.csv"], "figure": ["figures/{}.png", "figures/{}.csv"]}
    return {suffix.format(name.value) for kind, name in names for suffix in suffixes[kind]}


def manifest() -> dict:
    """Return the entries of nbs_ci.yml by id; a notebook that is not listed or has no file fails the test."""
    try:
        return {notebook.id: notebook for notebook in load_manifest(ROOT)}
    except FedexitError as error:
        pytest.fail(str(error))


def test_notebooks_are_there_and_listed():
    assert PATHS, "no notebooks/*.ipynb"
    assert set(manifest()) == {path.stem for path in PATHS}


@each_notebook
def test_first_cell_is_the_contract(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    missing = [word for word in ("reads", "writes", "smoke|every profile", "minute|second", "in the paper")
               if not re.search(word, first.source, re.I)]  # fmt: skip
    assert missing == []


@each_notebook
def test_second_cell_is_what_was_found_and_the_last_a_recap_with_links(path):
    cells = read(path).cells
    assert [cell.metadata.get("tags") for cell in cells if "What we found" in cell.source] == [["found"]]
    assert cells[1].source.startswith("## What we found") and cells[-1].source.startswith("## Recap")
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "**Before:**" in cells[-1].source and "**Next:**" in cells[-1].source
    linked = re.findall(r"\]\(([^)#:]+)\)", prose)
    assert linked and not [name for name in linked if not (path.parent / name).exists()]


@each_notebook
def test_prose_cells_are_short(path):
    """Tables do not count, nor does the cell that is written from a table."""
    own = [cell for cell in read(path).cells if cell.cell_type == "markdown" and "tags" not in cell.metadata]
    texts = ["\n".join(line for line in cell.source.splitlines() if not line.startswith("|")) for cell in own]
    assert not [text for text in texts if len(text.split()) > 120]


@each_notebook
def test_parameters_are_those_of_the_manifest(path):
    known = parameters(path)
    assert "profile" in known
    given = {name for profile in manifest()[path.stem].profiles.values() for name in profile.parameters}
    assert given - known == set(), "not set in the cell tagged parameters"


@each_notebook
def test_source_is_clean(path):
    assert path.stat().st_size < 100_000
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(path):
        assert cell.outputs == [] and cell.execution_count is None, "strip the outputs: nbstripout"
        for what, pattern in FORBIDDEN.items():
            assert not re.search(pattern, cell.source, re.M), f"{what} in:\n{cell.source}"


@each_notebook
def test_imported_names_exist(path):
    trees = [parsed(cell.source) for cell in code_cells(path)]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [(node.module, alias.name) for node in imports for alias in node.names if node.module[:7] == "fedexit"]
    assert not [
        f"{module}.{name}"
        for module, name in names
        if not hasattr(import_module(module), name) and not find_spec(f"{module}.{name}")
    ]


@each_notebook
def test_cells_are_few_and_short(path):
    lines = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert (5 if path.stem in SHORT else 15) <= len(lines) <= (25 if path.stem in BY_HAND else 20)
    assert max(lines) <= 45
    assert median(lines) <= 8
    filled = [line for cell in code_cells(path) for line in cell.source.splitlines() if line.strip()]
    assert len(filled) <= BY_HAND.get(path.stem, 150)


@each_notebook
def test_every_figure_is_followed_by_what_to_see(path):
    waiting = None
    for cell in read(path).cells:
        if cell.cell_type == "markdown" and "What to see" in cell.source:
            waiting = None
        elif cell.cell_type == "code" and "run.figure(" in cell.source:
            assert waiting is None, f"no What to see after:\n{waiting}"
            waiting = cell.source
    assert waiting is None, f"no What to see after:\n{waiting}"


@each_notebook
def test_artifacts_are_those_declared(path):
    assert written(path) == set(manifest()[path.stem].artifacts)


# The corpora and backbones that parameters can name; random weights (nano, tiny-random, base) need no declaration.
CORPORA = {"queen", "unlabelled", "asc_digits", "emodb", "speechocean"}
BACKBONES = {"tiny", "tiny-distilled", "tiny-ctc"}
CORPUS_OF_TASK = {"digit": "asc_digits", "speaker": "speechocean", "emotion": "emodb"}


def named(values: dict) -> set:
    """Return all texts in the values of parameters, inside lists as well."""
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    return {value for parts in lists for value in parts if isinstance(value, str)}


@each_notebook
def test_profiles_declare_the_corpora_and_backbones_that_their_parameters_name(path):
    notebook = manifest()[path.stem]
    [cell] = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    defaults = {node.targets[0].id: ast.literal_eval(node.value) for node in parsed(cell.source).body}
    for name, profile in notebook.profiles.items():
        values = named({**defaults, **profile.parameters})
        corpora = values & CORPORA
        reads_cells = name == "default" and profile.parameters.get("rounds") == 0  # published ones need no speech
        if "corpora" not in defaults and not reads_cells:  # else the notebook names the corpus of each task itself
            corpora |= {CORPUS_OF_TASK[task] for task in values & set(CORPUS_OF_TASK)}
        assert corpora <= set(notebook.data_in(name)), f"data of profile {name}"
        assert values & BACKBONES <= set(notebook.backbones_in(name)), f"backbones of profile {name}"
