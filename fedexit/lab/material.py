"""Open the corpus, the task and the tiers of a cell."""

from functools import cache

import numpy as np

from fedexit.data.corpora import Corpus, open_corpus
from fedexit.data.folder import MANIFEST
from fedexit.data.places import folder_of
from fedexit.data.tasks import make_task, task_options
from fedexit.data.tasks.contract import Task
from fedexit.federated.partition import assign_depths, client_groups, device_of
from fedexit.lab.setting import Cell, Setting
from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash


def task_of(cell: Cell, setting: Setting) -> Task:
    """Return the cell's task. A task with folds takes the cell's seed as its fold.

    Raises:
        FedexitError: the corpus cannot express the task, or one of the splits is empty.
    """
    given = {"fold": cell.seed, "max_seconds": setting.data.max_seconds}
    options = {name: value for name, value in given.items() if name in task_options(cell.task)}
    task = make_task(cell.task, opened(setting.data.corpus), **options)
    for split in ("train", "dev", "test"):
        if split not in set(task.rows["split"]):
            raise FedexitError(
                f"corpus {task.corpus.name} has no clips of split {split} for task {task.name}; take another corpus"
            )
    return task


def has_folds(task: str) -> bool:
    """Return whether the seed of a cell decides which people are tested."""
    return "fold" in task_options(task)


def tiers_of(task: Task, setting: Setting, seed: int) -> dict[str, int]:
    """Return the depth of each device."""
    devices = [device_of(group) for group in client_groups(task, setting.data.min_clips)]
    return assign_depths(devices, setting.model.depths, seed, setting.model.shares, setting.model.rotated)


def groups_tested(task: Task) -> np.ndarray:
    """Return the group of each test clip."""
    return task.rows.query("split == 'test'")["group"].to_numpy()


def opened(corpus: str) -> Corpus:
    """Return a corpus, opened once per process for each content of its manifest: a check takes about a second."""
    return _opened(corpus, file_hash(folder_of(corpus) / MANIFEST))


@cache
def _opened(corpus: str, checksum: str) -> Corpus:
    return open_corpus(corpus)
