"""Find the folders of the project: its root, data, backbones and results."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fedexit.support.errors import FedexitError

PUBLISHED = "default"  # the profile whose results are committed
_SHIPPED = Path(__file__).parents[1] / "backbones"


def project_root() -> Path:
    """Return the folder that holds `nbs_ci.yml`: FEDEXIT_ROOT, or the working directory or the nearest folder above.

    Raises:
        FedexitError: there is no such folder, or FEDEXIT_ROOT names a folder without `nbs_ci.yml`.
    """
    named = _named_folder("FEDEXIT_ROOT")
    if named is not None:
        if not (named / "nbs_ci.yml").is_file():
            raise FedexitError(f"no nbs_ci.yml in FEDEXIT_ROOT, {named}; set FEDEXIT_ROOT to the project's folder")
        return named
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "nbs_ci.yml").is_file():
            return folder
    raise FedexitError(f"no nbs_ci.yml in {here} or above it; go to the project's folder or set FEDEXIT_ROOT to it")


def data_dir() -> Path:
    """Return the folder of downloads and caches: FEDEXIT_DATA, or `data/` of the project."""
    return _named_folder("FEDEXIT_DATA") or project_root() / "data"


def backbone_folders() -> dict[str, Path]:
    """Return the folder of each backbone that has a name: those of the package and of the project's data/backbones.

    Raises:
        FedexitError: a folder in data/backbones has the name of a backbone of the package.
    """
    shipped, own = _models(_SHIPPED), {}
    with suppress(FedexitError):  # outside a project there are only those of the package
        own = _models(project_root() / "data" / "backbones")
    if double := sorted(shipped.keys() & own.keys()):
        raise FedexitError(f"{own[double[0]]} has the name of a backbone that comes with fedexit; rename the folder")
    return shipped | own


def _models(folder: Path) -> dict[str, Path]:
    return {file.parent.name: file.parent for file in sorted(folder.glob("*/config.json"))}


def results_dir() -> Path:
    """Return the folder of results: FEDEXIT_RESULTS, or `results/` of the project."""
    return _named_folder("FEDEXIT_RESULTS") or project_root() / "results"


def results_of(profile: str) -> Path:
    """Return the folder of a profile's finished results: `results/` for the published profile, else one inside it."""
    return results_dir() if profile == PUBLISHED else results_dir() / profile


def shown(path: Path) -> str:
    """Return a path as the reader types it: from the project's folder when it is inside."""
    root = project_root()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def named_or_folder(name: str | Path, known: Collection[str], kind: str, own: Path | None = None) -> str | Path:
    """Return `name` if it is one of the `known` names, else the path of the folder or file.

    A `Path`, or a text with a separator such as `./queen`, is always a path, never a known name.

    Args:
        name: the name or path that the user gave.
        known: reserved names.
        kind: "corpus" or "backbone", for the message.
        own: path of the known corpus or backbone, if it exists; a name that leads there is not ambiguous.

    Raises:
        FedexitError: `name` is a known name and also a folder or file here, so it is unclear which one is meant.
    """
    if isinstance(name, Path) or name not in known:  # no known name holds a separator
        return Path(name)
    here = Path(name)
    if os.path.lexists(here) and not (own is not None and here.exists() and own.exists() and here.samefile(own)):
        raise FedexitError(
            f"{name!r} is the name of a {kind} of fedexit and also a file or folder here; write ./{name} for yours, "
            f"or rename it to use the {kind} of fedexit"
        )
    return name


def _named_folder(variable: str) -> Path | None:
    """Return the folder that the environment `variable` names, or None if it is unset or empty.

    The folder itself may be missing, because the first run creates it, but the folder around it must exist.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    path = os.path.realpath(os.path.expanduser(text))  # unlike Path.resolve, never fails for a loop of links
    if not os.path.isdir(path):
        if os.path.lexists(path):
            raise FedexitError(f"{variable} is {text}, which is not a folder; set it to a folder or unset it")
        if not os.path.isdir(os.path.dirname(path)):
            raise FedexitError(f"{variable} is {text}, but {os.path.dirname(path)} is not a folder; create or unset it")
    return Path(path)
