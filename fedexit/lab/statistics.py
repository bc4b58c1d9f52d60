"""Means over seeds with their uncertainty; two systems compared clip by clip and seed by seed.

A comparison works from counts: each clip, at each seed, has `errors` and `n`, what could be wrong of it (1 for a label,
its words for a text), and a system's error rate is a ratio of their sums.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

SHARES = ["difference", "low", "high", "seeds_low", "seeds_high"]  # columns of `compared` that are error rates
_CELLS = 2**22  # weights drawn at a time, so that memory stays small


def half_interval(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of Student's interval of the mean of `values` (of seeds, say); NaN for fewer than two."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan")
    return float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def over_seeds(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean of `value` over seeds per group: columns `by, mean, half_interval, seeds`."""
    grouped = table.groupby(list(by), sort=False)["value"]
    return grouped.agg(mean="mean", half_interval=half_interval, seeds="size").reset_index()


def paired(table: pd.DataFrame, by: Sequence[str], column: str, one: str, other: str) -> pd.DataFrame:
    """`value` at `column` = `one` minus that at `other`, of the same seed, as in `over_seeds`."""
    wide = table.pivot_table(index=[*by, "seed"], columns=column, values="value", sort=False)
    wide = wide.reindex(columns=[one, other])  # of no rows at all there are no columns
    return over_seeds((wide[one] - wide[other]).dropna().rename("value").reset_index(), by)


class Pairs(NamedTuple):
    """Two systems on the same clips: `more` (S, I), the errors of one beyond the other's, and `n` (S, I).

    Rows are seeds, columns clips; where a seed does not have a clip, both are 0.
    """

    more: np.ndarray
    n: np.ndarray

    @property
    def difference(self) -> float:
        """Error rate of one system minus that of the other, all seeds and clips together."""
        return float(self.more.sum() / self.n.sum())

    @property
    def by_seed(self) -> np.ndarray:
        """The same of each seed (S,)."""
        return self.more.sum(axis=1) / self.n.sum(axis=1)


def pairs(items: pd.DataFrame, column: str, one: str, other: str) -> Pairs:
    """The systems `one` and `other`, named in `column`, clip by clip.

    items: `seed, item, errors, n` and `column`, a row per clip, seed and system
    (`fedexit.lab.cells.Measured.items`). Equal
    items of different seeds are taken for the same clip: where seeds test other clips (folds), name them apart first.
    Raises FedexitError for a system without rows, for clips that only one of the two has or has twice, and where the
    two do not count the same `n`.
    """
    key = ["seed", "item"]
    counts = [items[items[column] == name].set_index(key)[["errors", "n"]] for name in (one, other)]
    for name, own in zip((one, other), counts, strict=True):
        if own.empty:
            raise FedexitError(f"no items of {column} {name!r}; there are {sorted(set(items[column]), key=str)}")
        if own.index.has_duplicates:
            seed, item = own.index[own.index.duplicated()][0]
            raise FedexitError(f"item {item} of {name!r} is there twice at seed {seed}; compare one exit at a time")
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
    """Percentile interval of `found.difference`, over seeds and clips at once: see `resampled`."""
    return interval(resampled(found, stream, draws), level)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """What lies between holds `level` of the drawn `values`; NaN are left out."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(found: Pairs, stream: Sequence[str | int | float], draws: int = 10_000) -> np.ndarray:
    """`found.difference` in each of `draws` resamples of seeds and clips (draws,); NaN where folds were all missed.

    Each draw takes S seeds, then I clips, with replacement, and each pair as often as its seed times its clip: clips
    are the same at every seed, so they are drawn once for all of them (the pigeonhole bootstrap, Owen 2007, Annals of
    Applied Statistics 1(2)). Of few seeds the part that they contribute comes out somewhat narrow, by the factor
    (S - 1) / S in variance. Randomness comes from the stream named `stream`: for pairs of the same seeds and clips,
    one name draws the same ones, so what is made of several differences is drawn by making it of their arrays.
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
    """What an interval says of the hypothesis that a difference has this `sign` (1 or -1).

    `supported` where all of it lies on that side of 0, `refuted` where all of it lies on the other, else `undecided`,
    as where there is no interval (NaN).
    """
    if not (low > 0 or high < 0):
        return "undecided"
    return "supported" if (low > 0) == (sign > 0) else "refuted"


