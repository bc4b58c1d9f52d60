"""Decide which arms of a task may enter a verdict: they have converged and beat simple baselines."""

import numpy as np
import pandas as pd

from fedexit.lab.layouts import check_rows
from fedexit.support.errors import FedexitError

LAST_PART = 0.25  # of training, over which the dev error of an arm must be steady
STEADY = 1.0  # points; an arm whose dev error moves by less in that part has converged
CONVERGED = (
    f"Converged: over the last {100 * LAST_PART:g} % of the rounds (or epochs) the dev error moves by less than "
    f"{STEADY:g} point{'' if STEADY == 1 else 's'}."
)


def admission(curves: pd.DataFrame, log_mel: float, guessing: float) -> dict[str, list[str]]:
    """Return for each arm of a task the reasons why it must not enter a verdict; an empty list admits it.

    An arm must have converged: over the last part of training (`LAST_PART`), the largest and the smallest dev error
    differ by less than `STEADY`. Its last error must be below its first one and below both baselines. All of this is
    about the mean over seeds. A comparison gets a verdict only if both of its arms are admitted.

    Args:
        curves: columns `arm, seed, round, value`: dev error of each arm of the task as a share, at one exit, from round
            0 (before training) to the last one. Rounds may be epochs.
        log_mel: dev error of log-mel features with a linear classifier, a share.
        guessing: dev error of guessing, a share.

    Raises:
        FedexitError: a value is missing or is no share; the seeds of an arm have other rounds; round 0 is missing.
    """
    check_rows(curves, ["arm", "seed", "round", "value"])
    baselines = {"log-mel + linear": log_mel, "guessing": guessing}
    for name, value in baselines.items():
        if not 0 < value <= 1:
            raise FedexitError(f"the error of {name} is {value}; give a share above 0 and up to 1, not percent")
    reasons: dict[str, list[str]] = {}
    for arm, own in curves.groupby("arm", sort=False, observed=True):
        curve, found = _mean_curve(str(arm), own), list[str]()
        mark = curve.index[curve.index <= (1 - LAST_PART) * curve.index[-1]][-1]
        change = np.ptp(curve.loc[mark:])
        if change >= STEADY:
            found.append(f"{arm} has not converged: its dev error moves by {change:.1f} points after round {mark}")
        bars = {"its own start": curve.iloc[0]} | {name: 100 * value for name, value in baselines.items()}
        last = curve.iloc[-1]
        found += [f"{arm} does not beat {n}: {last:.1f} against {bar:.1f} %" for n, bar in bars.items() if last >= bar]
        reasons[str(arm)] = found
    return reasons


def _mean_curve(arm: str, own: pd.DataFrame) -> pd.Series:
    """Return the error of an arm in percent by round, as the mean over its seeds."""
    wide = own.pivot_table(index="round", columns="seed", values="value", aggfunc=list)
    if wide.isna().any(axis=None) or (wide.map(len) > 1).any(axis=None):
        raise FedexitError(f"the seeds of {arm!r} must have each round once, and the same rounds; evaluate them alike")
    if wide.index[0] != 0 or len(wide) < 2:
        raise FedexitError(f"the curve of {arm!r} has rounds {list(wide.index)}; it needs round 0 and later ones")
    return 100 * wide.map(lambda values: values[0]).mean(axis=1)
