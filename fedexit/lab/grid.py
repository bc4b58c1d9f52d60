"""Run many cells side by side, each resumable, on any number of processes.

A cell runs in one process with one thread, so its results do not depend on the number of cells beside it.
"""

import time
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from fedexit.lab.cells import Measured, run_cell
from fedexit.lab.checks import check_grids, check_writable
from fedexit.lab.kept import Origin, is_finished, key_of, origin_of, read_cell, write_cell
from fedexit.lab.material import has_folds
from fedexit.lab.published import origin_in, read_published
from fedexit.lab.setting import Cell, Setting
from fedexit.lab.spots import Spots
from fedexit.support.checkpoints import remove_checkpoint
from fedexit.support.errors import FedexitError
from fedexit.support.locks import owned
from fedexit.support.placement import Device, find_device
from fedexit.support.processes import on_workers

Place = tuple[Path, Cell]  # a cell and the folder of its files in the state


def run_grid(cells: Iterable[Cell], setting: Setting, state: Path, workers: int) -> Measured:
    """Return the results of all `cells`, in their order; finished cells in the folder `state` are not run again.

    Args:
        cells: the cells.
        setting: the options that they share.
        state: folder of finished cells. Another setting, corpus content or backbone uses another folder below
            it, so its cells start anew.
        workers: number of processes; it changes no result.

    Raises:
        FedexitError: as `run_grids`.
    """
    return run_grids({"": (cells, setting)}, state, workers)[""]


def run_grids(
    grids: Mapping[Hashable, tuple[Iterable[Cell], Setting]],
    state: Path,
    workers: int,
    published: Path | None = None,
    device: Device = "cpu",
) -> dict[Hashable, Measured]:
    """Run several grids side by side, by name, as `run_grid` does each; a cell that is in two grids runs once.

    Every cell that is not published is checked before the first one starts. Finished cells that other or unknown code
    made are read, with a warning that counts them.

    Args:
        grids: the cells of each grid, and the options that they share.
        state: folder of finished cells, as in `run_grid`.
        workers: number of processes; it changes no result.
        published: folder of published cells, which are read and never trained (`fedexit.lab.published`), even if their
            corpus is not there; None trains every cell that is not in `state`.
        device: where models are trained: `auto`, `cpu`, `cuda` or `mps`. All workers share a GPU. Its results differ in
            their last digits, and the index entry of a cell names it.

    Raises:
        FedexitError: a grid without cells, a cell that its setting cannot run (`check_grids`), fewer than one worker, a
            folder that cannot be written, or as `run_cell`.
    """
    grids = {name: (list(cells), setting) for name, (cells, setting) in grids.items()}
    if workers < 1:
        raise FedexitError(f"workers must be >= 1, not {workers}")
    places: dict[Hashable, list[Place]] = {}
    jobs: dict[Place, tuple[Cell, Setting, Path, Origin]] = {}
    origins: dict[tuple[str, str], Origin] = {}
    for name, (cells, setting) in grids.items():
        source = setting.data.corpus, setting.model.backbone
        origins[source] = origin = origins.get(source) or _origin(setting, published)
        folders = {kind: state / key_of(setting, origin, kind) for kind in (True, False)}
        places[name] = [(folders[not cell.federated], cell) for cell in cells]
        jobs |= {place: (place[1], setting, place[0], origin) for place in places[name]}
    found = _published(jobs, published)
    left = [
        ([cell for folder, cell in own if (folder, cell) not in found], grids[name][1]) for name, own in places.items()
    ]
    where = str(find_device(device))
    check_grids([grid for grid, own in zip(left, places.values(), strict=True) if grid[0] or not own], where)
    _make_cells({place: (*job, where) for place, job in jobs.items() if place not in found}, workers)
    kept = {place: read_cell(*place) for place in jobs if place not in found}
    _warn_of_unverified(found, "published", "check them with: fedexit cells check --record")
    _warn_of_unverified(kept, "kept", "delete them to measure them again")
    found |= kept
    return {
        name: Measured(*(joined(tables) for tables in zip(*(found[place][0] for place in own), strict=True)))
        for name, own in places.items()
    }


def _origin(setting: Setting, published: Path | None) -> Origin:
    return origin_in(published, setting) if published else origin_of(setting)


def _published(places: Iterable[Place], folder: Path | None) -> dict[Place, tuple[Measured, bool]]:
    """Return the cells that are published in `folder`, by their places in the state."""
    if folder is None:
        return {}
    names = {place: (place[0].name, place[1].name) for place in places}
    found = read_published(folder, names.values())
    return {place: found[name] for place, name in names.items() if name in found}


def _make_cells(jobs: Mapping[Place, tuple[Cell, Setting, Path, Origin, str]], workers: int) -> None:
    """Run those of the cells that are not finished."""
    missing = [place for place in jobs if not is_finished(*place)]
    for folder in {folder for folder, _ in missing}:
        check_writable(folder)
    if missing:
        longest_first = sorted(missing, key=lambda place: -_cost(*jobs[place][:2]))  # for short waits at the end
        on_workers(_make_cell, [jobs[place] for place in longest_first], workers, "federations")


def with_owners(items: pd.DataFrame) -> pd.DataFrame:
    """Return the test clips of `Measured.items`, with the cluster of each as its `group`.

    If each seed tests other people (folds), items get other numbers for each seed.
    """
    rows = items.query("split == 'test'").rename(columns={"cluster": "group"}).drop(columns=["split", "clip"])
    folds = rows["task"].map({task: has_folds(task) for task in rows["task"].unique()})
    return rows.assign(item=rows["item"] + 1_000_000 * rows["seed"] * folds).reset_index(drop=True)


def _make_cell(cell: Cell, setting: Setting, folder: Path, origin: Origin, device: str) -> None:
    """Run a cell, write its results and delete its checkpoint, unless another process makes it meanwhile."""
    checkpoint = folder / f"{cell.name}.safetensors"
    with owned(folder / cell.name, wait=True):
        if not is_finished(folder, cell):
            if checkpoint.is_file():  # it resumes: damaged notes are refused now, not after the last round
                Spots([], [], [], checkpoint.with_suffix(".spot.csv")).rows()
            since = time.perf_counter()
            measured = run_cell(cell, setting, folder, device=device)
            write_cell(folder, cell, measured, setting, origin, time.perf_counter() - since, device)
        remove_checkpoint(checkpoint)


def _warn_of_unverified(cells: Mapping[Place, tuple[Measured, bool]], kind: str, remedy: str) -> None:
    if others := sum(not verified for _, verified in cells.values()):
        warnings.warn(
            f"unverified: {others} of {len(cells)} {kind} cells were made by other or unknown code, or their tables "
            f"changed; {remedy}",
            stacklevel=3,
        )


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all frames; those without rows are left out, because they would make integers floats."""
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def _cost(cell: Cell, setting: Setting) -> float:
    """Return a rough cost: layers that run, times seconds and passes over the clips."""
    depth = cell.depth or sum(setting.model.depths) / len(setting.model.depths)
    if not cell.federated:
        passes: float = setting.study.central.epochs
    else:
        passes = setting.federation.rounds * setting.federation.fraction * setting.federation.training.epochs
    return depth * setting.data.max_seconds * passes * len(setting.data.speeds)
