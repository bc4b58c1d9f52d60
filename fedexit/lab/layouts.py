"""Pair the raw measurements of two arms clip by clip, and refuse tables that are incomplete.

The raw table has one row per arm, seed and test clip: columns `arm, seed, cluster, item, errors, n`. A cluster is the
speaker or the dialogue of the clip. `n` is what `errors` is counted in: 1 for a label, the characters of a text. An
error rate is a ratio of sums.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedexit.support.errors import FedexitError

ROWS = ["arm", "seed", "cluster", "item", "errors", "n"]
LEAST = {"errors": 0, "n": 1, "value": 0, "round": 0, "se": 0}  # smallest value of columns of numbers


class Layout(NamedTuple):
    """Counts of two arms on the same clips, summed per seed and cluster.

    more: (S, C), errors of one arm minus those of the other; 0 where a seed did not test a cluster.
    n: (S, C), labels or characters; 0 where a seed did not test a cluster.
    """

    more: np.ndarray
    n: np.ndarray

    @property
    def by_seed(self) -> np.ndarray:
        """Return the difference of each seed in points (S,)."""
        return 100 * self.more.sum(axis=1) / self.n.sum(axis=1)

    @property
    def effective(self) -> float:
        """Return how many clusters of equal size would weigh like these: (sum of n)^2 / sum of n^2, at most C."""
        return float(self.n.sum() ** 2 / (self.n.sum(axis=0) ** 2).sum())

    @property
    def kind(self) -> str:
        """Return `crossed` (every seed tests every cluster), `nested` (one seed per cluster) or `partly crossed`."""
        tested = self.n > 0
        if tested.all():
            return "crossed"
        return "nested" if (tested.sum(axis=0) == 1).all() else "partly crossed"


def layout(rows: pd.DataFrame, one: str, other: str) -> Layout:
    """Pair two arms clip by clip, and sum their counts per seed and cluster.

    Args:
        rows: columns `ROWS`. Equal items of different seeds are the same clip.
        one: the first arm.
        other: the arm that is subtracted.

    Raises:
        FedexitError: a column or value is missing or impossible; an arm has no rows or has a clip twice; only one arm
            has a clip; the arms count a different `n`; a clip has two clusters; there is only one cluster.
    """
    check_rows(rows, ROWS)
    if one == other:
        raise FedexitError(f"arm {one!r} is compared with itself; name two arms")
    first, second = (_counts(rows, arm) for arm in (one, other))
    if len(lone := first.index.symmetric_difference(second.index)):
        owner = one if lone[0] in first.index else other
        raise FedexitError(f"only arm {owner!r} has {_clip(lone)}; measure both arms on the same seeds and clips")
    second = second.loc[first.index]
    if (differs := first["n"] != second["n"]).any():
        where = _clip(first.index[differs])
        raise FedexitError(f"arms {one!r} and {other!r} count a different n at {where}; use the same references")
    clips = pd.concat([first, second]).reset_index()
    if (several := clips.groupby("item")["cluster"].nunique() > 1).any():
        raise FedexitError(f"item {several.idxmax()} has two clusters; give each clip one speaker or dialogue")
    seeds = pd.factorize(first.index.get_level_values("seed"), sort=True)
    clusters = pd.factorize(first["cluster"])
    if len(clusters[1]) < 2:
        raise FedexitError(f"all clips are of cluster {clusters[1][0]!r}; an interval needs at least two clusters")
    more, n = np.zeros((2, len(seeds[1]), len(clusters[1])))
    np.add.at(more, (seeds[0], clusters[0]), (first["errors"] - second["errors"]).to_numpy(float))
    np.add.at(n, (seeds[0], clusters[0]), first["n"].to_numpy(float))
    return Layout(more, n)


def _counts(rows: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Return `cluster, errors, n` of an arm by seed and item."""
    own = rows.loc[rows["arm"] == arm].set_index(["seed", "item"])[["cluster", "errors", "n"]]
    if own.empty:
        raise FedexitError(f"arm {arm!r} has no rows; there are {sorted(set(rows['arm']), key=str)}")
    if (twice := own.index.duplicated()).any():
        raise FedexitError(f"arm {arm!r} has {_clip(own.index[twice])} twice; name in `by` what tells the rows apart")
    return own


def _clip(index: pd.Index) -> str:
    return "seed {}, item {}".format(*index[0])


def check_rows(rows: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raise FedexitError when there are no rows, or a column or a value is missing or impossible."""
    if absent := [name for name in needed if name not in rows]:
        raise FedexitError(f"the table has no column {absent[0]!r}; it needs {', '.join(needed)}")
    if rows.empty:
        raise FedexitError("the table has no rows; measure the arms first")
    for name in needed:
        values = rows[name]
        if (missing := values.isna()).any():
            row = rows.index[missing.to_numpy().argmax()]
            raise FedexitError(f"row {row} has no {name}; fill it in or remove it, since no row is left out in silence")
        if (least := LEAST.get(name)) is None:
            continue
        if not pd.api.types.is_numeric_dtype(values):
            raise FedexitError(f"column {name!r} holds {values.dtype}, not numbers; convert it with pandas.to_numeric")
        if (wrong := ~np.isfinite(values) | (values < least)).any():
            row = wrong.to_numpy().argmax()
            where = f"row {rows.index[row]} has {name} {values.iloc[row]}"
            raise FedexitError(f"{where}; it must be a finite number of at least {least}")