def all_of(verdicts: Iterable[str]) -> str:
    """The verdict on a hypothesis of several parts: one refuted part refutes it, and every part must be supported."""
    found = set(verdicts)
    if "refuted" in found:
        return "refuted"
    return "supported" if found == {"supported"} else "undecided"


def permutation_p(found: Pairs) -> float:
    """Two-sided p of the sign-flip test: were the two systems alike, each clip could as well favour the other one.

    A clip flips with all its seeds, which are not independent of each other. Exact: errors are whole numbers, so the
    distribution of the sum under all flips is built clip by clip, and nothing is drawn. Raises FedexitError for errors
    that are no counts.
    """
    more = found.more.sum(axis=0)
    if (more != np.round(more)).any():
        raise FedexitError("the permutation test needs whole numbers of errors, not rates")
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


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of the p of a table of hypotheses, in their order (Holm 1979).

    Those below 0.05 may all be rejected with a chance of at most 5 % that any of them is true. Raises FedexitError for
    what is no probability.
    """
    p = np.asarray(p, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise FedexitError("Holm's correction needs p between 0 and 1; leave out comparisons that were not made")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return adjusted


def compared(
    items: pd.DataFrame, by: Sequence[str], column: str, comparisons: Sequence[tuple[str, str]], draws: int = 10_000
) -> pd.DataFrame:
    """A table of comparisons of two systems each, with paired intervals over clips and seeds.

    items: see `pairs`; a comparison is made in each group of equal `by`. Columns `by, one, other`, `difference` (error
    rate of one minus that of other, a share) and its 95 % interval `low, high` (`bootstrap`), `seeds_low, seeds_high`
    (the same by Student's t over the seeds' differences, wide for few seeds, NaN for one), `p` (`permutation_p`),
    `p_holm` over the whole table, `seeds, items`. The first of `by` names the stream, so the same comparison has the
    same interval in every table. Raises FedexitError as `pairs` does.
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
    """How much larger the difference `found` is than `other`, on the same seeds and clips: a difference of differences.

    Returns the values of `SHARES`, as shares and not points: the change, the limits of its bootstrap (each draw takes
    the same seeds and clips for both, see `resampled`) and those of Student's t over the seeds, NaN for one. Raises
    FedexitError where the two do not count the same `n` at each seed and clip.
    """
    if not np.array_equal(found.n, other.n):
        shapes = f"{found.n.shape} and {other.n.shape}"
        raise FedexitError(f"two differences of other seeds and clips, or counted differently: {shapes}")
    change, half = found.difference - other.difference, half_interval(found.by_seed - other.by_seed)
    within = interval(resampled(found, stream, draws) - resampled(other, stream, draws))
    return change, *within, change - half, change + half


def wider(comparisons: pd.DataFrame) -> pd.DataFrame:
    """`compared` with the wider limits of its two intervals as `low, high`: a verdict on few seeds goes by these."""
    low, high = (comparisons[[end, f"seeds_{end}"]] for end in ("low", "high"))
    return comparisons.assign(low=low.min(axis=1), high=high.max(axis=1))  # without the NaN of a single seed


def _multiplicities(rng: np.random.Generator, draws: int, count: int) -> np.ndarray:
    """How often each of `count` things is taken in `draws` samples of that size with replacement (draws, count)."""
    taken = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    return np.bincount(taken.ravel(), minlength=draws * count).reshape(draws, count).astype(float)
