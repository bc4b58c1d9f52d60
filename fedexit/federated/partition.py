"""Who holds which clips: the rows of a task dealt out to clients, and clients to tiers (paper, sec. 3)."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fedexit.data.tasks.contract import Clips, Task, check_spelling
from fedexit.federated.clients import Client
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

PARTITIONS = ("group", "iid", "dirichlet")


def device_of(group: str) -> str:
    """The device a group of clips lives on: BOB1.DOG and BOB2.DOG are one character's; other names stay."""
    dialogue = re.fullmatch(r"(.*\D)\d*\.DOG", group)
    return dialogue[1] if dialogue else group


def assign_depths(devices: Sequence[str], depths: Sequence[int], seed: int, shares: Sequence[float] = ()) -> dict:
    """Depth of each device: a random order dealt out over `depths`, evenly (two are the paper's 50/50 tiers).

    With `shares`, one for each depth, they get the devices in that ratio. Raises FedexitError for other shares.
    """
    names = sorted(set(devices))
    order = numpy_stream(seed, "tiers").permutation(len(names))
    if not shares:
        return {names[int(index)]: depths[place % len(depths)] for place, index in enumerate(order)}
    if len(shares) != len(depths) or min(shares) < 0 or sum(shares) <= 0:
        raise FedexitError(f"{len(depths)} depths need as many shares, none negative, not {tuple(shares)}")
    ends = np.cumsum(shares) / sum(shares)
    middles = (np.arange(len(names)) + 0.5) / len(names)
    return {names[int(i)]: depths[place] for i, place in zip(order, np.searchsorted(ends, middles), strict=True)}


def tier_of(group: str, depths: Mapping[str, int]) -> str:
    """Tier of the device that `group` lives on, called by its depth ("depth 3"), or "no client"."""
    device = device_of(group)
    return f"depth {depths[device]}" if device in depths else "no client"


def client_groups(task: Task, min_clips: int = 8) -> list[str]:
    """The groups that become clients, sorted: those with at least `min_clips` clips of the task's training part."""
    sizes = task.rows.query("split == 'train'")["group"].value_counts()
    groups = sorted(sizes[sizes >= min_clips].index)
    if not groups:
        raise FedexitError(f"no group of corpus {task.corpus.name} has {min_clips} clips for task {task.name}")
    return groups


def make_clients(
    task: Task,
    depths: Mapping[str, int],
    partition: str = "group",
    min_clips: int = 8,
    max_seconds: float | None = None,
    seed: int = 0,
    alpha: float = 0.5,
) -> list[Client]:
    """One client per group of `client_groups(task, min_clips)`; clips are cut at `max_seconds` (None: the task's).

    `depths`: depth by device (see `device_of`). partition `group` leaves each group its own clips; `iid` keeps the
    groups' sizes and shuffles the clips among them, as the paper does for speaker identification; `dirichlet` deals out
    each label by shares drawn from Dirichlet(`alpha`), the smaller the more skewed (Hsu et al. 2019); who gets no clip
    is left out. Raises FedexitError for an unknown partition, when no group is large enough, and for a Dirichlet that
    has no labels or no `alpha` > 0.
    """
    if partition not in PARTITIONS:
        raise FedexitError(f"unknown partition {partition!r}; known: {', '.join(PARTITIONS)}")
    rows = task.rows.query("split == 'train'")
    rows = rows[rows["group"].isin(client_groups(task, min_clips))]
    groups = rows["group"].to_numpy()
    if partition == "iid":
        groups = groups[numpy_stream(seed, "iid").permutation(len(groups))]
    if partition == "dirichlet":
        if task.head == "ctc" or alpha <= 0:
            raise FedexitError(f"partition dirichlet needs a task with labels and alpha > 0, not {task.name}, {alpha}")
        groups = _skewed(rows["target"].to_numpy(), np.unique(groups), alpha, numpy_stream(seed, "dirichlet"))
    seconds = task.max_seconds if max_seconds is None else max_seconds
    if task.head == "ctc":
        check_spelling(rows, seconds)
    return [
        Client(group, Clips(task.corpus, held, seconds), depths[device_of(group)], tier_of(group, depths))
        for group, held in rows.groupby(groups, sort=True)
    ]


def _skewed(labels: np.ndarray, names: np.ndarray, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Which of the `names` gets each clip."""
    owners = np.empty(len(labels), dtype=names.dtype)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(rng.dirichlet([alpha] * len(names)))
        middles = (np.arange(len(own)) + 0.5) / len(own)
        owners[own] = names[np.searchsorted(ends, middles).clip(max=len(names) - 1)]
    return owners
