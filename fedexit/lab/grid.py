"""Many models side by side: the cells of an experiment's grid, each resumable, on as many processes as wished.

A cell runs in one process with one thread, so its bits do not depend on how many cells run beside it.
"""

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd

from fedexit.central.fine_tuning import Recipe
from fedexit.data.places import corpus_checksum
from fedexit.devices.profiles import profiles
from fedexit.federated.clients import LocalTraining
from fedexit.federated.partition import tier_of
from fedexit.lab.cells import Measured, groups_tested, run_cell, task_of, tiers_of
from fedexit.lab.setting import CENTRAL, HOMOGENEOUS, Cell, Setting, check_cell
from fedexit.support.checkpoints import options_set
from fedexit.support.errors import FedexitError
from fedexit.support.files import weights_hash
from fedexit.support.paths import backbones_dir
from fedexit.support.processes import on_workers


def run_grid(cells: Iterable[Cell], setting: Setting, state: Path, workers: int) -> Measured:
    """All cells' results, in the order of `cells`; what the folder `state` holds is not run again.

    Cells are stored by what they take of the setting, corpus and backbone: with another one they start anew, beside.
    """
    return run_grids({"": (cells, setting)}, state, workers)[""]


def run_grids(
    grids: Mapping[Hashable, tuple[Iterable[Cell], Setting]], state: Path, workers: int
) -> dict[Hashable, Measured]:
    """`run_grid` of several grids, by name, side by side: no worker waits between them. A cell in two is run once.

    Raises FedexitError for a grid without cells, a cell that its setting cannot run, no workers, and as `run_cell`.
    """
    places, jobs = {}, {}
    for name, (cells, setting) in grids.items():
        if not (cells := list(cells)):
            raise FedexitError("a grid has no cells: give at least one")
        for cell in cells:
            check_cell(cell, setting)
        folders = {central: state / _key(setting, central) for central in {cell.method == CENTRAL for cell in cells}}
        places[name] = [(folders[cell.method == CENTRAL], cell) for cell in cells]
        jobs |= {place: (place[1], setting, place[0]) for place in places[name]}
    for folder, _ in jobs:
        folder.mkdir(parents=True, exist_ok=True)
    longest_first = sorted(jobs, key=lambda place: -_cost(*jobs[place][:2]))  # so that no worker waits for the last
    done = on_workers(_stored_cell, [jobs[place] for place in longest_first], workers, "federations")
    found = dict(zip(longest_first, done, strict=True))
    return {
        name: Measured(*(_joined(frames) for frames in zip(*map(found.get, own), strict=True)))
        for name, own in places.items()
    }


def _key(setting: Setting, central: bool) -> str:
    """Name of the folder of central cells, or of federations: the options of the one do not touch the other."""
    folder = backbones_dir() / setting.backbone
    weights = weights_hash(folder if folder.is_dir() else Path(setting.backbone))
    federated = dict(rounds={}, partition={}, fraction=1.0, training=LocalTraining(), evaluations=0)
    used = replace(setting, **(federated if central else dict(central=Recipe())))
    facts = f"{options_set(used)!r} {corpus_checksum(setting.corpus)} {weights}"
    if setting.policy is not None:  # what the devices of the fleet are stands in a table that readers may change
        facts += f" {[profiles()[name] for name in setting.fleet]!r}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All rows; a frame without any (a central cell's ledger) would make floats of the others' whole numbers."""
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def _cost(cell: Cell, setting: Setting) -> float:
    """Rough: layers run, times seconds and passes over the clips."""
    depth = cell.depth or sum(setting.depths) / len(setting.depths)
    if cell.method == CENTRAL:
        passes = setting.central.epochs
    else:
        passes = setting.rounds[cell.task] * setting.fraction * setting.training.epochs
    return depth * setting.max_seconds[cell.task] * passes * len(setting.speeds)


def with_owners(items: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """`Measured.items` of cells of `setting`, with whose clip each is: its `group`, its device's `tier` (`tier_of`).

    Who is in which tier depends on the seed. Where seeds test other people (`folds`), their items are named apart.
    """
    parts, made = [], cache(lambda name, fold: task_of(Cell(name, HOMOGENEOUS, fold), setting))
    for (name, seed), own in items.groupby(["task", "seed"], sort=False):
        task = made(name, seed if setting.folds else 0)
        tiers, groups = tiers_of(task, setting, seed), groups_tested(task)[own["item"]]
        named = own["item"] + (1_000_000 * seed if setting.folds else 0)
        parts.append(own.assign(item=named, group=groups, tier=[tier_of(group, tiers) for group in groups]))
    return pd.concat(parts, ignore_index=True)


def _stored_cell(cell: Cell, setting: Setting, state: Path) -> Measured:
    """`run_cell`, with its result kept in place of its checkpoint."""
    files = [state / f"{cell.name}.{kind}.csv.gz" for kind in Measured._fields]
    if not all(file.exists() for file in files):
        for file, frame in zip(files, run_cell(cell, setting, state), strict=True):
            partial = file.with_suffix(".partial")
            # pandas writes floats so that they come back bit for bit; without the time, the same bytes each time
            frame.to_csv(partial, index=False, compression={"method": "gzip", "mtime": 0})
            os.replace(partial, file)
        (state / f"{cell.name}.safetensors").unlink(missing_ok=True)
    as_written = dict(dtype={"client": str}, keep_default_na=False, na_values=[""])  # clients "0003" and "NA" are names
    return Measured(*(pd.read_csv(file, **as_written) for file in files))
