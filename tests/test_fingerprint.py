"""Test which modules a notebook reaches, what changes their hash, and how a difference is described."""

import json
import sys
from itertools import count

import pytest

from fedexit.runner import fingerprint
from fedexit.runner.fingerprint import (
    PHRASES,
    cells_tree,
    closure,
    code_hash,
    differences,
    key_of,
    module_hash,
    modules_named,
    notebook_code,
)
from fedexit.support.errors import FedexitError

NUMBER = count()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package under a new name with the lazy export table, floors, imports of every kind and data files."""
    name = f"small{next(NUMBER)}"
    sources = {
        "__init__": f'_EXPORTS = {{"aggregate": "{name}.federated.averaging"}}',
        "federated/__init__": "",
        "federated/averaging": f"from {name}.names import layer\nfrom {name}.support.errors import Error\n",
        "names": "",
        "training": "def local():\n    from .federated.averaging import aggregate\n",
        "typed": f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {name}.training\n",
        "lazy": f"def run():\n    import {name} as fx\n    return fx.aggregate()\n",
        "paper": 'from . import names\nTABLE = "published"\n',
        "jobs/__init__": f"from {name}.jobs.one import job\n",
        "jobs/one": f"from {name}.training import local\n",
        "jobs/two": "",
        "support/__init__": "",
        "support/errors": f"from {name} import paper\n",
        "cli": f"import {name}.training",
    }
    folder = tmp_path / name
    for module, source in sources.items():
        (folder / module).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{module}.py").write_text(source)
    (folder / "published").mkdir()
    (folder / "published/table1.csv").write_text("a\n1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


AVERAGING = ["federated", "federated.averaging", "names"]


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import fedexit\nfedexit.aggregate()", AVERAGING),
        ("import fedexit as fx\nfx.paper.TABLE", ["names", "paper"]),
        ("from fedexit import aggregate, names", AVERAGING),
        ("from fedexit import *", AVERAGING),
        ("import fedexit.federated.averaging", AVERAGING),
        ("from fedexit import federated as f\nf.averaging.x()", AVERAGING),
        ("def late():\n    import fedexit\n    return fedexit.aggregate", AVERAGING),
        ("%matplotlib inline\nfrom fedexit.names import layer", ["names"]),
        ("%%time\nfrom fedexit.names import layer", ["names"]),
        ("%%bash\nfrom fedexit import", []),
        ("files = !ls", []),
        ("import fedexit.training as t", [*AVERAGING, "training"]),
        ("from fedexit.jobs import job", [*AVERAGING, "jobs", "jobs.one", "training"]),
        ("from fedexit.jobs.two import job", [*AVERAGING, "jobs", "jobs.one", "jobs.two", "training"]),
        ("import fedexit.lazy", [*AVERAGING, "lazy"]),
        ("import fedexit.typed", ["typed"]),
        ("from fedexit import published, nothing", []),
        ("import fedexit\nfrom fedexit import cli\nimport numpy", []),
        ("from fedexit.support.errors import Error", ["support"]),
        ("total = (1\n    % 2)", []),
    ],
)
def test_closure(package, code, modules):
    name = package.name
    found = closure(modules_named(cells_tree([code.replace("fedexit", name)]), name))
    assert [module.removeprefix(f"{name}.") for module in found] == sorted(modules)


def test_code_that_is_not_python_is_named():
    with pytest.raises(FedexitError, match=r"a code cell is not Python \(.*\): for; fix it"):
        cells_tree(["x = 1", "for"])


def hash_of(package, source):
    """Return the hash of module `paper` with a new source."""
    (package / "paper.py").write_text(source)
    module_hash.cache_clear()
    return module_hash(f"{package.name}.paper")


def test_comments_docstrings_and_layout_change_no_hash(package):
    before = hash_of(package, "def f(a=1):\n    return a\n")
    documented = '"""Say so."""\n\n# a comment\ndef f(\n    a=1,  # one\n):\n    """Return a."""\n    return (a)\n'
    assert hash_of(package, documented) == before
    assert hash_of(package, documented.replace("Return a", "Give a")) == before


@pytest.mark.parametrize(
    "source",
    ["def f(a=2):\n    return a\n", "def f(a=True):\n    return a\n", "def f(a=1.0):\n    return a\n", "f = 1\n"],
)
def test_a_changed_default_changes_the_hash(package, source):
    assert hash_of(package, source) != hash_of(package, "def f(a=1):\n    return a\n")


def test_code_hash_covers_exactly_the_modules_that_a_module_reaches(package):
    def now():
        module_hash.cache_clear()
        fingerprint._graph.cache_clear()
        return code_hash(f"{package.name}.training")

    before = now()
    for quiet in ("support/errors", "cli", "jobs/one"):
        (package / f"{quiet}.py").write_text("X = 1\n")
    assert now() == before
    (package / "names.py").write_text("X = 1\n")
    changed = now()
    assert changed != before
    (package / "federated/averaging.py").write_text("")  # names is no longer reached
    assert now() not in (before, changed)


def test_named_data_changes_the_hash(package):
    source = 'TABLE = "published"\n'
    before = hash_of(package, source)
    (package / "published/table1.csv").write_text("a\n2\n")
    assert hash_of(package, source) != before
    before = hash_of(package, 'TABLE = "devices.csv"\n')
    (package / "devices.csv").write_text("a\n")
    assert hash_of(package, 'TABLE = "devices.csv"\n') != before


def test_every_uncounted_module_exists():
    place = fingerprint._file("fedexit").parent
    assert [name for name in fingerprint.NOT_COUNTED if not (place / f"{name.replace('.', '/')}.py").is_file()] == []


def test_every_task_counts_if_one_is_used():
    found = closure(modules_named(cells_tree(["from fedexit.data.tasks import make_task"])))
    assert {"fedexit.data.tasks", "fedexit.data.tasks.asr", "fedexit.data.corpora"} <= set(found)


def test_tables_that_decide_numbers_count():
    modules = closure(["fedexit.lab.cells"])
    assert {"fedexit.devices.profiles", "fedexit.federated.rounds", "fedexit.model.backbone"} <= set(modules)
    assert not any(module.endswith((".cli", ".errors", ".progress")) for module in modules)
    assert len(code_hash("fedexit.lab.cells")) == 64


def test_speed_options_are_no_part_of_the_code():
    def plain(code):
        return fingerprint._plain(cells_tree([code]))

    assert plain("workers = 2\nrounds = 3") == plain("workers = 4\nrounds = 3") != plain("workers = 2\nrounds = 4")


def test_only_code_cells_count(tmp_path):
    path = tmp_path / "n.ipynb"
    cells = [
        {"cell_type": "markdown", "source": ["text"]},
        {"cell_type": "code", "source": ["a\n", "b"], "outputs": [1]},
    ]
    path.write_text(json.dumps({"cells": cells}))
    assert notebook_code(path) == ["a\nb"]
    for damaged in ("<<<<<<< HEAD", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(FedexitError, match="the file is not a notebook"):
            notebook_code(path)


def test_differences_are_named():
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


def test_many_changed_modules_are_counted_and_some_are_named():
    empty = {section: {} for section in PHRASES}
    old, new = (empty | {"modules": dict.fromkeys("edcba", value)} for value in (1, 2))
    assert differences(old, new) == ["5 modules changed, a, b, c among them"]
