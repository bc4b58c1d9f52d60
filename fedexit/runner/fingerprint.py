"""What a notebook's results depend on, as hashes that can be compared and named.

The components of a fingerprint are {section: {key: value}}: the code cells (no markdown, no outputs), the parameters,
the fedexit modules the notebook reaches, the artifacts it reads of other notebooks, the backbones, the corpora and a
few versions.
"""

import ast
import hashlib
import json
import re
from functools import cache
from importlib import metadata
from pathlib import Path

from fedexit.data import places
from fedexit.runner.manifest import Notebook
from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash, weights_hash
from fedexit.support.paths import backbones_dir

PACKAGE = Path(__file__).parent
# The machinery that runs notebooks, and the lazy export table, decide no number.
NOT_PART = {"__init__", "__main__", "cli", "execution", "fingerprint", "manifest", "runner"}
VERSIONS = ("numpy", "scikit-learn", "torch", "torchaudio", "transformers")
# How a difference in each section is said; {key} alone when nothing more is useful than "it changed".
PHRASES = {
    "code": "{key} changed",
    "parameters": "parameter {key}: {old} -> {new}",
    "modules": "module {key} changed",
    "needs": "{key} changed",
    "backbones": "backbone {key} changed",
    "data": "corpus {key} changed",
    "versions": "{key} {old} -> {new}",
}


def components(notebook: Notebook, parameters: dict, results: Path) -> dict[str, dict]:
    """Everything the results of `notebook` depend on; `results` is the profile's folder of finished results.

    Raises FedexitError when the notebook cannot be read or a corpus is not there.
    """
    code = notebook_code(notebook.path)
    return {
        "code": {"code cells": hashlib.sha256("\n\n".join(code).encode()).hexdigest()},
        "parameters": parameters,
        "modules": {name: module_hash(name, PACKAGE) for name in module_closure("\n".join(code), PACKAGE)},
        "needs": {name: file_hash(results / name) for name in notebook.reads},
        "backbones": {name: weights_hash(backbones_dir() / name) for name in notebook.backbones},
        "data": {name: corpus_checksum(name) for name in notebook.data},
        "versions": {name: version(name) for name in VERSIONS},
    }


def differences(old: dict[str, dict], new: dict[str, dict]) -> list[str]:
    """Phrases that name what changed from `old` to `new` components; empty when nothing did."""
    phrases = []
    for section, phrase in PHRASES.items():
        before, after = old.get(section, {}), new[section]
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key) or (key in before) != (key in after):
                values = {"old": before.get(key, "none"), "new": after.get(key, "none")}
                phrases.append(phrase.format(key=key, **values))
    return phrases


def key_of(parts: dict[str, dict]) -> str:
    """Short name of a fingerprint, for the folder of checkpoints that belong to it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def version(package: str) -> str:
    """Installed version, read without importing the package, or "none"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


@cache
def corpus_checksum(name: str) -> str:
    """Checksum of a corpus. Raises FedexitError when it is not there."""
    return places.corpus_checksum(name)


def notebook_code(path: Path) -> list[str]:
    """Sources of the code cells of a notebook file. Raises FedexitError when it is not one."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise FedexitError(f"{path.name} is not a notebook (format 4); open it in JupyterLab and save it") from None


def module_closure(code: str, package: Path) -> list[str]:
    """Names of the modules of `package` that `code` reaches, directly or through other modules, sorted.

    A folder of modules counts as one module. Static: imports anywhere in the source count, also those inside
    functions; names computed at run time do not.
    Lines of IPython magic are skipped. Raises FedexitError on code that is not Python.
    """
    found: set[str] = set()
    waiting = _imported(re.sub(r"(?m)^\s*(%%?[a-z]|!).*$", "", code), package)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting |= _imported(_source(module, package).decode(), package)
    return sorted(found)


def module_hash(module: str, package: Path) -> str:
    """SHA-256 over a module's source and the package's data files or folders that it names in a string."""
    source = _source(module, package)
    digest = hashlib.sha256(source)
    strings = {str(node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    for name in sorted(text for text in strings if re.fullmatch(r"\w[\w.-]*", text)):
        for file in [package / name, *sorted((package / name).glob("*.csv"))]:
            if file.is_file():
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _files(module: str, package: Path) -> list[Path]:
    """The file of a module, or all files of a folder of modules; none if there is no such module."""
    file = package / f"{module}.py"
    return [file] if file.is_file() else sorted((package / module).glob("*.py"))


def _source(module: str, package: Path) -> bytes:
    return b"\n".join(file.read_bytes() for file in _files(module, package))


def _imported(code: str, package: Path) -> set[str]:
    """Modules of the package imported by one source: `import fedexit`, `from fedexit import x`, `from .x import y`."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError as error:
        raise FedexitError(f"a code cell is not Python: {error.msg}: {(error.text or '').strip()}") from None
    names, aliases = set(), set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            source = "fedexit" + (f".{node.module}" if node.module else "") if node.level else node.module
            names |= {f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            aliases |= {alias.asname or "fedexit" for alias in node.names if alias.name == "fedexit"}
    for node in nodes:  # `import fedexit as fx` ... `fx.aggregate(...)`
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            names.add(f"fedexit.{node.attr}")
    exports = _exports(package)
    parts = {name.split(".")[1] for name in names if name.startswith("fedexit.")}
    modules = {exports.get(part, part).removeprefix("fedexit.") for part in parts} - NOT_PART
    return {module for module in modules if _files(module, package)}


@cache
def _exports(package: Path) -> dict[str, str]:
    """The lazy export table of `__init__.py`: public name -> module."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_EXPORTS":
            return ast.literal_eval(node.value)
    return {}
