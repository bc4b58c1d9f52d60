"""Means over seeds with their uncertainty."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t


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
