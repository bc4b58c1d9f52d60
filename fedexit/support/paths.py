"""Give the folders of the project, its data and its results."""

import os
from collections.abc import Collection
from pathlib import Path

from fedexit.support.errors import FedexitError


def project_root() -> Path:
    """Return the folder that holds `nbs_ci.yml`: `FEDEXIT_ROOT`, or the nearest one upwards from the working directory.

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
    """Return the folder of downloads and caches: `FEDEXIT_DATA`, or `data/` of the project."""
    if os.environ.get("FEDEXIT_DATA"):
        return Path(os.environ["FEDEXIT_DATA"]).resolve()
    return project_root() / "data"


def backbones_dir() -> Path:
    """Return the folder of the shipped backbones and of those pre-trained here."""
    return project_root() / "data" / "backbones"


def results_dir() -> Path:
    """Return the folder of results: `FEDEXIT_RESULTS`, or `results/` of the project."""
    if os.environ.get("FEDEXIT_RESULTS"):
        return Path(os.environ["FEDEXIT_RESULTS"]).resolve()
    return project_root() / "results"


def named_or_folder(name: str | Path, known: Collection[str], kind: str, own: Path | None = None) -> str | Path:
    """Return `name` if it is one of the `known` names, else the folder or file that it gives.

    A `Path`, or a text with a separator such as `./queen`, always gives a place on disk, never a known name.

    Args:
        name: what the user gave.
        known: reserved names.
        kind: what is named, for the message: "corpus" or "backbone".
        own: place of the known thing, if it is there; being in the folder above it is no clash.

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
