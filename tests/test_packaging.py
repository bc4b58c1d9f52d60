"""Test what is installed: a wheel with all files, a core that needs no extra, and a reference that is up to date."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedexit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
# Only these need an extra. Whatever trains, federates, saves, loads, predicts or reads a corpus needs none.
NEEDS_NOTEBOOKS = {
    *("bench.report", "bench.suite", "runner.cell_index", "runner.provenance", "runner.publish", "runner.run"),
    *(
        "lab.diagram",
        "lab.drawing",
        "lab.experiments",
        "lab.figures",
        "lab.figures_basics",
        "lab.figures_devices",
        "lab.figures_faults",
        "lab.figures_fleet",
        "lab.figures_listen",
        "lab.grid",
        "lab.looks",
        "lab.paper_costs",
        "lab.open_choices",
        "lab.paper_profile",
        "lab.plots",
        "lab.published",
        "lab.spot_checks",
    ),
}
NEEDS_FLOWER = {f"flower.{name}" for name in ("app", "certificates", "client", "server", "wire")}
COMMANDS = ["run", "status", "publish x", "bench depth", "cells list", "cells check"]


def built(hook: str, source: Path, out: Path) -> Path:
    """Build a wheel or an sdist of the tree `source` with the build backend of the project, without a network."""
    command = [sys.executable, "-c", BUILD, hook, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> dict[str, Path]:
    """Return a wheel of the project, its sdist, and the wheel of that sdist."""
    place = tmp_path_factory.mktemp("distributions")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "fedexit", place / "tree" / "fedexit", ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "tree" / name)
    sdist = built("build_sdist", place / "tree", place)
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    [tree] = (place / "unpacked").iterdir()
    (place / "again").mkdir()
    return {
        "wheel": built("build_wheel", place / "tree", place),
        "sdist": sdist,
        "wheel of sdist": built("build_wheel", tree, place / "again"),
    }


def test_the_wheel_holds_every_file_of_the_package(distributions):
    own = {path for path in (ROOT / "fedexit").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix() for path in own}
    for kind in ("wheel", "wheel of sdist"):
        with zipfile.ZipFile(distributions[kind]) as wheel:
            held = {name for name in wheel.namelist() if not name.startswith("fedexit-")}
            assert held == expected, kind
            assert all(wheel.read(path.relative_to(ROOT).as_posix()) == path.read_bytes() for path in own), kind
    weights = {name.split("/")[2] for name in expected if name.endswith(".safetensors")}
    assert {"tiny", "tiny-distilled", "tiny-ctc"} <= weights
    assert {"fedexit/py.typed", "fedexit/devices/devices.csv", "fedexit/data/trial_lists/queen.csv"} <= expected


def test_the_wheel_states_the_core_and_the_extras(distributions):
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        [metadata] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA")]
    needs = [Requirement(text) for text in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)]
    core = {need.name for need in needs if "extra ==" not in str(need.marker)}
    assert core == {Requirement(text).name for text in PROJECT["dependencies"]}
    assert not core & {"jupyterlab", "ipywidgets", "papermill", "seaborn", "datasets", "jiwer", "pyarrow", "peft"}
    assert set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.M)) == {*PROJECT["optional-dependencies"]}


def closure(names: list[str]) -> set[str]:
    """Return the installed distributions that `names` need, with those themselves."""
    found, waiting = set(), [*names]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            needs = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        found.add(name)
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def without_extras() -> str:
    """Return code that hides every installed package which neither the core nor its dependencies need."""
    core = closure([Requirement(text).name for text in PROJECT["dependencies"]])
    hidden = {
        package
        for package, owners in packages_distributions().items()
        if not core & {canonicalize_name(owner) for owner in owners} and package.isidentifier()
    } - {"fedexit"}
    assert {"jupyterlab", "seaborn", "matplotlib", "datasets", "pyarrow", "jiwer"} <= hidden
    assert not hidden & {"torch", "numpy", "pandas", "transformers", "soundfile"}
    return f"""
import sys
from importlib.machinery import PathFinder
HIDDEN, true_find = {hidden!r}, PathFinder.find_spec
def find(name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else true_find(name, path, target)
PathFinder.find_spec = staticmethod(find)
"""


def test_the_core_needs_no_extra(tmp_path):
    code = (
        without_extras() + "import runpy; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = [str(ROOT / "tests" / "core_use.py"), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = dict(re.findall(r"^fedexit\.(\S+): \w+ is not installed; run: (.*)$", done.stdout, re.M))
    needs = dict.fromkeys(NEEDS_NOTEBOOKS, "notebooks") | dict.fromkeys(NEEDS_FLOWER, "flower")
    assert told == {module: f'pip install "fedexit[{extra}]"' for module, extra in needs.items()}


USES = """
from fedexit import cli, FedexitError, load_backbone, with_lora
from fedexit.model.metrics import all_rates
from fedexit.central.probes import ctc_probe
import pandas as pd
for line in COMMANDS:
    assert cli.main(line.split()) == 2, line
text = pd.DataFrame([(0, 3, "a", "b")], columns=["item", "exit", "predicted", "label"])
probe = lambda: ctc_probe([], [], ([], [], []), 1)
for use in (lambda: with_lora(load_backbone("nano")), lambda: all_rates(text), probe):
    try:
        use()
    except FedexitError as error:
        print(error, file=sys.stderr)
"""


def test_whatever_needs_an_extra_names_it_in_one_line(tmp_path):
    code = without_extras() + f"COMMANDS = {COMMANDS!r}" + USES
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = re.findall(r'^(?:fedexit: )?\w+ is not installed; run: pip install "fedexit\[(\w+)\]"$', done.stderr, re.M)
    assert said == ["notebooks"] * len(COMMANDS) + ["lora", "asr", "asr"] and len(done.stderr.splitlines()) == len(said)


def test_the_reference_is_up_to_date():
    pytest.importorskip("griffe", reason='griffelib is not installed: pip install "fedexit[dev]"')
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    page = make_api.PAGE.read_text(encoding="utf-8")
    assert make_api.page() == page, "run: make docs"
    assert all(f"\n## {name}\n" in page for name in fedexit._EXPORTS)
    assert "\n\n\n" not in re.sub(r"```.*?```", "code", page, flags=re.S), "a public name lacks its docstring"


def test_the_reference_has_the_present_docstrings():
    """This holds without griffelib: every line of the docstring of a public name is in the page."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name, module in fedexit._EXPORTS.items():
        tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
        found = [ast.get_docstring(node) for node in tree.body if getattr(node, "name", "") == name]
        assert all(line in page for text in found for line in text.splitlines()), f"{name}: run: make docs"


@pytest.mark.skipif("FEDEXIT_INSTALL" not in os.environ, reason="installs several GB; set FEDEXIT_INSTALL=1 to run it")
def test_the_sdist_works_in_a_clean_environment(distributions, tmp_path):
    """The network is needed, or a local index of packages that pip is set to."""
    venv.create(tmp_path / "venv", with_pip=True)
    [python] = [path for path in (tmp_path / "venv").glob("*/python*") if path.stem == "python"]
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "requirements.lock", distributions["sdist"]]
    done = subprocess.run(install, capture_output=True, text=True)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"pip reaches no index of packages: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    used = subprocess.run(
        [python, ROOT / "tests" / "core_use.py", tmp_path / "work"], cwd=tmp_path, capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    assert "seaborn" not in subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True).stdout
