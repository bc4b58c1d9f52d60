"""Check the cells of a grid before the first one starts, so that no mistake is found after hours of work."""

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from fedexit.data.places import place_of
from fedexit.data.tasks import TASKS
from fedexit.data.tasks.contract import Task
from fedexit.federated.methods import everyone, find_method
from fedexit.federated.partition import PARTITIONS
from fedexit.lab import beam
from fedexit.lab.heterofl import widths_for
from fedexit.lab.material import has_folds, task_of, tiers_of
from fedexit.lab.setting import CENTRAL, HOMOGENEOUS, Cell, Setting
from fedexit.model.backbone import Backbone, load_backbone
from fedexit.model.heads import HEADS
from fedexit.model.lora import with_lora
from fedexit.support.errors import FedexitError
from fedexit.support.placement import Device, lacks_bfloat16


def check_cell(cell: Cell, setting: Setting) -> None:
    """Raise FedexitError for a cell that its setting cannot run. This is quick: no clip and no weight is read."""
    if cell.task not in TASKS:
        raise FedexitError(f"unknown task {cell.task!r}; known: {', '.join(TASKS)}")
    if setting.data.max_seconds <= 0 or not setting.data.speeds or min(setting.data.speeds) <= 0:
        raise FedexitError(
            f"max_seconds and speeds must be > 0, with at least one speed, not {setting.data.max_seconds} and "
            f"{setting.data.speeds}"
        )
    if setting.model.head and setting.model.head not in HEADS:
        raise FedexitError(f"unknown head {setting.model.head!r}; known: {', '.join(HEADS)}")
    if not setting.model.depths:
        raise FedexitError("depths are empty; give the depth of at least one tier")
    if cell.method in (CENTRAL, HOMOGENEOUS) and cell.depth < 1:
        raise FedexitError(f"a {cell.method} cell needs a depth >= 1, not {cell.depth}")
    if cell.federated:
        _check_federation(cell, setting)
    place_of(setting.data.corpus)


def _check_federation(cell: Cell, setting: Setting) -> None:
    method, federation = find_method(cell.method), setting.federation
    least = 0 if federation.regime.heads_rounds else 1
    if federation.evaluations < 1 or federation.rounds < least:
        found = f"{federation.rounds} and {federation.evaluations}"
        raise FedexitError(f"rounds must be >= {least} and evaluations >= 1, not {found}")
    if not 0 < federation.fraction <= 1 or not 0 <= federation.drop_out < 1:
        raise FedexitError(
            f"fraction must be in (0, 1] and drop_out in [0, 1), not {federation.fraction} and {federation.drop_out}"
        )
    if federation.partition not in PARTITIONS:
        raise FedexitError(f"unknown partition {federation.partition!r}; known: {', '.join(PARTITIONS)}")
    if method.narrow and (federation.policy or federation.drop_out):
        raise FedexitError(f"method {cell.method} has no depths by round and no drop-outs; leave them out")
    if method.enlist is not everyone and federation.policy:
        raise FedexitError(f"method {cell.method} sets the depths of its clients itself; leave out the policy")


def check_grids(grids: Iterable[tuple[Iterable[Cell], Setting]], device: Device = "cpu") -> None:
    """Check every cell of every grid, with its corpus, its task and its backbone, before the first one starts.

    Raises:
        FedexitError: as `check_cell`; the corpus cannot express the task; a split is empty; no group is large enough
            to be a client; the backbone cannot be loaded or is shallower than an exit; a library is missing.
    """
    grids = [(list(cells), setting) for cells, setting in grids]
    for cells, setting in grids:
        if not cells:
            raise FedexitError("a grid has no cells: give at least one")
        for cell in cells:
            check_cell(cell, setting)
    backbones: dict[str, Backbone] = {}
    tasks: dict[tuple, Task] = {}
    for cells, setting in grids:
        name = setting.model.backbone
        backbones[name] = backbones.get(name) or load_backbone(name)
        _check_backbone(cells, setting, backbones[name])
        for cell in cells:
            made = cell.task, cell.seed if has_folds(cell.task) else 0, setting.data.corpus, setting.data.max_seconds
            tasks[made] = task = tasks.get(made) or task_of(cell, setting)
            tiers_of(task, setting, cell.seed)
            if cell.federated and setting.federation.partition == "dirichlet" and task.head == "ctc":
                raise FedexitError(f"partition dirichlet needs a task with labels, not {cell.task}")
            warn(cell, setting, task, device)


def _check_backbone(cells: Iterable[Cell], setting: Setting, backbone: Backbone) -> None:
    for cell in cells:
        for depth in [cell.depth] if cell.depth else setting.model.depths:
            if not 1 <= depth <= backbone.layers:
                raise FedexitError(
                    f"cell {cell.name}: exit {depth} does not exist; {setting.model.backbone} has layers 1 to "
                    f"{backbone.layers}"
                )
        if cell.federated and find_method(cell.method).narrow:
            widths_for(setting.model.depths, backbone)
    if setting.model.lora:
        with_lora(backbone.truncated(1), setting.model.lora)


def check_writable(folder: Path) -> None:
    """Make `folder` and raise FedexitError when no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FedexitError(f"cannot write to {folder} ({error.strerror}); choose a writable folder") from error


def warn(cell: Cell, setting: Setting, task: Task, device: Device = "cpu") -> None:
    """Warn about training in bfloat16 on a processor without it, and about a missing library for beam search."""
    training = setting.federation.training if cell.federated else setting.study.central
    if training.bfloat16 and torch.device(device).type == "cpu" and lacks_bfloat16():
        warnings.warn("this processor lacks bfloat16, so training in it is very slow; turn it off", stacklevel=2)
    if task.head == "ctc" and not beam.beam_search_available():
        warnings.warn(
            "flashlight-text is not installed: error rates by beam search are left out, all others are measured",
            stacklevel=2,
        )
