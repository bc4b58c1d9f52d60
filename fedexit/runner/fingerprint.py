"""Hash everything that the results of a notebook depend on, so that two states can be compared and named.

The components of a fingerprint are {section: {key: value}}: the code cells (no markdown, no outputs), the parameters,
the fedexit modules the notebook reaches, the artifacts it reads of other notebooks, the backbones, the corpora and a
few versions. Code is hashed as a normalised syntax tree, without comments and docstrings.
"""

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import grimp

from fedexit.data import places
from fedexit.runner.manifest import Notebook
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.files import file_hash, json_hash, weights_hash
from fedexit.support.paths import backbone_folders

# Modules that decide no number: the command line, the start of notebooks, messages and paths. The package's __init__.py
# does not count either. `fedexit.runner.results` does: it rounds what the tables hold.
NOT_COUNTED = (
    "__main__",
    "cli",
    "runner.cell_index",
    "runner.checks",
    "runner.execution",
    "runner.fingerprint",
    "runner.jobs",
    "runner.manifest",
    "runner.provenance",
    "runner.publish",
    "lab.readme",
    "runner.run",
    "runner.yaml_text",
    "support.errors",
    "support.files",
    "support.paths",
    "support.progress",
    "support.reads",
)
# Parameters that change only the speed of a notebook, not its results.
HOW_FAST = ("workers", "threads")
# Libraries that decide a number.
VERSIONS = (
    "datasets",
    "flashlight-text",
    "jiwer",
    "numpy",
    "pandas",
    "peft",
    "safetensors",
    "scikit-learn",
    "scipy",
    "soundfile",
    "torch",
    "torchaudio",
    "transformers",
)
# Descriptions of a difference in each section, with {key} alone where the values are hashes.
PHRASES = {
    "code": "{key} changed",
    "parameters": "parameter {key}: {old} -> {new}",
    "modules": "module {key} changed",
    "needs": "{key} changed",
    "backbones": "backbone {key} changed",
    "data": "corpus {key} changed",
    "versions": "{key} {old} -> {new}",
}
NAMED = 3  # modules that are named one by one; more are counted


def components(notebook: Notebook, profile: str, parameters: dict, results: Path) -> dict[str, dict]:
    """Return everything that the results of `notebook` depend on, except stored cells.

    Args:
        notebook: the notebook.
        profile: name of the profile, which may declare corpora and backbones of its own.
        parameters: values of its parameters, `profile` among them.
        results: the profile's folder of finished results.

    Raises:
        FedexitError: the notebook cannot be read or a corpus is missing.
    """
    try:
        tree = cells_tree(notebook_code(notebook.path))
    except FedexitError as error:
        raise FedexitError(f"{notebook.id}: {error}") from None
    return {
        "code": {"code cells": json_hash(_plain(tree))},
        "parameters": {name: value for name, value in parameters.items() if name not in HOW_FAST},
        "modules": {name: module_hash(name) for name in closure(modules_named(tree))},
        "needs": {name: file_hash(results / name) for name in notebook.reads},
        "backbones": {name: backbone_checksum(name) for name in notebook.backbones_in(profile)},
        "data": {name: corpus_checksum(name) for name in notebook.data_in(profile)},
        "versions": {name: version(name) for name in VERSIONS},
    }


def differences(old: dict[str, dict], new: dict[str, dict]) -> list[str]:
    """Return phrases that name what changed from `old` to `new` components; empty when nothing did."""
    phrases = []
    for section, phrase in PHRASES.items():
        before, after = old.get(section, {}), new[section]
        keys = [
            key
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key) or (key in before) != (key in after)
        ]
        if section == "modules" and len(keys) > NAMED:
            phrases.append(f"{len(keys)} modules changed, {', '.join(keys[:NAMED])} among them")
            continue
        values = {key: {"old": before.get(key, "none"), "new": after.get(key, "none")} for key in keys}
        phrases += [phrase.format(key=key, **values[key]) for key in keys]
    return phrases


def key_of(parts: dict[str, dict]) -> str:
    """Return a short name of a fingerprint, for the folder of checkpoints that belong to it."""
    return json_hash(parts)[:16]


@cache
def version(package: str) -> str:
    """Return the installed version, read without importing the package, or "none"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def corpus_checksum(name: str) -> str:
    """Return the checksum of a corpus. Raise FedexitError when it is not there."""
    return _checksum(places.corpus_checksum, name)


def backbone_checksum(name: str) -> str:
    """Return the hash of the weights of the backbone `name` (`backbone_folders`), or "missing"."""
    folder = backbone_folders().get(name)
    return _checksum(weights_hash, folder) if folder else "missing"


@cache
def _checksum(of: Callable[[Any], str], what: Path | str) -> str:
    """Return the checksum of a corpus or folder, computed once: notebooks share corpora and backbones."""
    return of(what)


def notebook_code(path: Path) -> list[str]:
    """Return the sources of the code cells of a notebook file. Raise FedexitError when it is not a notebook."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FedexitError("the file is not a notebook (format 4); open it in JupyterLab and save it") from None


def code_hash(module: str) -> str:
    """Return the hash of the dotted `module` and of every module of its package that it reaches.

    Comments, docstrings and the modules of `NOT_COUNTED` change nothing; a default value or a data file does.
    """
    return json_hash({name: module_hash(name) for name in closure([module])})


