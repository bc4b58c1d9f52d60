"""Read `nbs_ci.yml`, the one list of notebooks, and refuse everything that does not fit its format.

The format is that of the classes below, one field per line of `Notebook`, `Profile` and `Check`. An example:

    notebooks:                         # in the order they run; a notebook may only need earlier ones
      - id: 02_aggregation
        title: Averaging clients of different depth
        needs: [01_partition]
        data: [queen]
        artifacts: [tables/error.csv, tables/seconds.csv, figures/error_by_round.png, figures/error_by_round.csv]
        measured: [tables/seconds.csv]
        headline: tables/error.csv
        checks:
          - {table: tables/error.csv, columns: [method, value], min_rows: 4}
          - {table: tables/error.csv, query: value > 1, max_rows: 0}
        profiles:
          smoke: {minutes: 1, limit: 5, parameters: {rounds: 2}}
          default: {minutes: 6, limit: 30, parameters: {rounds: 20}, backbones: [tiny]}

YAML is read as version 1.2 does (`fedexit.runner.yaml_text`).
"""

import ast
import math
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from fedexit.runner.yaml_text import parse_yaml
from fedexit.support.errors import FedexitError, first_line

_LONGEST_QUERY = 1000  # characters; Python's parser fails on deep nesting
_RESERVED = {"bench", "cells", "interactive"}  # folders in results/ with other contents
_NAME = r"^[A-Za-z0-9_-]+$"
Name = Annotated[str, Field(pattern=_NAME)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Table = Annotated[str, Field(pattern=r"^tables/[A-Za-z0-9_-]+\.csv$")]
Artifact = Annotated[str, Field(pattern=r"^(tables/[A-Za-z0-9_-]+\.csv|figures/[A-Za-z0-9_-]+\.(png|csv))$")]
Minutes = Annotated[float, Field(gt=0, le=50_000, allow_inf_nan=False)]  # timers of some systems end at 49 days
Rows = Annotated[int, Field(ge=0)]


def _unique(names: list[str]) -> list[str]:
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{repeated[0]} is listed twice")
    return names


def _parameter_value(value: object) -> object:
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, str | int | float | None) or (isinstance(part, float) and not math.isfinite(part)):
            raise ValueError(f"{part!r:.100} does not fit: give a number, text, true, null or a list of these")
    return value


def _not_the_profile(name: str) -> str:
    if name == "profile":
        raise ValueError("the parameter profile is set by fedexit run; leave it out")
    return name


