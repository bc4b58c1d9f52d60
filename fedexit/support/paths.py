"""Find the folders of the project: its root, data, backbones and results."""

import os
from pathlib import Path

from fedexit.support.errors import FedexitError


def project_root() -> Path:
    """Return the folder that holds `nbs_ci.yml`: FEDEXIT_ROOT, or the working directory or the nearest folder above.

    Raises:
        FedexitError: there is no such folder, or FEDEXIT_ROOT names another one.
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


def backbones_dir() -> Path:
    """Return the folder of the backbones that ship with the project or were pre-trained here."""
    return project_root() / "data" / "backbones"


def results_dir() -> Path:
    """Return the folder of results: FEDEXIT_RESULTS, or `results/` of the project."""
    return _named_folder("FEDEXIT_RESULTS") or project_root() / "results"


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
            raise FedexitError(f"{variable} is {text}, but {os.path.dirname(path)} is no folder; make it or unset it")
    return Path(path)
