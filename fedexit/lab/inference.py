"""Turn raw counts of errors into differences, intervals and verdicts, by one rule for every notebook and the README.

Seeds and clusters (speakers or dialogues of the test clips) both count as random samples, and a measurement belongs to
one of each. The variance has a term for each minus what they share (Cameron, Gelbach and Miller 2011, Journal of
Business and Economic Statistics 29(2)). Differences are in points, i.e. 100 times a share; a negative one means fewer
errors. `fedexit.lab.layouts` describes the raw table.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t

from fedexit.lab.layouts import ROWS, Layout, check_rows, layout
from fedexit.support.errors import FedexitError

MARGIN = 1.0  # points; smaller differences are equivalent
ALPHA = 0.05  # chance of a false verdict in a family; intervals cover 1 - ALPHA
POWER = 0.8  # for the number of seeds that would resolve a comparison
FEWEST_SEEDS = 5  # fewer give no verdict
MOST_SEEDS = 1000  # the search for the number of seeds ends here

BETTER, WORSE, EQUIVALENT, UNRESOLVED = VERDICTS = [
    "better",
    "worse",
    f"equivalent within {MARGIN:g} point",
    "not resolved",
]
Reasons = Mapping[str, Sequence[str]]  # against each arm of a task
DEMONSTRATION, REFUSED, EXPLORATORY = "demonstration", "not admitted", "exploratory"  # these are no verdicts


class Difference(NamedTuple):
    """Error rate of one arm minus that of another.

    difference: in points, over all seeds and clips; negative if `one` has fewer errors.
    low, high: 95 % interval in points; NaN for one seed.
    p: two-sided, not corrected for multiple comparisons; NaN for one seed.
    se: standard error in points; NaN for one seed.
    seed_se: its part that falls with the number of seeds, in points; NaN for one seed.
    seeds, clusters: number of each.
    effective: number of clusters that the degrees of freedom count (`Layout.effective`).
    layout: `crossed`, `nested` or `partly crossed` (`Layout.kind`).
    """

    difference: float
    low: float
    high: float
    p: float
    se: float
    seed_se: float
    seeds: int
    clusters: int
    effective: float
    layout: str


def difference(found: Layout) -> Difference:
    """Return the difference of two arms with its interval and p-value.

    The variance is seed + cluster - residual, and never below the larger of the first two (MacKinnon, Nielsen and Webb
    2024, arXiv 2406.08880). Each term is a jackknife that leaves out seeds, clusters, or both, so that it holds for a
    ratio and for clusters of unequal size. If every seed tests every cluster and sizes are equal, it is the unbiased
    estimate of the analysis of variance. If the seeds test other clusters (rotated speakers), the residual takes back
    the clusters that are already part of the seed term.

    The distribution is Student's t with min(seeds, effective clusters) - 1 degrees of freedom. The number of clusters
    itself would promise too much where a few of them hold most clips.
    """
    seeds, clusters = found.n.shape
    about = seeds, clusters, found.effective, found.kind
    theta = float(100 * found.more.sum() / found.n.sum())
    if seeds < 2:
        nan = float("nan")
        return Difference(theta, nan, nan, nan, nan, nan, *about)
    by_seed, by_cluster, residual = _jackknife(found)
    se = max(by_seed + by_cluster - residual, by_seed, by_cluster) ** 0.5
    if se == 0:
        return Difference(theta, theta, theta, float(theta == 0), 0.0, 0.0, *about)
    freedom = min(seeds, found.effective) - 1
    half = float(t.ppf(1 - ALPHA / 2, freedom)) * se
    p = float(2 * t.sf(abs(theta) / se, freedom))
    return Difference(theta, theta - half, theta + half, p, se, by_seed**0.5, *about)


def _jackknife(found: Layout) -> tuple[float, float, float]:
    """Return the seed, the cluster and the residual term of the variance, in points squared."""
    (seeds, clusters), (more, n) = found.n.shape, (100 * found.more, found.n)
    seed_more, seed_n = (counts.sum(axis=1, keepdims=True) for counts in (more, n))
    cluster_more, cluster_n = (counts.sum(axis=0, keepdims=True) for counts in (more, n))
    theta = more.sum() / n.sum()
    seed = (more.sum() - seed_more) / (n.sum() - seed_n) - theta  # change without each seed (S, 1)
    cluster = (more.sum() - cluster_more) / (n.sum() - cluster_n) - theta  # change without each cluster (1, C)
    rest_more, rest_n = more.sum() - seed_more - cluster_more + more, n.sum() - seed_n - cluster_n + n
    expected = theta + seed + cluster  # where nothing is left without both, the residual is 0
    residual = np.divide(rest_more, rest_n, out=expected.copy(), where=rest_n > 0) - expected
    by_seed, by_cluster = (seeds - 1) / seeds, (clusters - 1) / clusters
    terms = by_seed * (seed**2).sum(), by_cluster * (cluster**2).sum(), by_seed * by_cluster * (residual**2).sum()
    return float(terms[0]), float(terms[1]), float(terms[2])


def error_rates(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the error rate of each arm in each group with its 95 % interval, all in percent.

    The interval is that of `difference` with an arm that makes no error. It is cut at 0, and where no clip has more
    errors than it is counted in, at 100.

    Args:
        rows: columns `by` and `ROWS`.
        by: columns that name a group, e.g. `task, exit`.

    Returns:
        Columns `by, arm, error, low, high, seeds, clusters`; the limits are NaN for one seed.

    Raises:
        FedexitError: as `layout`.
    """
    check_rows(rows, [*by, *ROWS])
    found, none = [], "no error"
    for key, own in rows.groupby([*by, "arm"], sort=False, observed=True):
        right = own.assign(arm=none, errors=0)
        one = difference(layout(pd.concat([own, right]), str(key[-1]), none))
        most = 100 if (own["errors"] <= own["n"]).all() else np.inf
        found.append((*key, one.difference, *np.clip([one.low, one.high], 0, most), one.seeds, one.clusters))
    return pd.DataFrame(found, columns=[*by, "arm", "error", "low", "high", "seeds", "clusters"])


