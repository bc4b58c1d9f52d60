"""Assign groups of clips to devices and devices to depths, and divide clips with skewed labels."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fedexit.data.tasks.contract import Task
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


def device_of(group: str) -> str:
    """Return the device that holds a group of clips: BOB1.DOG and BOB2.DOG belong to BOB; other names stay."""
    dialogue = re.fullmatch(r"(.*\D)\d*\.DOG", group)
    return dialogue[1] if dialogue else group


def assign_depths(
    devices: Sequence[str], depths: Sequence[int], seed: int, shares: Sequence[float] = (), rotated: bool = False
) -> dict[str, int]:
    """Return the depth of each device. Devices are divided at random and evenly over `depths` (50/50 in the paper).

    Args:
        devices: their names.
        depths: the depth of each tier.
        seed: draws the tiers.
        shares: one number >= 0 per depth divides the devices in that ratio.
        rotated: whether seeds 0 to len(depths) - 1, and each such block of seeds after them, share one draw and put
            every device in every tier once. So effects of devices and of tiers are not mixed over a block of seeds.

    Raises FedexitError for other shares, and for shares of rotated tiers.
    """
    names = sorted(set(devices))
    if rotated:
        if shares:
            raise FedexitError(f"rotated tiers are equally large; leave out the shares {tuple(shares)}")
        order = numpy_stream(seed // len(depths), "rotated tiers").permutation(len(names))
        return {names[int(index)]: depths[(place + seed) % len(depths)] for place, index in enumerate(order)}
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
        raise FedexitError(
            f"no group of corpus {task.corpus.name} has {min_clips} clips for task {task.name}; lower min_clips"
        )
    return groups


def skewed_owners(labels: np.ndarray, names: np.ndarray, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Return the owner of each clip: every label is divided by shares of the `names` from Dirichlet(`alpha`)."""
    owners = np.empty(len(labels), dtype=names.dtype)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(rng.dirichlet([alpha] * len(names)))
        middles = (np.arange(len(own)) + 0.5) / len(own)
        owners[own] = names[np.searchsorted(ends, middles).clip(max=len(names) - 1)]
    return owners
