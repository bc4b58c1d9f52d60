"""Compute means over seeds with their uncertainty, and compare two systems clip by clip and seed by seed.

A comparison works from counts: each clip, at each seed, has `errors` out of `n` (1 for a label, the number of words or
characters for a text). The error rate of a system is the ratio of the two sums.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t

from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

SHARES = ["difference", "low", "high", "seeds_low", "seeds_high"]  # columns of `compared` that are shares, not points
_CELLS = 2**22  # weights drawn at a time; this bounds the memory


def half_interval(values: ArrayLike, level: float = 0.95) -> float:
    """Return half the width of Student's interval for the mean of `values`, e.g. over seeds; NaN for fewer than two."""
    found = np.asarray(values, float)
    if len(found) < 2:
        return float("nan")
    return float(t.ppf((1 + level) / 2, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))


def over_seeds(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the mean of `value` over seeds per group: columns `by, mean, half_interval, seeds`.

    Args:
        table: columns `by`, `seed` and `value`, one row per group and seed.
        by: columns that name a group.

    Raises:
        FedexitError: a group has a seed twice, or a group, seed or value is missing.
    """
    _check_unique(table, [*by, "seed"])
    grouped = table.groupby(list(by), sort=False)["value"]
    return grouped.agg(mean="mean", half_interval=half_interval, seeds="size").reset_index()


def paired(table: pd.DataFrame, by: Sequence[str], column: str, one: str, other: str) -> pd.DataFrame:
    """Return `value` at `column` = `one` minus that at `other`, of equal seeds, summarised as by `over_seeds`.

    A seed that only one of the two has is left out. Raises FedexitError as `over_seeds`.
    """
    _check_unique(table, [*by, column, "seed"])
    wide = table.pivot_table(index=[*by, "seed"], columns=column, values="value", sort=False)
    wide = wide.reindex(columns=[one, other])  # an empty table has no columns
    return over_seeds((wide[one] - wide[other]).dropna().rename("value").reset_index(), by)


def _check_unique(table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raise FedexitError when two rows have the same `keys`, or when a key or a `value` is missing."""
    missing = table[[*keys, "value"]].isna()
    if missing.any(axis=None):
        row, column = missing.stack().idxmax()
        raise FedexitError(f"row {row} has no {column}; leave such rows out, or measure them")
    twice = table.duplicated(list(keys))
    if twice.any():
        where = ", ".join(f"{key} {value}" for key, value in table.loc[twice, list(keys)].iloc[0].items())
        raise FedexitError(f"two rows have {where}; keep one row per group and seed")


class Pairs(NamedTuple):
    """The counts of two systems on the same clips. Rows are seeds, columns are clips.

    more: (S, I), errors of one system minus those of the other; 0 where a seed does not have a clip.
    n: (S, I), number of labels, words or characters; 0 where a seed does not have a clip.
    """

    more: np.ndarray
    n: np.ndarray

    @property
    def difference(self) -> float:
        """Return the error rate of one system minus that of the other, over all seeds and clips together."""
        return float(self.more.sum() / self.n.sum())

    @property
    def by_seed(self) -> np.ndarray:
        """Return the difference of each seed (S,)."""
        return self.more.sum(axis=1) / self.n.sum(axis=1)


def pairs(items: pd.DataFrame, column: str, one: str, other: str) -> Pairs:
    """Pair the systems `one` and `other`, named in `column`, clip by clip.

    Args:
        items: columns `seed, item, errors, n` and `column`, one row per clip, seed and system
            (`fedexit.lab.cells.Measured.items`). Equal items of different seeds are the same clip: where seeds test
            other clips (folds), give them other numbers first.
        column: column that names the system.
        one: first system.
        other: second system.

    Raises:
        FedexitError: a system has no rows, only one of the two has a clip, a clip is there twice, a count is missing,
            or the two count a different `n`.
    """
    key = ["seed", "item"]
    counts = [items[items[column] == name].set_index(key)[["errors", "n"]] for name in (one, other)]
    for name, own in zip((one, other), counts, strict=True):
        if own.empty:
            raise FedexitError(f"no items of {column} {name!r}; there are {sorted(set(items[column]), key=str)}")
        if own.index.has_duplicates:
            seed, item = own.index[own.index.duplicated()][0]
            raise FedexitError(f"item {item} of {name!r} is there twice at seed {seed}; compare one exit at a time")
        if own.isna().any(axis=None):
            seed, item = own.index[own.isna().any(axis=1)][0]
            raise FedexitError(f"item {item} of {name!r} has no count of errors at seed {seed}; measure it again")
    first, second = counts
    if len(lone := first.index.symmetric_difference(second.index)):
        where = f"seed {lone[0][0]}, item {lone[0][1]}"
        raise FedexitError(f"only one of {one!r} and {other!r} has {where}; drop it or run both")
    second = second.loc[first.index]
    if (first["n"] != second["n"]).any():
        raise FedexitError(f"{one!r} and {other!r} count differently; score both against the same references")
    wide = pd.DataFrame({"more": first["errors"] - second["errors"], "n": first["n"]}).unstack("item", fill_value=0)
    return Pairs(wide["more"].to_numpy(float), wide["n"].to_numpy(float))


def bootstrap(
    found: Pairs, stream: Sequence[str | int | float], draws: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of `found.difference` over seeds and clips at once (see `resampled`)."""
    return interval(resampled(found, stream, draws), level)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the limits between which `level` of the drawn `values` lie.

    NaN is ignored: a draw without any fold of a system has no difference (`resampled`).
    """
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(found: Pairs, stream: Sequence[str | int | float], draws: int = 10_000) -> np.ndarray:
    """Return `found.difference` in each of `draws` resamples of seeds and clips (draws,).

    It is NaN in a draw without any of the folds.

    Each draw takes S seeds and I clips with replacement, and counts each pair as often as its seed times its clip. The
    clips are the same at every seed, so they are drawn once for all seeds (the pigeonhole bootstrap, Owen 2007, Annals
    of Applied Statistics 1(2)). With few seeds, the variance that they contribute is too small by (S - 1) / S.

    Args:
        found: the two systems.
        stream: name of the stream of random numbers. For pairs of the same seeds and clips, equal names draw equal
            resamples, so the arrays of several differences can be combined draw by draw.
        draws: number of resamples.
    """
    rng = numpy_stream(*stream)
    seeds, items = found.n.shape
    block = max(1, _CELLS // items)
    values = []
    for start in range(0, draws, block):
        size = min(block, draws - start)
        by_seed, by_item = (_multiplicities(rng, size, count) for count in (seeds, items))
        more, n = (((by_seed @ matrix) * by_item).sum(axis=1) for matrix in found)
        values.append(np.divide(more, n, out=np.full(size, np.nan), where=n > 0))
    return np.concatenate(values)


def verdict(low: float, high: float, sign: int) -> str:
    """Return the verdict of an interval on the hypothesis that a difference has this `sign` (1 or -1).

    `supported`: the whole interval lies on that side of 0. `refuted`: it lies on the other side. `undecided`: it
    contains 0, or there is no interval (NaN), as with one seed.
    """
    if not (low > 0 or high < 0):
        return "undecided"
    return "supported" if (low > 0) == (sign > 0) else "refuted"


def permutation_p(found: Pairs) -> float:
    """Return the two-sided p-value of the sign-flip test: if the systems were equal, each clip could favour either one.

    A clip flips together with all of its seeds, which are not independent of each other. The p-value treats the seeds
    as fixed. It is exact: errors are integers, so the distribution of the sum under all flips is computed clip by clip.

    Raises:
        FedexitError: errors are not integers.
    """
    more = found.more.sum(axis=0)
    if (more != np.round(more)).any():
        raise FedexitError("the permutation test needs integer counts of errors; give counts, not rates")
    steps = np.abs(more[more != 0]).astype(int)
    total = int(steps.sum())
    chance = np.zeros(total + 1)  # of the sum of the clips that are flipped
    chance[0], reach = 1.0, 0
    for step in np.sort(steps):
        reach += step
        flipped = np.zeros(reach + 1)
        flipped[step:] = chance[: reach - step + 1]
        chance[: reach + 1] = (chance[: reach + 1] + flipped) / 2
    sums = np.abs(total - 2 * np.arange(total + 1))
    return float(min(1.0, chance[sums >= abs(more.sum())].sum()))


def holm(p: ArrayLike) -> np.ndarray:
    """Return Holm's step-down adjustment of the p-values of a table of hypotheses, in their order (Holm 1979).

    Rejecting all that are below 0.05 rejects a true hypothesis with a chance of at most 5 %.

    Raises:
        FedexitError: a value is not a probability.
    """
    found = np.asarray(p, float)
    if not ((found >= 0) & (found <= 1)).all():
        raise FedexitError("Holm's correction needs p between 0 and 1; leave out comparisons that were not made")
    order = np.argsort(found, kind="stable")
    adjusted = np.empty(len(found))
    adjusted[order] = np.minimum(1, np.maximum.accumulate((len(found) - np.arange(len(found))) * found[order]))
    return adjusted


def compared(
    items: pd.DataFrame, by: Sequence[str], column: str, comparisons: Sequence[tuple[str, str]], draws: int = 10_000
) -> pd.DataFrame:
    """Compare pairs of systems, with paired intervals over clips and seeds.

    Args:
        items: see `pairs`.
        by: a comparison is made in each group of equal `by`. The first of them names the random stream, so the same
            comparison has the same interval in every table.
        column: column that names the system.
        comparisons: pairs of systems, one and other.
        draws: number of bootstrap resamples.

    Returns:
        Columns `by, one, other`; `difference`, the error rate of one minus that of other (a share), with its 95 %
        intervals `low, high` (`bootstrap`) and `seeds_low, seeds_high` (Student's t over seeds, NaN for one seed); `p`
        (`permutation_p`); `p_holm` over the whole table; `seeds, items`.

    Raises:
        FedexitError: as `pairs`.
    """
    rows = []
    for key, own in items.groupby(list(by), sort=False):
        for one, other in comparisons:
            found = pairs(own, column, one, other)
            within = bootstrap(found, ("bootstrap", str(key[0])), draws)
            half = half_interval(found.by_seed)
            limits = *within, found.difference - half, found.difference + half
            rows.append((*key, one, other, found.difference, *limits, permutation_p(found), *found.n.shape))
    names = [*by, "one", "other", *SHARES, "p", "seeds", "items"]
    table = pd.DataFrame(rows, columns=names)
    table.insert(names.index("seeds"), "p_holm", holm(table["p"]))
    return table


def changed(
    found: Pairs, other: Pairs, stream: Sequence[str | int], draws: int = 10_000
) -> tuple[float, float, float, float, float]:
    """Return how much larger the difference `found` is than `other`, on the same seeds and clips.

    Args:
        found: the first difference.
        other: the second one.
        stream: name of the random stream; each draw takes the same seeds and clips for both (`resampled`).
        draws: number of bootstrap resamples.

    Returns:
        The values of `SHARES`, as shares and not points: the change, the limits of its bootstrap, and those of
        Student's t over seeds (NaN for one seed).

    Raises:
        FedexitError: the two do not count the same `n` at each seed and clip.
    """
    if not np.array_equal(found.n, other.n):
        shapes = f"{found.n.shape} and {other.n.shape}"
        raise FedexitError(f"the two differences have other seeds or clips, or count differently: {shapes}")
    change, half = found.difference - other.difference, half_interval(found.by_seed - other.by_seed)
    within = interval(resampled(found, stream, draws) - resampled(other, stream, draws))
    return change, *within, change - half, change + half


def wider(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return `comparisons` with the wider limits of its two intervals as `low, high`; verdicts use these.

    The limits are NaN where one of the intervals is missing: with one seed there is no verdict.
    """
    low, high = (comparisons[[end, f"seeds_{end}"]] for end in ("low", "high"))
    return comparisons.assign(low=low.min(axis=1, skipna=False), high=high.max(axis=1, skipna=False))


def _multiplicities(rng: np.random.Generator, draws: int, count: int) -> np.ndarray:
    """Return how often each of `count` things is taken in `draws` samples of that size, with replacement."""
    taken = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    return np.bincount(taken.ravel(), minlength=draws * count).reshape(draws, count).astype(float)
