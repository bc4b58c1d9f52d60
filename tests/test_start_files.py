"""Test the start files of Binder, Codespaces and Colab, whose reading tier lacks PyTorch."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"no module named {{name!r}} in the reading tier", name=name)

sys.meta_path.insert(0, Missing())
from fedexit.cli import main
calls = (["table", "1"], ["table", "22_audit/best", "--format", "tex"], ["figure"], ["figure", "1", "--out", {out!r}])
assert [main(call) for call in calls] == [0] * len(calls)
"""


def reading_tier() -> list[Requirement]:
    lines = (ROOT / ".binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "-c ../requirements.lock" in lines
    return [Requirement(line) for line in lines if not line.startswith(("#", "-c"))]


def declared() -> list[Requirement]:
    """Return all requirements of the package and of its usual extras, but those of `all` itself."""
    extras = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [t for name in extras if name != "all" for t in extras[name]]
    return [Requirement(text) for text in texts]


def test_reading_tier_is_a_part_of_the_package_without_torch():
    tier = {str(need) for need in reading_tier()}
    assert tier <= {str(need) for need in declared()} and not any("torch" in need for need in tier)


def test_figures_and_tables_need_only_the_reading_tier(tmp_path):
    lacking = {need.name.lower() for need in declared()} - {need.name.lower() for need in reading_tier()}
    missing = {m for m, owners in packages_distributions().items() if {name.lower() for name in owners} & lacking}
    assert {"torch", "transformers", "papermill", "sklearn"} <= missing
    code = WITHOUT.format(missing=missing, out=str(tmp_path / "a.svg"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.svg").exists()


def test_start_files_use_what_is_there():
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    commands = [(ROOT / ".binder" / "postBuild").read_text(encoding="utf-8")]
    assert os.access(ROOT / ".binder" / "postBuild", os.X_OK)
    for file in sorted((ROOT / ".devcontainer").glob("*/devcontainer.json")):
        commands.append(json.loads(file.read_text(encoding="utf-8"))["postCreateCommand"])
    cells = json.loads((ROOT / "docs" / "colab.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    commands += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = "\n".join(commands)
    assert {target for line in re.findall(r"\bmake ([^&\n]+)", text) for target in line.split()} <= {*targets}
    assert all((ROOT / name).exists() for name in re.findall(r"-r (\S+)", text))
    extras = {name for group in re.findall(r"\.\[([\w,]+)\]", text) for name in group.split(",")}
    assert extras and extras <= {*PROJECT["optional-dependencies"]}
