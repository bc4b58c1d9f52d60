"""Tables and figures of a notebook: where they go and how they keep the same bytes. Knows nothing of models.

`fedexit run` hands a notebook its folders in the environment. A person in JupyterLab has none: there the artifacts go
to results/interactive/, so that trying things out never touches results that were run as declared.
"""

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from fedexit.support.errors import FedexitError
from fedexit.support.paths import results_dir

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

        Raises FedexitError on a name with a suffix or folder, and on an index that the file would lose.
        """
        _write_csv(frame, self._target("tables", name, ".csv"))
        return frame

    def figure(self, fig: "Figure", name: str, data: pd.DataFrame) -> None:
        """Write `fig` to figures/<name>.png and what it plots to figures/<name>.csv. Raises as `table` does."""
        _write_csv(data, self._target("figures", name, ".csv"))
        # no Software entry: the same figure is the same bytes
        save = {"dpi": DPI, "format": "png", "bbox_inches": "tight", "metadata": {"Software": None}}
        _replace(self._target("figures", name, ".png"), lambda path: fig.savefig(path, **save))

    def read(self, other: str, name: str) -> pd.DataFrame:
        """Table `name` of the notebook `other`, as it was run in this profile.

        Raises FedexitError when `other` was not run, or when `nbs_ci.yml` does not say that this notebook needs it.
        """
        needs = os.environ.get("FEDEXIT_NEEDS")
        if needs is not None and other not in needs.split():
            raise FedexitError(f"{self.id} reads {other}; add {other} to its needs in nbs_ci.yml")
        folders = [results_dir() / self.profile, results_dir() / "interactive" / self.profile]
        for folder in folders[: 1 if _in_runner() else 2]:
            path = folder / other / "tables" / f"{name}.csv"
            if path.is_file():
                return pd.read_csv(path)
        raise FedexitError(f"no table {name} of {other}; make it with: fedexit run --profile {self.profile} {other}")

    def state(self, name: str) -> Path:
        """Path of a checkpoint (its folder exists). It outlives a failed run and goes when the run succeeds.

        Under `fedexit run` the folder belongs to these parameters and this code; in JupyterLab it does not, so whoever
        reads a checkpoint compares its settings.
        """
        interactive = results_dir() / ".state" / "interactive" / self.profile / self.id
        path = Path(os.environ.get("FEDEXIT_STATE", interactive)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def kept(self, name: str) -> Path:
        """Path of a store that is committed with the results: for studies that take several sittings.

        The profile's notebooks share it. It outlives everything, changes of the code included: whoever reads it
        compares its settings, and what it holds was made by the code of its commit.
        """
        path = results_dir() / "kept" / self.profile / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _target(self, folder: str, name: str, suffix: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise FedexitError(f"name of a table or figure: {name!r}; use letters, digits, - and _, without a suffix")
        interactive = results_dir() / "interactive" / self.profile / self.id
        path = Path(os.environ.get("FEDEXIT_OUT", interactive)) / folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def start(id: str, profile: str, seed: int | None = None) -> Run:
    """Begin notebook `id`: print versions, device and seed, and return the run that writes its tables and figures.

    Raises FedexitError when `fedexit run` runs another notebook than `id`.
    """
    import torch  # the device is torch's

    if _in_runner() and Path(os.environ["FEDEXIT_OUT"]).parent.name != id:
        raise FedexitError(f"start({id!r}) stands in the notebook {Path(os.environ['FEDEXIT_OUT']).parent.name}")
    packages = ("fedexit", "torch", "torchaudio", "transformers", "numpy")
    print("python", platform.python_version(), *(f"| {name} {version(name)}" for name in packages))
    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    print(f"device {device} | profile {profile}" + ("" if seed is None else f" | seed {seed}"))
    return Run(id, profile)


def check_tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` if its columns are those of `TIDY`, in order; else raises FedexitError naming the difference."""
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
    _replace(path, lambda temporary: frame.to_csv(temporary, index=False, lineterminator="\n", float_format=_float))


def _float(value: float) -> str:
    """Ten significant digits: all of a float32 and none of the noise of summing in another order."""
    return repr(float(f"{value:.10g}"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write through a temporary name, so that a half-written file is never found under the real one."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
