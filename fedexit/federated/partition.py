"""Divide the clips of a task among clients, and clients among tiers (paper, sec. 3)."""

from collections.abc import Mapping

import numpy as np

from fedexit.data.groups import assign_depths as assign_depths
from fedexit.data.groups import client_groups, device_of, skewed_owners, tier_of
from fedexit.data.tasks.contract import Clips, Task, check_spelling
from fedexit.federated.clients import Client
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

PARTITIONS = ("group", "iid", "dirichlet")


def make_clients(
    task: Task,
    depths: Mapping[str, int],
    partition: str = "group",
    min_clips: int = 8,
    max_seconds: float | None = None,
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
        max_seconds: Clips are cut to this length; None for the task's own.
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
        groups = skewed_owners(rows["target"].to_numpy(), np.unique(groups), alpha, numpy_stream(seed, "dirichlet"))
    seconds = task.max_seconds if max_seconds is None else max_seconds
    if task.head == "ctc":
        check_spelling(rows, seconds)
    return [
        Client(group, Clips(task.corpus, held, seconds), depths[device_of(group)], tier_of(group, depths))
        for group, held in rows.groupby(groups, sort=True)
    ]
