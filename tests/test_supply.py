"""Test the lock with hashes, the audit of installed packages and the bill of materials."""

import base64
import hashlib
import importlib.util
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import setuptools
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("supply", ROOT / ".ci" / "supply.py")
supply = importlib.util.module_from_spec(spec)
spec.loader.exec_module(supply)

LINUX = {"sys_platform": "linux", "os_name": "posix"}
HERE = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()


def install(folder: Path, name: str, release: str, *about: str) -> None:
    """Write what pip leaves of a package of one module."""
    module, info = folder / f"{name}.py", folder / f"{name}-{release}.dist-info"
    info.mkdir(parents=True)
    module.write_text("answer = 1\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(module.read_bytes()).digest()).rstrip(b"=").decode()
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {release}", *about]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "RECORD").write_text(f"{name}.py,sha256={digest},11\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


@pytest.fixture
def pins(tmp_path) -> dict:
    file = tmp_path / "requirements.hashes"
    file.write_text(
        "one==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "Two_B==2.0 ; python_version >= '3' \\\n    --hash=sha256:cc\n"
        "other==3.0 ; sys_platform == 'none' \\\n    --hash=sha256:dd\n"
    )
    return supply.locked(file)


def test_the_audit_names_every_difference(tmp_path, pins):
    for name, release in (("one", "1.0"), ("two_b", "2.0"), ("fedexit", "0")):
        install(tmp_path, name, release)
    assert supply.differences(supply.installed([str(tmp_path)]), pins) == []
    (tmp_path / "two_b.py").write_text("answer = 2\n")
    (tmp_path / "one-1.0.dist-info" / "METADATA").write_text("Name: one\nVersion: 1.1\n")
    install(tmp_path, "surplus", "4.0")
    (tmp_path / "surplus.py").unlink()
    assert supply.differences(supply.installed([str(tmp_path)]), pins) == [
        "one 1.1 is installed instead of 1.0",
        "surplus 4.0 is not in requirements.hashes",
        "surplus 4.0: surplus.py was changed or removed",
        "two-b 2.0: two_b.py was changed or removed",
    ]
    assert supply.differences({}, pins) == ["one 1.0 is missing", "two-b 2.0 is missing"]


def test_a_file_that_the_index_replaced_is_named_and_a_new_one_is_not(pins):
    fresh = {key: (marker, hashes | {"sha256:new"}) for key, (marker, hashes) in pins.items()}
    assert supply.moved(pins, fresh) == []
    fresh["one", "1.0"] = (None, {"sha256:aa", "sha256:evil"})
    del fresh["two-b", "2.0"]
    assert supply.moved(pins, fresh) == [
        "one 1.0: the index lacks 1 of 2 locked files",
        "two-b 2.0: the index lacks 1 of 1 locked files",
    ]


def test_the_bill_names_licences_and_needs(tmp_path):
    install(
        tmp_path, "one", "1.0", "License-Expression: MIT OR Apache-2.0", "Requires-Dist: Two.B>1", "Requires-Dist: x"
    )
    install(tmp_path, "two_b", "2.0", "Classifier: License :: OSI Approved :: BSD License", "License: long\n  text")
    install(tmp_path, "three", "3.0", "License: UNKNOWN", 'Requires-Dist: one; extra == "all"')
    install(tmp_path, "fedexit", "0.1", "License: MIT")
    bill = supply.sbom(supply.installed([str(tmp_path)]))
    assert bill["metadata"]["component"]["purl"] == "pkg:pypi/fedexit@0.1"
    assert {one["name"]: one["licenses"] for one in bill["components"]} == {
        "one": [{"expression": "MIT OR Apache-2.0"}],
        "three": [],
        "two_b": [{"license": {"name": "BSD License"}}],
    }
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert needs["pkg:pypi/one@1.0"] == ["pkg:pypi/two-b@2.0"] and needs["pkg:pypi/three@3.0"] == []


def test_the_command_writes_a_bill_of_this_environment(tmp_path, capsys):
    assert supply.main("sbom", str(tmp_path / "sbom.json")) == 0
    bill = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    named = {canonicalize_name(one["name"]): one for one in bill["components"]}
    assert named["torch"]["version"] == version("torch") and named["torch"]["licenses"]
    assert f"{len(named)} packages" in capsys.readouterr().out


def test_hashes_are_those_of_the_lock():
    """The lock pins what Linux needs, so packages of other systems are in the other file alone: run `make hashes`."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    lock = {canonicalize_name(name): own for name, own in (line.split("==") for line in lines if line[0] != "#")}
    pins = supply.locked()
    assert len(pins) > 100
    for (name, own), (marker, hashes) in pins.items():
        assert name not in lock or lock[name] == own, f"{name}: run make hashes"
        assert name in lock or (marker and not marker.evaluate(LINUX)), f"{name} is not in the lock"
        assert hashes and all(len(one) == 71 and one.startswith("sha256:") for one in hashes), name


def test_packages_inside_of_setuptools_are_not_those_of_the_environment(monkeypatch):
    before = {name: one.version for name, one in supply.installed().items()}
    monkeypatch.syspath_prepend(str(Path(setuptools.__file__).parent / "_vendor"))
    assert {name: one.version for name, one in supply.installed().items()} == before


@pytest.mark.skipif(not HERE or "CI" not in os.environ, reason="only CI's own .venv must be exactly as locked")
def test_the_environment_of_ci_is_as_locked():
    assert supply.differences(supply.installed(), supply.locked()) == []
