"""Who holds which clips: the rows of a task dealt out to clients, and clients to tiers (paper, sec. 3)."""

import re
from collections.abc import Mapping, Sequence

from fedexit.clients import Client
from fedexit.errors import FedexitError
from fedexit.streams import numpy_stream
from fedexit.tasks import Clips, Task

PARTITIONS = ("group", "iid")


def device_of(group: str) -> str:
    """The device a group of clips lives on: BOB1.DOG and BOB2.DOG are one character's; other names stay."""
    dialogue = re.fullmatch(r"(.*\D)\d*\.DOG", group)
    return dialogue[1] if dialogue else group


def assign_depths(devices: Sequence[str], depths: Sequence[int], seed: int) -> dict[str, int]:
    """Depth of each device: a random order dealt out evenly over `depths` (two depths are the paper's 50/50 tiers)."""
    names = sorted(set(devices))
    order = numpy_stream(seed, "tiers").permutation(len(names))
    return {names[int(index)]: depths[place % len(depths)] for place, index in enumerate(order)}


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
    max_seconds: float = 3.0,
    seed: int = 0,
) -> list[Client]:
    """One client per group of `client_groups(task, min_clips)`.

    `depths`: depth by device (see `device_of`). partition `group` leaves each group its own clips; `iid` keeps the
    groups' sizes and shuffles the clips among them, as the paper does for speaker identification.
    Raises FedexitError for an unknown partition and when no group is large enough.
    """
    if partition not in PARTITIONS:
        raise FedexitError(f"unknown partition {partition!r}; known: {', '.join(PARTITIONS)}")
    rows = task.rows.query("split == 'train'")
    rows = rows[rows["group"].isin(client_groups(task, min_clips))]
    groups = rows["group"].to_numpy()
    if partition == "iid":
        groups = groups[numpy_stream(seed, "iid").permutation(len(groups))]
    return [
        Client(group, Clips(task.corpus, held, max_seconds), depths[device_of(group)], tier_of(group, depths))
        for group, held in rows.groupby(groups, sort=True)
    ]