def check_query(query: str) -> str:
    """Return a query for `DataFrame.query` if it only compares columns with values, so that it cannot run code.

    Raises:
        ValueError: it is not an expression, or has `@`, `__`, a call, an attribute or anything else beside comparisons,
            arithmetic, `and`, `or`, `not` and `in`.
    """
    if len(query) > _LONGEST_QUERY:
        raise ValueError(f"the query has {len(query)} characters, and {_LONGEST_QUERY} are the most; shorten it")
    try:
        tree = ast.parse(query.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the query {query!r} is not an expression ({first_line(error)})") from None
    for node in ast.walk(tree):
        if not isinstance(node, _IN_QUERIES) or (isinstance(node, ast.Name) and "__" in node.id) or _repeats(node):
            part = ast.unparse(node) or type(node).__name__
            raise ValueError(f"the query {query!r} may only compare columns with values; take out {part}")
    return query


def _repeats(node: ast.AST) -> bool:
    """Return whether `node` is arithmetic with texts or lists, such as "a" * 10**9, which can fill the memory."""
    parts = (node.left, node.right) if isinstance(node, ast.BinOp) else ()
    return any(
        isinstance(part, ast.List | ast.Tuple)
        or (isinstance(part, ast.Constant) and isinstance(part.value, str | bytes))
        for part in parts
    )


_IN_QUERIES = (
    ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop, ast.BinOp, ast.Add,
    ast.Sub, ast.Mult, ast.Div, ast.Mod, ast.BitAnd, ast.BitOr, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Load,
)  # fmt: skip

Names = Annotated[list[Name], AfterValidator(_unique)]
Query = Annotated[str, AfterValidator(check_query)]
Parameter = Annotated[Identifier, AfterValidator(_not_the_profile)]
Value = Annotated[object, BeforeValidator(_parameter_value)]


class _Entry(BaseModel):
    """A part of nbs_ci.yml: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Check(_Entry):
    """A condition that a table meets in every profile.

    table: the table, `tables/<name>.csv`.
    columns: columns that it must have.
    query: as in `DataFrame.query`; the rows that it selects are counted (default: all rows).
    min_rows: least number of rows; 1 unless given, 0 if only `max_rows` is given.
    max_rows: largest number of rows.
    """

    table: Table
    columns: list[str] = []
    query: Query | None = None
    min_rows: Rows | None = None
    max_rows: Rows | None = None

    @model_validator(mode="after")
    def _can_be_met(self) -> "Check":
        if self.min_rows is not None and self.max_rows is not None and self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is above max_rows {self.max_rows}; correct one of them")
        return self


class Profile(_Entry):
    """Times, parameters and inputs of a notebook in one profile.

    minutes: expected time on two cores.
    limit: time in minutes after which the notebook is stopped.
    parameters: values for the cell tagged `parameters`, which must set each of these names, and `profile`.
    data: corpora that the notebook reads in this profile, beside those of the notebook.
    backbones: names of backbones (`backbone_folders`) that it loads in this profile, beside those of the notebook.
    optional: corpora that it may read, if its parameters say so; a run does not need them.
    package: a Python package that all of the results need. Where it is not installed, those that came with the project
        are kept.
    """

    minutes: Minutes
    limit: Minutes
    parameters: dict[Parameter, Value] = {}
    data: Names = []
    backbones: Names = []
    optional: Names = []
    package: Identifier | None = None


class Notebook(_Entry):
    """One entry of `nbs_ci.yml`.

    id: name of the file `notebooks/<id>.ipynb`.
    title: one line for the README.
    needs: earlier notebooks whose tables it reads.
    data: corpora that it reads in every profile.
    backbones: names of backbones (`backbone_folders`) that it loads in every profile.
    artifacts: all files that it writes; each figure comes with the CSV of what it plots.
    measured: artifacts that hold times or memory measured on the machine of the run, so that no two runs are equal.
    headline: a table that is printed in full at the end of every run.
    checks: conditions on its tables.
    profiles: the profiles that it runs in, by name.
    """

    id: Name
    title: Annotated[str, Field(min_length=1)]
    needs: Names = []
    data: Names = []
    backbones: Names = []
    artifacts: Annotated[list[Artifact], AfterValidator(_unique)]
    measured: Annotated[list[Artifact], AfterValidator(_unique)] = []
    headline: Table | None = None
    checks: list[Check] = []
    profiles: Annotated[dict[Name, Profile], Field(min_length=1)]
    _root: Path = PrivateAttr(Path())
    _reads: list[str] = PrivateAttr(default_factory=list)

    @property
    def path(self) -> Path:
        """Return the path of the source notebook."""
        return self._root / "notebooks" / f"{self.id}.ipynb"

    @property
    def reads(self) -> list[str]:
        """Return the tables and plotted data of its needs: `01_partition/tables/x.csv`."""
        return self._reads

    def data_in(self, profile: str) -> list[str]:
        """Return the declared corpora of a profile."""
        return sorted({*self.data, *self.profiles[profile].data})

    def backbones_in(self, profile: str) -> list[str]:
        """Return the declared backbones of a profile."""
        return sorted({*self.backbones, *self.profiles[profile].backbones})


class _Manifest(_Entry):
    notebooks: Annotated[list[Notebook], Field(min_length=1)]


def load_manifest(root: Path) -> list[Notebook]:
    """Return all notebooks of the project at `root`, in order.

    Raises:
        FedexitError: `nbs_ci.yml` breaks the format, a listed notebook has no file, or a file is not listed.
    """
    file = root / "nbs_ci.yml"
    if not file.is_file():
        raise FedexitError(f"no nbs_ci.yml in {root}; go to the project's folder or set FEDEXIT_ROOT to it")
    try:
        raw = parse_yaml(file.read_text(encoding="utf-8"), "nbs_ci.yml")
    except UnicodeDecodeError as error:
        raise FedexitError(f"nbs_ci.yml is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    try:
        notebooks = _Manifest.model_validate(raw).notebooks
    except ValidationError as error:
        raise FedexitError(_fault(error, raw)) from None
    by_id = {notebook.id: notebook for notebook in notebooks}
    for notebook in notebooks:
        needed = [by_id[need] for need in notebook.needs if need in by_id]
        notebook._root = root
        notebook._reads += [f"{other.id}/{name}" for other in needed for name in other.artifacts if name[-4:] == ".csv"]
    _check_files(notebooks, root / "notebooks")
    _check_folders(notebooks)
    _check_references(notebooks)
    return notebooks


def select(notebooks: list[Notebook], profile: str, ids: list[str]) -> list[Notebook]:
    """Return notebooks of `profile`, in order: all, or those named in `ids` and all that these need.

    Raises:
        FedexitError: an unknown profile or notebook, or a notebook that the profile does not have.
    """
    profiles = sorted({name for notebook in notebooks for name in notebook.profiles})
    if profile not in profiles:
        raise FedexitError(f"unknown profile {profile}; nbs_ci.yml has: {', '.join(profiles)}")
    by_id = {notebook.id: notebook for notebook in notebooks}
    for name in ids:
        if name not in by_id:
            raise FedexitError(f"unknown notebook {name}; nbs_ci.yml has: {', '.join(by_id)}")
        if profile not in by_id[name].profiles:
            raise FedexitError(f"{name} has no profile {profile}; it has: {', '.join(sorted(by_id[name].profiles))}")
    if not ids:
        return [notebook for notebook in notebooks if profile in notebook.profiles]
    wanted = set(ids)
    for notebook in reversed(notebooks):  # needs point backwards, so one pass from the end finds them all
        if notebook.id in wanted:
            wanted.update(notebook.needs)
    return [notebook for notebook in notebooks if notebook.id in wanted]


def _fault(error: ValidationError, raw: Any) -> str:
    """Return the first fault as one sentence that names the notebook, the field and the value."""
    first = error.errors()[0]
    path, where = list(first["loc"]), "nbs_ci.yml"
    if path[:1] == ["notebooks"] and len(path) > 1:
        place = int(path[1])
        entry = raw["notebooks"][place]
        where += f": notebook {entry.get('id', place + 1) if isinstance(entry, dict) else place + 1}"
        path = path[2:]
    path = [part for part in path if part != "[key]"]
    if path:
        where += f", field {'.'.join(map(str, path))}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown field; remove it or correct its name"
    if first["type"] == "missing":
        return f"{where}: missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        message = re.sub(r" or instance of \w+", "", message).replace("dictionary", "mapping")
        message = f"{first['input']!r:.100} does not fit: {message[:1].lower()}{message[1:]}"
    return " ".join(f"{where}: {message}".split())


def _check_files(notebooks: list[Notebook], folder: Path) -> None:
    ids = [notebook.id for notebook in notebooks]
    for name in sorted(ids):
        if ids.count(name) > 1:
            raise FedexitError(f"nbs_ci.yml: notebook {name} is listed more than once; list it once")
        if not (folder / f"{name}.ipynb").is_file():
            raise FedexitError(f"nbs_ci.yml: notebook {name} has no file notebooks/{name}.ipynb; add it or unlist it")
    for path in sorted(folder.glob("*.ipynb")):
        if path.stem not in ids and not path.name.startswith("."):  # macOS writes ._name beside a file
            raise FedexitError(f"notebooks/{path.name} is not listed in nbs_ci.yml; list it or move it away")


def _check_folders(notebooks: list[Notebook]) -> None:
    """Check that no two names share a folder in results/, which holds published notebooks beside other profiles."""
    profiles = {profile for notebook in notebooks for profile in notebook.profiles}
    for name in (notebook.id for notebook in notebooks):
        if name in _RESERVED | profiles:
            raise FedexitError(f"nbs_ci.yml: results/{name} cannot hold the results of notebook {name}; rename it")
    if reserved := sorted(_RESERVED & profiles):
        raise FedexitError(f"nbs_ci.yml: results/{reserved[0]} cannot hold the profile {reserved[0]}; rename it")


def _check_references(notebooks: list[Notebook]) -> None:
    """Check that names inside an entry point to earlier notebooks and to declared artifacts."""
    earlier: dict[str, Notebook] = {}
    for notebook in notebooks:
        where = f"nbs_ci.yml: notebook {notebook.id}, field"
        for need in notebook.needs:
            if need not in earlier:
                raise FedexitError(
                    f"{where} needs: {need} is not a notebook listed before it; move it up or correct its name"
                )
            if missing := sorted(set(notebook.profiles) - set(earlier[need].profiles)):
                raise FedexitError(f"{where} needs: {need} has no profile {missing[0]}, which {notebook.id} has")
        if unknown := sorted(set(notebook.measured) - set(notebook.artifacts)):
            raise FedexitError(f"{where} measured: {unknown[0]} is not among its artifacts; add it there or remove it")
        used = [check.table for check in notebook.checks] + ([notebook.headline] if notebook.headline else [])
        if undeclared := sorted(set(used) - set(notebook.artifacts)):
            raise FedexitError(
                f"{where} artifacts: {undeclared[0]} is used in checks or headline but not declared; add it"
            )
        for name in notebook.artifacts:
            if name.endswith(".png") and name.removesuffix(".png") + ".csv" not in notebook.artifacts:
                raise FedexitError(
                    f"{where} artifacts: {name} is declared without the .csv of its plotted data; add that"
                )
        earlier[notebook.id] = notebook
