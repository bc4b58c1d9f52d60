"""Combine differences: the mean over tasks with its heterogeneity, and the unbiased square of an effect."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import chi2, t

from fedexit.lab.inference import ALPHA
from fedexit.lab.layouts import check_rows, layout
from fedexit.lab.reports import on_shared_seeds
from fedexit.lab.wording import listed, points
from fedexit.support.errors import FedexitError


class Pooled(NamedTuple):
    """Random-effects mean of the differences of several tasks.

    mean, low, high: in points, with its 95 % interval.
    p: two-sided.
    tau2: variance of the true differences between tasks, in points squared.
    q, q_p: Cochran's Q and its p-value: a small one says that the tasks differ, and the mean hides this.
    tasks: number of tasks.
    """

    mean: float
    low: float
    high: float
    p: float
    tau2: float
    q: float
    q_p: float
    tasks: int


def random_effects(compared: pd.DataFrame) -> Pooled:
    """Return the mean over tasks as if they were drawn at random, with their heterogeneity.

    The variance between tasks is that of DerSimonian and Laird (1986, Controlled Clinical Trials 7). The interval is
    that of Hartung and Knapp (2001, Statistics in Medicine 20), with tasks - 1 degrees of freedom, and never narrower
    than that of the weights alone (Röver, Knapp and Friede 2015, BMC Medical Research Methodology 15:99). It treats the
    tasks as independent and their standard errors as known.

    Args:
        compared: rows of one comparison, one per task, with `difference` and `se` (`compare`).

    Raises:
        FedexitError: there are fewer than two tasks, or one of them has no standard error.
    """
    check_rows(compared, ["task", "difference", "se"])
    y, se = (compared[name].to_numpy(float) for name in ("difference", "se"))
    if len(y) < 2 or compared["task"].duplicated().any():
        raise FedexitError(f"tasks are {compared['task'].tolist()}; give one row for each of at least two tasks")
    if (zero := se <= 0).any():
        raise FedexitError(
            f"task {compared['task'][zero].iloc[0]!r} has the standard error 0; leave it out of the mean"
        )
    weights, freedom = se**-2.0, len(y) - 1
    q = float(weights @ (y - weights @ y / weights.sum()) ** 2)
    tau2 = max(0.0, (q - freedom) / (weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (se**2 + tau2)
    mean = weights @ y / weights.sum()
    error = np.sqrt(max(1.0, weights @ (y - mean) ** 2 / freedom) / weights.sum())
    half = t.ppf(1 - ALPHA / 2, freedom) * error
    p = 2 * t.sf(abs(mean) / error, freedom)
    return Pooled(
        float(mean), float(mean - half), float(mean + half), float(p), tau2, q, float(chi2.sf(q, freedom)), len(y)
    )


def squared_effect(by_seed: ArrayLike) -> float:
    """Return the unbiased square of an effect in points squared: the mean of d_s * d_t over pairs of different seeds.

    The square of the mean would be too large by its variance. This one may be negative if the effect is small. The
    clips count as fixed: an effect that holds only for these clips is part of it.

    Args:
        by_seed: the difference of each seed (`Layout.by_seed`).

    Raises:
        FedexitError: there are fewer than two seeds, or a difference is missing.
    """
    d = np.asarray(by_seed, float)
    if len(d) < 2 or not np.isfinite(d).all():
        raise FedexitError(f"the effect of {len(d)} seeds is {d.tolist()}; give a finite one for at least two seeds")
    return float((d.sum() ** 2 - (d**2).sum()) / (len(d) * (len(d) - 1)))


def effect_sizes(rows: pd.DataFrame, effects: Mapping[str, tuple[str, str]], exits: Iterable[int]) -> pd.DataFrame:
    """Return how large effects are by task and exit, over the seeds that both arms have.

    Args:
        rows: test rows (`fedexit.lab.reports.test_rows`).
        effects: the two arms of each effect; the second one is subtracted. A task that lacks one of them has no row.
        exits: the exits.

    Returns:
        Columns `task, exit, effect`; `mean`, the difference in points; `squared` (`squared_effect`), NaN for one seed;
        and `size`, its root, or 0 where it is negative.
    """
    found = []
    for task, exit in product(rows["task"].unique(), exits):
        own = rows[(rows["task"] == task) & (rows["exit"] == exit)]
        for name, pair in effects.items():
            if {*pair} <= {*own["arm"]}:
                by_seed = layout(on_shared_seeds(own, *pair), *pair).by_seed
                squared = squared_effect(by_seed) if len(by_seed) > 1 else float("nan")
                found.append((task, exit, name, float(by_seed.mean()), squared, max(squared, 0) ** 0.5))
    return pd.DataFrame(found, columns=["task", "exit", "effect", "mean", "squared", "size"])


def effect_sentences(judged: pd.DataFrame, effects: Mapping[str, tuple[str, str]], exits: Sequence[int]) -> list[str]:
    """Return one sentence per task and exit, in Markdown: what each effect does to the error, with its verdict.

    Args:
        judged: the table of verdicts (`fedexit.lab.inference.judge`).
        effects: the two arms of each effect; the second one is subtracted. Effects without a verdict are left out.
        exits: the exits.
    """
    lines = []
    for task, exit in product(judged["task"].unique(), exits):
        own = judged[(judged["task"] == task) & (judged["exit"] == exit)].set_index(["one", "other"])
        said = [
            f"{points(own.loc[pair, 'difference'])} from the {name} (**{own.loc[pair, 'verdict']}**)"
            for name, pair in effects.items()
            if pair in own.index
        ]
        if said:
            lines.append(f"*{task}*, at exit {exit}, the error changes by {listed(said)}.")
    return lines
