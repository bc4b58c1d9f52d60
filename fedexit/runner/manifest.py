"""Read `nbs_ci.yml`, the one list of notebooks, and refuse whatever does not fit.

Format (checked against `nbs_ci.schema.json`; unknown fields are refused):

    notebooks:                         # in the order they run; a notebook may only need earlier ones
      - id: 02_aggregation             # the file notebooks/02_aggregation.ipynb
        title: Averaging clients of different depth
        needs: [01_partition]          # optional: notebooks whose tables it reads
        data: [queen]                  # optional: corpora it reads
        backbones: [tiny]              # optional: folders of data/backbones/ that it loads
        artifacts:                     # all that it writes; each figure comes with the CSV of what it plots
          - tables/error.csv
          - figures/error_by_round.png
          - figures/error_by_round.csv
        headline: tables/error.csv     # optional: a table printed in full at the end of every run
        checks:                        # optional: what must hold in its tables, in every profile
          - {table: tables/error.csv, columns: [method, value], min_rows: 4}
          - {table: tables/error.csv, query: value > 1, max_rows: 0}    # `query` is pandas'; it picks the rows counted
        profiles:                      # a notebook runs in the profiles given here
          smoke: {minutes: 1, limit: 5, parameters: {rounds: 2}}        # expected and longest time, in minutes
          default: {minutes: 6, limit: 30, parameters: {rounds: 20}}

Parameters are set in the notebook's cell tagged `parameters`; it must have each name given here, and `profile`.
`min_rows` is 1 unless given (0 where only `max_rows` is given).
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import yaml

from fedexit.support.errors import FedexitError

SCHEMA = Path(__file__).with_name("nbs_ci.schema.json")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; a learning rate is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Notebook:
    """One entry of `nbs_ci.yml`.

    `path` is the source notebook, `reads` the tables and plotted data of its needs (`01_partition/tables/x.csv`),
    `profiles` maps a profile to its minutes, limit and parameters.
    """

    path: Path
    id: str
    title: str
    reads: list[str]
    artifacts: list[str]
    profiles: dict[str, dict]
    needs: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    backbones: list[str] = field(default_factory=list)
    checks: list[dict] = field(default_factory=list)
    headline: str | None = None


def parse_yaml(text: str, where: str) -> object:
    """Value of a YAML text. Raises FedexitError that begins with `where`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise FedexitError(f"{where}{line}: not YAML: {getattr(error, 'problem', error)}") from None


def load_manifest(root: Path) -> list[Notebook]:
    """All notebooks of the project at `root`, in order.

    Raises FedexitError when `nbs_ci.yml` breaks the format, when a listed notebook has no file, or a file no listing.
    """
    file = root / "nbs_ci.yml"
    if not file.is_file():
        raise FedexitError(f"no nbs_ci.yml in {root}; go to the project's folder or set FEDEXIT_ROOT to it")
    raw = parse_yaml(file.read_text(encoding="utf-8"), "nbs_ci.yml")
    _check_schema(raw)
    notebooks = [_notebook(entry, raw["notebooks"], root) for entry in raw["notebooks"]]
    _check_files(notebooks, root / "notebooks")
    _check_references(notebooks)
    return notebooks


def select(notebooks: list[Notebook], profile: str, ids: list[str]) -> list[Notebook]:
    """Notebooks of `profile`, in order: all, or those named in `ids` and all that these need.

    Raises FedexitError on an unknown profile or notebook, or one that the profile does not have.
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


def _notebook(entry: dict, entries: list[dict], root: Path) -> Notebook:
    needed = [other for other in entries if other["id"] in entry.get("needs", [])]
    reads = [f"{other['id']}/{name}" for other in needed for name in other["artifacts"] if name.endswith(".csv")]
    return Notebook(path=root / "notebooks" / f"{entry['id']}.ipynb", reads=reads, **entry)


def _check_schema(raw: object) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    error = jsonschema.exceptions.best_match(validator.iter_errors(raw))
    if error is None:
        return
    path, where = list(error.absolute_path), "nbs_ci.yml"
    if len(path) > 1:  # notebooks, its number, field ...
        entry = raw["notebooks"][path[1]]
        where += f": notebook {entry.get('id', path[1] + 1) if isinstance(entry, dict) else path[1] + 1}"
        path = path[2:]
    if path:
        where += f", field {'.'.join(map(str, path))}"
    raise FedexitError(f"{where}: {' '.join(error.message.split())[:300]}")


def _check_files(notebooks: list[Notebook], folder: Path) -> None:
    ids = [notebook.id for notebook in notebooks]
    for name in sorted(ids):
        if ids.count(name) > 1:
            raise FedexitError(f"nbs_ci.yml: notebook {name} is listed more than once")
        if not (folder / f"{name}.ipynb").is_file():
            raise FedexitError(f"nbs_ci.yml: notebook {name} has no file notebooks/{name}.ipynb; add it or unlist it")
    for path in sorted(folder.glob("*.ipynb")):
        if path.stem not in ids:
            raise FedexitError(f"notebooks/{path.name} is not listed in nbs_ci.yml; list it or move it away")


def _check_references(notebooks: list[Notebook]) -> None:
    """Names inside an entry must point to earlier notebooks and to declared artifacts."""
    earlier: dict[str, Notebook] = {}
    for notebook in notebooks:
        where = f"nbs_ci.yml: notebook {notebook.id}, field"
        for need in notebook.needs:
            if need not in earlier:
                raise FedexitError(f"{where} needs: {need} is not a notebook listed before it")
            if missing := sorted(set(notebook.profiles) - set(earlier[need].profiles)):
                raise FedexitError(f"{where} needs: {need} has no profile {missing[0]}, which {notebook.id} has")
        used = [check["table"] for check in notebook.checks] + ([notebook.headline] if notebook.headline else [])
        if undeclared := sorted(set(used) - set(notebook.artifacts)):
            raise FedexitError(f"{where} artifacts: {undeclared[0]} is used in checks or headline but not declared")
        for name in notebook.artifacts:
            if name.endswith(".png") and name.removesuffix(".png") + ".csv" not in notebook.artifacts:
                raise FedexitError(f"{where} artifacts: {name} is declared without the .csv of its plotted data")
        earlier[notebook.id] = notebook
