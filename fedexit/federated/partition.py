"""Divide the clips of a task among clients, and clients among tiers (paper, sec. 3)."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fedexit.data.tasks.contract import Clips, Task
from fedexit.federated.clients import Client
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

PARTITIONS = ("group", "iid", "dirichlet")


def device_of(group: str) -> str:
    """Return the device that holds a group of clips: BOB1.DOG and BOB2.DOG belong to BOB; other names stay."""
    dialogue = re.fullmatch(r"(.*\D)\d*\.DOG", group)
    return dialogue[1] if dialogue else group


def assign_depths(devices: Sequence[str], depths: Sequence[int], seed: int, shares: Sequence[float] = ()) -> dict:
    """Return the depth of each device: a random order divided evenly over `depths` (two are the paper's 50/50 tiers).

    With `shares`, one number >= 0 per depth, it is divided in that ratio. Raises FedexitError for other shares.
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
    """Return the tier of the device that holds `group`, named by its depth ("depth 3"), or "no client"."""
    device = device_of(group)
    return f"depth {depths[device]}" if device in depths else "no client"


def client_groups(task: Task, min_clips: int = 8) -> list[str]:
    """Return the groups that become clients, sorted: those with at least `min_clips` training clips."""
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
    max_seconds: float = 3.0,
    seed: int = 0,
    alpha: float = 0.5,
) -> list[Client]:
    """Return one client per group of `client_groups(task, min_clips)`.

    Args:
        task: The task, whose training rows are divided.
        depths: Depth by device (see `device_of`).
        partition: `group` leaves each group its own clips; `iid` keeps the sizes of the groups and shuffles the clips
            among them, as the paper does for speaker identification; `dirichlet` divides each label by shares drawn
            from Dirichlet(`alpha`) (Hsu et al. 2019), and leaves out groups without clips.
        min_clips: The smallest group that becomes a client.
        max_seconds: Clips are cut to this length.
        seed: Seed of the shuffle or of the shares.
        alpha: Parameter of the Dirichlet distribution, > 0; small values give skewed clients.

    Raises FedexitError for an unknown partition, when no group is large enough, and for `dirichlet` without labels or
    with alpha <= 0.
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
    return [
        Client(group, Clips(task.corpus, held, max_seconds), depths[device_of(group)], tier_of(group, depths))
        for group, held in rows.groupby(groups, sort=True)
    ]


def _skewed(labels: np.ndarray, names: np.ndarray, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Return the name, among `names`, of the owner of each clip."""
    owners = np.empty(len(labels), dtype=names.dtype)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(rng.dirichlet([alpha] * len(names)))
        middles = (np.arange(len(own)) + 0.5) / len(own)
        owners[own] = names[np.searchsorted(ends, middles).clip(max=len(names) - 1)]
    return owners