def compare(rows: pd.DataFrame, by: Sequence[str], comparisons: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Compare pairs of arms in each group. The result is exploratory: `judge` adds the verdicts.

    Args:
        rows: columns `by` and `ROWS`.
        by: columns that name a group, e.g. `task, exit`.
        comparisons: pairs of arms, the second one is subtracted.

    Returns:
        Columns `by, one, other` and those of `Difference`, one row per group and pair.

    Raises:
        FedexitError: as `layout`, with the group.
    """
    check_rows(rows, [*by, *ROWS])
    found, pairs = [], list(comparisons)
    for key, own in rows.groupby(list(by), sort=False, observed=True):
        for one, other in pairs:
            try:
                found.append((*key, one, other, *difference(layout(own, one, other))))
            except FedexitError as error:
                raise FedexitError(f"{_named(by, key)}: {error}") from error
    return pd.DataFrame(found, columns=[*by, "one", "other", *Difference._fields])


def _named(names: Iterable[str], values: Iterable) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def judge(compared: pd.DataFrame, primary: Iterable[tuple], admission: Mapping[str, Reasons]) -> pd.DataFrame:
    """Give the primary comparisons their verdicts; all others are `exploratory`.

    The first of these that applies is the verdict:
        `demonstration`: there are fewer than 5 seeds.
        `not admitted`: there are reasons against one of the two arms.
        `better`, `worse`: p is below 0.05 after Holm's correction over the family, so the interval excludes 0.
        `equivalent within 1 point`: the 95 % interval lies inside +-1 point. This is not corrected for the family: each
            such verdict is wrong with a chance of at most 2.5 %.
        `not resolved`: none of these.
    An interval from 0.2 to 0.8 points is thus `worse` if p is small enough; `small` then says that it lies inside +-1.

    Args:
        compared: the result of `compare`, with a column `task`.
        primary: the family that was declared before the run. Each comparison holds the values of the columns before
            `difference`, e.g. `("keyword", 12, "masked", "eq1")`.
        admission: for each task the reasons against each arm (`fedexit.lab.admission`). An empty list admits an arm, as
            does a missing one: yardsticks are not trained.

    Returns:
        `compared` with new columns: `verdict`; `p_holm`, NaN for exploratory comparisons; `small`; `seeds_needed`, NaN
        unless the verdict is `not resolved` (`seeds_needed`); `refused`, the arms that are not admitted where this is
        the verdict.

    Raises:
        FedexitError: a primary comparison is missing or is there twice; a task lacks its admission.
    """
    keys, family = list(compared.columns[: compared.columns.get_loc("difference")]), list(primary)
    own = _declared(compared[keys], family)
    if absent := [task for task in compared["task"][own] if task not in admission]:
        raise FedexitError(f"task {absent[0]!r} has no admission; give the reasons against its arms, or none: {{}}")
    p_holm = pd.Series(np.nan, compared.index)
    p_holm[own] = holm(compared["p"][own].fillna(1))  # a comparison of one seed has no p, but counts
    p_holm = p_holm.where(compared["p"].notna())
    rows = list(compared.assign(primary=own, p_holm=p_holm).itertuples())
    verdicts = [_verdict(row, admission) for row in rows]
    both = list(zip(rows, verdicts, strict=True))
    small = [word in (BETTER, WORSE) and _inside(row) for row, word in both]
    needed = [seeds_needed(row, len(family)) if word == UNRESOLVED else np.nan for row, word in both]
    refused = [" and ".join(_refused(row, admission)) if word == REFUSED else "" for row, word in both]
    return compared.assign(verdict=verdicts, p_holm=p_holm, small=small, seeds_needed=needed, refused=refused)


def _declared(compared: pd.DataFrame, family: list[tuple]) -> np.ndarray:
    """Return which rows the family has declared, given the columns that name a comparison."""
    if "task" not in compared:
        raise FedexitError("the comparisons have no column 'task'; name it in `by`, with one task if there is only one")
    names = list(compared.itertuples(index=False, name=None))
    for name in family:
        if (counts := (family.count(name), names.count(name))) != (1, 1):
            where = "is {} times in the family and {} times in the table".format(*counts)
            raise FedexitError(f"comparison {name} {where}; name it once, as {', '.join(compared.columns)}")
    return np.array([name in family for name in names], bool)


def _refused(row: Any, admission: Mapping[str, Reasons]) -> list[str]:
    return [arm for arm in (row.one, row.other) if admission[row.task].get(arm)]


def _verdict(row: Any, admission: Mapping[str, Reasons]) -> str:
    if not row.primary:
        return EXPLORATORY
    if row.seeds < FEWEST_SEEDS:
        return DEMONSTRATION
    if _refused(row, admission):
        return REFUSED
    if row.p_holm < ALPHA:
        return BETTER if row.difference < 0 else WORSE
    return EQUIVALENT if _inside(row) else UNRESOLVED


def _inside(row: Any) -> bool:
    return row.low > -MARGIN and row.high < MARGIN


def holm(p: ArrayLike) -> np.ndarray:
    """Return Holm's step-down adjustment of the p-values of a family, in their order (Holm 1979).

    Rejecting all that are below 0.05 rejects a true hypothesis with a chance of at most 5 %.

    Raises:
        FedexitError: a value is not a probability.
    """
    found = np.asarray(p, float)
    if (wrong := ~((found >= 0) & (found <= 1))).any():
        raise FedexitError(f"p is {found[wrong][0]}, not between 0 and 1; leave out comparisons that were not made")
    order = np.argsort(found, kind="stable")
    adjusted = np.empty(len(found))
    adjusted[order] = np.minimum(1, np.maximum.accumulate((len(found) - np.arange(len(found))) * found[order]))
    return adjusted


def seeds_needed(found: Any, family: int = 1) -> float:
    """Return the number of seeds that would resolve a comparison with the chance `POWER`.

    The difference and the variances are taken as they are today. Resolved means that p is below 0.05 / `family`, or
    that the interval lies inside +-1 point. More seeds bring new clusters only in a nested layout.

    Args:
        found: a `Difference`, or a row of the table of `compare`.
        family: number of primary comparisons.

    Returns:
        A whole number above `found.seeds`; infinity if 1000 seeds are too few, e.g. because of the clusters.
    """
    seeds = np.arange(found.seeds + 1, MOST_SEEDS + 1)
    nested = found.layout == "nested"
    falls = found.se if nested else found.seed_se
    se = np.sqrt(falls**2 * found.seeds / seeds + found.se**2 - falls**2)
    freedom = (seeds if nested else np.minimum(seeds, found.effective)) - 1
    differs = (t.ppf(1 - ALPHA / family / 2, freedom) + t.ppf(POWER, freedom)) * se < abs(found.difference)
    inside = (t.ppf(1 - ALPHA / 2, freedom) + t.ppf(POWER, freedom)) * se < MARGIN - abs(found.difference)
    enough = seeds[differs | inside]
    return float(enough[0]) if len(enough) else float("inf")


def count_verdicts(verdicts: Iterable[str]) -> str:
    """Return how often each verdict occurs over tasks, e.g. `better on 3 of 4, equivalent on 1`.

    Raises:
        FedexitError: there are none, or one of them is no verdict, e.g. of an exploratory comparison.
    """
    found = list(verdicts)
    if wrong := [word for word in found or ["no comparison"] if word not in VERDICTS]:
        raise FedexitError(f"{wrong[0]!r} is no verdict; count only {', '.join(VERDICTS)}")
    first, *others = [(word.split(" within")[0], found.count(word)) for word in VERDICTS if word in found]
    return ", ".join([f"{first[0]} on {first[1]} of {len(found)}", *(f"{word} on {count}" for word, count in others)])
