"""Write and read the tables and figures of a notebook; equal contents give bit-identical files.

`fedexit run` gives a notebook its folders in environment variables. JupyterLab sets none: there the artifacts go to
results/interactive/, so that interactive work never changes the results of `fedexit run`.
"""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedexit.support.errors import FedexitError
from fedexit.support.files import replacing
from fedexit.support.paths import results_dir, results_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
TIDY = ["experiment", "method", "task", "seed", "round", "tier", "exit", "split", "metric", "value", "n"]
DPI = 150


@dataclass(frozen=True)
class Run:
    """One run of one notebook; made by `start`."""

    id: str
    profile: str

    def table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write `frame` to tables/<name>.csv and return it for display.

        Raises:
            FedexitError: the name has a suffix or folder, or the index would be lost in the file.
        """
        _write_csv(frame, self._target("tables", name, ".csv"))
        return frame

    def figure(self, fig: "Figure", name: str, data: pd.DataFrame) -> None:
        """Write `fig` to figures/<name>.png and the plotted `data` to figures/<name>.csv. Raises as `table` does."""
        _write_csv(data, self._target("figures", name, ".csv"))
        # without the Software entry the file is bit-identical under every version of Matplotlib
        save: dict[str, Any] = {"dpi": DPI, "format": "png", "bbox_inches": "tight", "metadata": {"Software": None}}
        with replacing(self._target("figures", name, ".png")) as part:
            fig.savefig(part, **save)

    def read(self, other: str, name: str) -> pd.DataFrame:
        """Return the table `name` of the notebook `other`, as it was run in this profile.

        Raises:
            FedexitError: `other` was not run, or is not among the `needs` of this notebook in `nbs_ci.yml`.
        """
        needs = os.environ.get("FEDEXIT_NEEDS")
        if needs is not None and other not in needs.split():
            raise FedexitError(f"{self.id} reads {other}; add {other} to its needs in nbs_ci.yml")
        folders = [results_of(self.profile), results_dir() / "interactive" / self.profile]
        for folder in folders[: 1 if _in_runner() else 2]:
            path = folder / other / "tables" / f"{name}.csv"
            if path.is_file():
                return pd.read_csv(path)
        raise FedexitError(f"no table {name} of {other}; make it with: fedexit run --profile {self.profile} {other}")

    def state(self, name: str) -> Path:
        """Return the path of a checkpoint (its folder exists). A run that succeeds removes it.

        Under `fedexit run` the folder belongs to these parameters and this code. In JupyterLab it does not, so the
        reader of a checkpoint must compare its settings.
        """
        interactive = results_dir() / ".state" / "interactive" / self.profile / self.id
        path = Path(os.environ.get("FEDEXIT_STATE", interactive)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def cells(self) -> Path:
        """Return the folder of cells in the making, which the notebooks of a profile share.

        Nothing removes it: `fedexit cells publish` takes finished cells from there, and a cell's key names all that
        decides its numbers.
        """
        path = results_dir() / ".state" / self.profile / "cells"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _target(self, folder: str, name: str, suffix: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise FedexitError(f"name of a table or figure: {name!r}; use letters, digits, - and _, without a suffix")
        interactive = results_dir() / "interactive" / self.profile / self.id
        path = Path(os.environ.get("FEDEXIT_OUT", interactive)) / folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def start(id: str, profile: str, seed: int | None = None) -> Run:
    """Print versions, device and seed, and return the run that writes the tables and figures of notebook `id`.

    Raises:
        FedexitError: `fedexit run` runs another notebook than `id`.
    """
    import torch

    if _in_runner() and Path(os.environ["FEDEXIT_OUT"]).parent.name != id:
        own = Path(os.environ["FEDEXIT_OUT"]).parent.name
        raise FedexitError(f"start({id!r}) is called in the notebook {own}; write start({own!r}, ...)")
    packages = ("fedexit", "torch", "torchaudio", "transformers", "numpy")
    print("python", platform.python_version(), *(f"| {name} {version(name)}" for name in packages))
    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    print(f"device {device} | profile {profile}" + ("" if seed is None else f" | seed {seed}"))
    return Run(id, profile)


def check_tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` if its columns are those of `TIDY`, in order. Raise FedexitError that names the difference."""
    columns = list(frame.columns)
    missing, extra = sorted(set(TIDY) - set(columns)), sorted(set(columns) - set(TIDY))
    if missing or extra:
        raise FedexitError(f"not a tidy table: lacks {missing or 'nothing'}, has {extra or 'nothing'} too many")
    if columns != TIDY:
        raise FedexitError(f"not a tidy table: order the columns as {', '.join(TIDY)}")
    return frame


def _in_runner() -> bool:
    return "FEDEXIT_OUT" in os.environ


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    if any(name is not None for name in frame.index.names):
        raise FedexitError(f"{path.stem}: the index {list(frame.index.names)} would be lost; use reset_index() first")
    with replacing(path) as part:
        frame.to_csv(part, index=False, lineterminator="\n", float_format=_float)


def _float(value: float) -> str:
    """Return ten significant digits: they hold a whole float32, and hide the rounding of sums in another order."""
    return repr(float(f"{value:.10g}"))