def closure(modules: Sequence[str]) -> list[str]:
    """Return the dotted names of `modules` and of all that they import, directly or through others, sorted.

    Imports anywhere in the source count, also those inside functions. Names computed at run time do not count, nor do
    imports for type checking and the modules of `NOT_COUNTED`.
    """
    found: set[str] = set()
    for module in modules:
        graph = _graph(module.partition(".")[0])
        if module in graph.modules:
            found |= {module, *graph.find_upstream_modules(module)}
    return sorted(found)


@cache
def module_hash(module: str) -> str:
    """Return the hash of a module's syntax tree and of the CSV files beside it that it names in a string."""
    file = _file(module)
    tree = ast.parse(file.read_bytes())
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    tables = [file.parent / name for name in names if name.endswith(".csv")]
    tables += [table for name in names if name.isidentifier() for table in (file.parent / name).glob("*.csv")]
    return json_hash([_plain(tree), sorted((table.name, file_hash(table)) for table in tables if table.is_file())])


def cells_tree(cells: Sequence[str]) -> ast.Module:
    """Return one syntax tree of all code cells, without assignments to the names of `HOW_FAST`.

    Raises:
        FedexitError: a cell is not Python; magics are understood.
    """
    statements = [statement for cell in cells for statement in _statements(cell)]
    return ast.Module([statement for statement in statements if not _sets_how_fast(statement)], [])


def modules_named(tree: ast.Module, package: str = "fedexit") -> list[str]:
    """Return the dotted names of the modules of `package` that a tree imports or uses, sorted.

    A name that the package exports lazily (`fedexit.aggregate`) counts as the module of its definition.
    """
    return sorted(_resolved(tree, package, _graph(package).modules))


def _resolved(tree: ast.Module, package: str, modules: set[str]) -> set[str]:
    exports = getattr(import_module(package), "_EXPORTS", {})
    found: set[str] = set()
    for name in _dotted_names(tree, package):
        first, *rest = name.split(".")
        if first != package or not rest:
            continue
        if rest == ["*"]:
            found |= set(exports.values())
        elif rest[0] in exports:
            found.add(exports[rest[0]])
        else:  # the longest beginning that is a module: the rest are names in it
            prefixes = [".".join([first, *rest[:length]]) for length in range(1, len(rest) + 1)]
            found |= set([prefix for prefix in prefixes if prefix in modules][-1:])
    return found


def _dotted_names(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield full names of what is imported, and of attributes of it: `import fedexit as fx` ... `fx.aggregate`."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = f"{package}.{node.module or ''}".rstrip(".") if node.level else node.module
            bound |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            bound |= {alias.asname: alias.name for alias in node.names if alias.asname}
            bound |= {name: name for name in (alias.name.partition(".")[0] for alias in node.names)}
            yield from (alias.name for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in bound:
                yield f"{bound[first]}.{rest}"


def _statements(cell: str) -> list[ast.stmt]:
    with suppress(SyntaxError):
        return ast.parse(cell).body
    with extra("notebooks"):
        from IPython.core.inputtransformer2 import TransformerManager  # only cells with magics need it

    try:
        found = ast.parse(TransformerManager().transform_cell(cell)).body
    except SyntaxError as error:
        raise FedexitError(f"a code cell is not Python ({error.msg}): {(error.text or '').strip()}; fix it") from None
    if cell.lstrip().startswith("%%"):  # the rest of such a cell may be Python or not
        with suppress(FedexitError):
            found += _statements(cell.lstrip().partition("\n")[2])
    return found


def _sets_how_fast(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id in HOW_FAST for target in statement.targets
    )


def _plain(node: object) -> object:
    """Return a syntax tree as lists of texts: no positions, no comments, no docstrings, the same in every Python."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *([name, _plain(value)] for name, value in fields)]
    if isinstance(node, list):
        return [_plain(part) for part in node if not _is_text_alone(part)]
    return repr(node)


def _is_text_alone(node: object) -> bool:
    """Return whether a statement is only a string, as docstrings are."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _file(module: str) -> Path:
    """Return the source file of a dotted module. Only its top-level package is imported."""
    package, *rest = module.split(".")
    place = Path(import_module(package).__path__[0]).joinpath(*rest)
    return place / "__init__.py" if place.is_dir() else place.with_name(f"{place.name}.py")


@cache
def _graph(package: str) -> grimp.ImportGraph:
    """Return the graph of imports between the modules of `package` that count; a module needs its parent packages."""
    try:
        graph = grimp.build_graph(package, cache_dir=None, exclude_type_checking_imports=True)
    except grimp.exceptions.SourceSyntaxError as error:
        raise FedexitError(f"a module of {package} is not Python: {error}") from None
    for module in graph.find_modules_that_directly_import(package):  # `from fedexit import aggregate`
        for imported in _resolved(ast.parse(_file(module).read_bytes()), package, graph.modules):
            graph.add_import(importer=module, imported=imported)
        graph.remove_import(importer=module, imported=package)
    for module in graph.modules & {f"{package}.{name}" for name in NOT_COUNTED}:
        graph.remove_module(module)
    for module in graph.modules:
        parent = module.rpartition(".")[0]
        if parent and parent != package:
            graph.add_import(importer=module, imported=parent)
    return graph
