"""Compare the packages of this environment with requirements.hashes (`make audit`), and list them (`make sbom`).

python .ci/supply.py audit         name and version of every package, and the files of each
python .ci/supply.py index FILE    requirements.hashes against FILE, which `make audit` makes anew from the index
python .ci/supply.py sbom FILE     write the packages with versions, licences and needs as CycloneDX JSON
"""

import base64
import hashlib
import json
import re
import sys
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HASHES = Path(__file__).parents[1] / "requirements.hashes"
NOT_LOCKED = {"fedexit", "pip"}
UNKNOWN = {"", "unknown", "none"}


def locked(file: Path = HASHES) -> dict[tuple[str, str], tuple[Marker | None, set[str]]]:
    """Return {(name, version): (marker, hashes)} of a file of pins with hashes."""
    pins = {}
    for entry in re.split(r"\n(?=\S)", file.read_text(encoding="utf-8").replace("\\\n", "")):
        if entry and not entry.startswith("#"):
            need, *hashes = entry.split("--hash=")
            pin = Requirement(need)
            version = str(pin.specifier).removeprefix("==")
            pins[canonicalize_name(pin.name), version] = pin.marker, {one.strip() for one in hashes}
    return pins


def installed(path: list[str] | None = None) -> dict[str, Distribution]:
    """Return the packages of this environment, or of the folders `path`, by name.

    `sys.path` is not asked: setuptools puts a folder with packages of its own into it.
    """
    folders = path or sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    return {canonicalize_name(one.metadata["Name"]): one for one in distributions(path=folders)}


def differences(found: dict[str, Distribution], pins: dict) -> list[str]:
    """Return what is not as locked: a package that is missing, has another version, is not listed, or was changed."""
    needed = {name: version for (name, version), (marker, _) in pins.items() if not marker or marker.evaluate()}
    said = [f"{name} {version} is missing" for name, version in needed.items() if name not in found]
    for name, one in found.items():
        if name in needed and one.version != needed[name]:
            said.append(f"{name} {one.version} is installed instead of {needed[name]}")
        elif name not in needed and name not in NOT_LOCKED:
            said.append(f"{name} {one.version} is not in requirements.hashes")
        said += [f"{name} {one.version}: {file} was changed or removed" for file in changed_files(one)]
    return sorted(said)


def changed_files(one: Distribution) -> list[str]:
    """Return the files of a package that differ from the hashes that its wheel came with."""
    changed = []
    for file in one.files or []:
        if file.hash and not str(file).endswith(".pyc"):
            path = Path(str(file.locate()))
            content = path.read_bytes() if path.is_file() else b""
            digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).rstrip(b"=").decode()
            if digest != file.hash.value:
                changed.append(str(file))
    return changed


def moved(pins: dict, fresh: dict) -> list[str]:
    """Return the pins of which the index no longer serves a file that was locked. New files are not a fault."""
    return sorted(
        f"{name} {version}: the index lacks {len(lost)} of {len(hashes)} locked files"
        for (name, version), (_, hashes) in pins.items()
        if (lost := hashes - fresh.get((name, version), (None, set()))[1])
    )


def licences(one: Distribution) -> list[dict]:
    """Return the licences of a package as CycloneDX has them: an SPDX expression, else names; none if it says none."""
    about = one.metadata
    if about.get("License-Expression"):
        return [{"expression": about["License-Expression"]}]
    lines = [line for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    names = [line.rpartition(" :: ")[2] for line in lines if not line.endswith(":: OSI Approved")]
    named = " ".join((about.get("License") or "").strip().partition("\n")[0].split())
    names = names or ([named] if named.lower() not in UNKNOWN else [])
    return [{"license": {"name": name}} for name in sorted(names)]


def sbom(found: dict[str, Distribution]) -> dict:
    """Return a bill of materials in CycloneDX 1.6; equal environments give equal bills, because no time is in it."""

    def reference(name: str) -> str:
        return f"pkg:pypi/{name}@{found[name].version}"

    def needs(name: str) -> list[str]:
        wanted = [Requirement(text) for text in found[name].requires or []]
        named = {canonicalize_name(one.name) for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})}
        return sorted(reference(one) for one in named if one in found)

    components = [
        {"type": "library", "bom-ref": reference(name), "name": one.metadata["Name"], "version": one.version}
        | {"purl": reference(name), "licenses": licences(one)}
        for name, one in sorted(found.items())
    ]
    about = next((one for one in components if one["name"] == "fedexit"), None)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": about} if about else {},
        "components": [one for one in components if one is not about],
        "dependencies": [{"ref": reference(name), "dependsOn": needs(name)} for name in sorted(found)],
    }


def main(command: str, file: str = "") -> int:
    """Run a command; return 1 if something is not as locked."""
    found, pins = installed(), locked()
    if command == "sbom":
        bill = sbom(found)
        Path(file).write_text(json.dumps(bill, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        silent = [one["name"] for one in bill["components"] if not one["licenses"]]
        print(f"{file}: {len(bill['components'])} packages; without a licence: {', '.join(silent) or 'none'}")
        return 0
    said = differences(found, pins) if command == "audit" else moved(pins, locked(Path(file)))
    for line in said:
        print(f"audit: {line}", file=sys.stderr)
    what = "packages are as locked" if command == "audit" else "locked releases are served unchanged by the index"
    print(
        f"audit: {len(said)} differences" if said else f"audit: all {len(found if command == 'audit' else pins)} {what}"
    )
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
