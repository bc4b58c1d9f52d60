"""Many federations side by side: the cells of an experiment's grid, each resumable, on as many processes as wished.

A cell runs in one process with one thread, so its bits do not depend on how many cells run beside it.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fedexit.backbone import Backbone, load_backbone
from fedexit.clients import Client, Example, LocalTraining, collate
from fedexit.corpora import open_corpus
from fedexit.corpus_places import folder_of, manifest_checksum
from fedexit.exits import MultiExitModel
from fedexit.federation import Federation, federate
from fedexit.frozen import freezer
from fedexit.metrics import error_rates, predict
from fedexit.partition import assign_depths, client_groups, device_of, make_clients, tier_of
from fedexit.streams import numpy_stream
from fedexit.tasks import Clips, Task, make_task
from fedexit.workers import on_workers

HOMOGENEOUS = "homogeneous"


@dataclass(frozen=True)
class Cell:
    """One federation: `method` is `homogeneous` (all clients at `depth`) or how clients of mixed depth are averaged."""

    task: str
    method: str
    seed: int
    depth: int = 0

    @property
    def name(self) -> str:
        """File name of the cell's state."""
        return f"{self.task}-{self.method}{self.depth or ''}-seed{self.seed}"


@dataclass(frozen=True)
class Setting:
    """What all cells of a grid share. `depths`: the tiers of the mixed federations, in equal shares of the devices."""

    corpus: str
    backbone: str
    depths: tuple[int, ...]
    rounds: Mapping[str, int]  # by task, as the next two
    partition: Mapping[str, str]
    max_seconds: Mapping[str, float]  # clips are cut there
    fraction: float
    training: LocalTraining
    min_clips: int = 8
    dev_clips: int = 200
    evaluations: int = 6  # on dev, spread over the rounds


def run_cell(cell: Cell, setting: Setting, state: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run one cell, or go on with it from its checkpoint in the folder `state`.

    Returns (errors, traffic). Errors: `method, task, seed, round, tier, exit, split, value, n`: every trained exit on
    dev as training goes (tier `all`), on test after the last round, for all clips and for each tier's devices. Traffic:
    one row per local round (`round, client, tier, depth, examples, loss, bytes`), with the cell's columns.
    """
    task = make_task(cell.task, open_corpus(setting.corpus))
    devices = [device_of(group) for group in client_groups(task, setting.min_clips)]
    tiers = assign_depths(devices, setting.depths, cell.seed)
    depths = dict.fromkeys(tiers, cell.depth) if cell.method == HOMOGENEOUS else tiers
    backbone = load_backbone(setting.backbone)
    seconds = setting.max_seconds[cell.task]
    frozen = freezer(Clips(task.corpus, task.rows, seconds), backbone)
    clients = [
        replace(client, data=frozen(client.data))
        for client in make_clients(task, depths, setting.partition[cell.task], setting.min_clips, seconds, cell.seed)
    ]
    held_out = {
        split: frozen(Clips(task.corpus, task.rows.query("split == @split"), seconds)) for split in ("dev", "test")
    }
    result = _federate(cell, setting, task, backbone, clients, held_out["dev"], state)
    test = task.rows.query("split == 'test'").reset_index(drop=True)
    predictions = predict(result.model, held_out["test"])
    predictions["tier"] = [tier_of(test["group"][item], tiers) for item in predictions["item"]]
    rates = pd.concat([error_rates(predictions).assign(tier="all"), error_rates(predictions, ["tier", "exit"])])
    dev = result.table.assign(split="dev", tier="all")
    errors = pd.concat([dev, rates.assign(split="test", round=setting.rounds[cell.task])])
    about = dict(method=cell.method, task=cell.task, seed=cell.seed)
    columns = ["method", "task", "seed", "round", "tier", "exit", "split", "value", "n"]
    return errors.assign(**about)[columns], result.clients.assign(**about)


def run_grid(cells: Iterable[Cell], setting: Setting, state: Path, workers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All cells' errors and traffic, in the order of `cells`; what the folder `state` holds is not run again.

    Cells are stored by setting and corpus: another setting starts anew beside them.
    """
    cells = list(cells)
    key = hashlib.sha256(f"{setting!r} {manifest_checksum(folder_of(setting.corpus))}".encode()).hexdigest()[:16]
    state = state / key
    state.mkdir(parents=True, exist_ok=True)
    longest_first = sorted(cells, key=lambda cell: -_cost(cell, setting))  # so that no worker waits for the last
    done = on_workers(_stored_cell, [(cell, setting, state) for cell in longest_first], workers, "federations")
    found = dict(zip(longest_first, done, strict=True))
    errors, traffic = zip(*(found[cell] for cell in cells), strict=True)
    return pd.concat(errors, ignore_index=True), pd.concat(traffic, ignore_index=True)


def _cost(cell: Cell, setting: Setting) -> float:
    """Rough: layers run, times seconds and rounds."""
    depth = cell.depth or sum(setting.depths) / len(setting.depths)
    return depth * setting.max_seconds[cell.task] * setting.rounds[cell.task]


def _federate(
    cell: Cell,
    setting: Setting,
    task: Task,
    backbone: Backbone,
    clients: list[Client],
    dev: Sequence[Example],
    state: Path,
) -> Federation:
    if cell.method == HOMOGENEOUS:
        model = MultiExitModel(backbone.truncated(cell.depth), task.labels, [cell.depth])
    else:
        model = MultiExitModel(backbone, task.labels, setting.depths)
    chosen = sorted(numpy_stream("dev", task.name).permutation(len(dev))[: setting.dev_clips])
    server_clips = [dev[int(index)] for index in chosen]
    features, frames, _ = collate(server_clips)  # the labels stay out of it
    model.standardise(features, frames)
    rounds = setting.rounds[cell.task]
    return federate(
        model,
        clients,
        method="masked" if cell.method == HOMOGENEOUS else cell.method,
        rounds=rounds,
        seed=cell.seed,
        fraction=setting.fraction,
        training=setting.training,
        dev=server_clips,
        evaluate_every=max(1, rounds // setting.evaluations),
        checkpoint=state / f"{cell.name}.safetensors",
    )


def _stored_cell(cell: Cell, setting: Setting, state: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`run_cell`, with its result kept beside its checkpoint."""
    files = [state / f"{cell.name}.{kind}.csv" for kind in ("errors", "traffic")]
    if not all(file.exists() for file in files):
        for file, frame in zip(files, run_cell(cell, setting, state), strict=True):
            partial = file.with_suffix(".partial")
            frame.to_csv(partial, index=False)  # pandas writes floats so that they come back bit for bit
            os.replace(partial, file)
    return tuple(pd.read_csv(file) for file in files)
