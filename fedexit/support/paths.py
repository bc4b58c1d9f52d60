"""The one place that knows where things lie."""

import os
from pathlib import Path

from fedexit.support.errors import FedexitError


def project_root() -> Path:
    """Folder that holds `nbs_ci.yml`: `FEDEXIT_ROOT`, or the nearest one upwards from the working directory.

    Raises FedexitError when there is none.
    """
    if os.environ.get("FEDEXIT_ROOT"):
        return Path(os.environ["FEDEXIT_ROOT"]).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "nbs_ci.yml").is_file():
            return folder
    raise FedexitError(f"no nbs_ci.yml in {here} or above it; go to the project's folder or set FEDEXIT_ROOT to it")


def data_dir() -> Path:
    """Folder of downloads and caches: `FEDEXIT_DATA`, or `data/` of the project."""
    if os.environ.get("FEDEXIT_DATA"):
        return Path(os.environ["FEDEXIT_DATA"]).resolve()
    return project_root() / "data"


def backbones_dir() -> Path:
    """Folder of the backbones that ship with the project, and of those pre-trained here."""
    return project_root() / "data" / "backbones"


def results_dir() -> Path:
    """Folder of results: `FEDEXIT_RESULTS`, or `results/` of the project."""
    if os.environ.get("FEDEXIT_RESULTS"):
        return Path(os.environ["FEDEXIT_RESULTS"]).resolve()
    return project_root() / "results"
