import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedexit.statistics import half_interval, over_seeds, paired


def test_half_interval_is_students():
    values = [1.0, 2.0, 4.0, 8.0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert half_interval(values) == pytest.approx((high - low) / 2)
    assert np.isnan(half_interval([1.0]))


def test_pairs_are_of_the_same_seed():
    rows = [(seed, method, 10.0 * seed + (method == "b")) for seed in range(3) for method in "ab"]
    table = pd.DataFrame([*rows, (3, "a", 5.0)], columns=["seed", "method", "value"]).assign(task="t")
    assert over_seeds(table, ["task", "method"])["seeds"].tolist() == [4, 3]
    [found] = paired(table, ["task"], "method", "b", "a").itertuples()
    assert (found.mean, found.half_interval, found.seeds) == (1.0, 0.0, 3)  # seed 3 has no partner
    assert paired(table[:0], ["task"], "method", "b", "a").empty
