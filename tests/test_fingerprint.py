"""Which modules a notebook reaches, and how a difference is said."""

import json

import pytest

from fedexit.runner.fingerprint import PACKAGE, PHRASES, differences, key_of, module_closure, module_hash, notebook_code
from fedexit.support.errors import FedexitError


@pytest.fixture
def package(tmp_path):
    """A package with the lazy export table, relative and inner imports, and a data file."""
    sources = {
        "__init__": '_EXPORTS = {"aggregate": "fedexit.averaging"}',
        "averaging": "from fedexit.names import layer\n",
        "names": "",
        "training": "def local():\n    from .averaging import aggregate\n",
        "paper": 'from . import names\nTABLE = "published"\n',
        "cli": "import fedexit.training",
    }
    folder = tmp_path / "fedexit"
    (folder / "published").mkdir(parents=True)
    (folder / "published/table1.csv").write_text("a\n1\n")
    (folder / "jobs").mkdir()
    (folder / "jobs/__init__.py").write_text("from fedexit.jobs.one import job\n")
    (folder / "jobs/one.py").write_text("from fedexit.training import local\n")
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import fedexit\nfedexit.aggregate()", ["averaging", "names"]),
        ("import fedexit as fx\nfx.paper.TABLE", ["names", "paper"]),
        ("from fedexit import aggregate, names", ["averaging", "names"]),
        ("%matplotlib inline\nfrom fedexit.names import layer", ["names"]),
        ("import fedexit.training as t", ["averaging", "names", "training"]),
        ("from fedexit.jobs import job", ["averaging", "jobs", "names", "training"]),
        ("from fedexit.jobs.one import job", ["averaging", "jobs", "names", "training"]),
        ("from fedexit import published", []),
        ("import fedexit\nfrom fedexit import cli\nimport numpy", []),
        ("total = (1\n    % 2)", []),
    ],
)
def test_closure(package, code, modules):
    assert module_closure(code, package) == modules


def test_code_that_is_not_python_is_named(package):
    with pytest.raises(FedexitError, match=r"a code cell is not Python: .*: for"):
        module_closure("for", package)


def test_module_hash_covers_source_and_named_data(package):
    before = module_hash("paper", package)
    assert module_hash("paper", package) == before
    (package / "published/table1.csv").write_text("a\n2\n")
    assert module_hash("paper", package) != before
    assert module_hash("names", package) != module_hash("averaging", package)
    before = module_hash("jobs", package)
    (package / "jobs/one.py").write_text("")
    assert module_hash("jobs", package) != before


def test_every_task_counts_where_one_is_used():
    assert {"tasks", "corpora", "ctc", "clients"} <= set(
        module_closure("from fedexit.data.tasks import make_task", PACKAGE)
    )


def test_only_code_cells_count(tmp_path):
    path = tmp_path / "n.ipynb"
    cells = [
        {"cell_type": "markdown", "source": ["text"]},
        {"cell_type": "code", "source": ["a\n", "b"], "outputs": [1]},
    ]
    path.write_text(json.dumps({"cells": cells}))
    assert notebook_code(path) == ["a\nb"]
    path.write_text("<<<<<<< HEAD")
    with pytest.raises(FedexitError, match=r"n.ipynb is not a notebook"):
        notebook_code(path)


def test_differences_are_said_by_name():
    empty = {section: {} for section in PHRASES}
    old = empty | {
        "parameters": {"rounds": 20, "gone": 1},
        "modules": {"aggregation": "a", "exits": "b"},
        "versions": {"torch": "2.9"},
    }
    new = empty | {
        "parameters": {"rounds": 30, "flag": None},
        "modules": {"aggregation": "c", "exits": "b"},
        "backbones": {"tiny": "d"},
        "versions": {"torch": "2.14"},
    }
    assert differences(old, old) == []
    assert differences(old, new) == [
        "parameter flag: none -> None",
        "parameter gone: 1 -> none",
        "parameter rounds: 20 -> 30",
        "module aggregation changed",
        "backbone tiny changed",
        "torch 2.9 -> 2.14",
    ]
    assert key_of(old) != key_of(new) and key_of(old) == key_of(json.loads(json.dumps(old)))
