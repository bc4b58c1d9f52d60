"""Recompute the main table of notebook 11 from the published cells with pandas and scipy alone, without fedexit.

Each number is the error rate on test over all seeds and clips, with a 95 % interval that counts both seeds and clusters
(speakers or dialogues) as random samples. Its variance is seed + cluster - residual, each from a jackknife.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

RESULTS = Path(__file__).parents[1] / "results"
MAIN = RESULTS / "11_heterogeneous_depth" / "tables" / "main.csv"


def rate(counts):
    """Return the error rate in percent of a table (seed x cluster x errors, n)."""
    return 100 * counts[..., 0].sum() / counts[..., 1].sum()


def rate_with_interval(items):
    """Return the error rate of rows `seed, cluster, errors, n` in percent, and the ends of its interval."""
    sums = items.groupby(["seed", "cluster"], observed=True)[["errors", "n"]].sum().unstack(fill_value=0)
    counts = np.stack([sums["errors"].to_numpy(float), sums["n"].to_numpy(float)], axis=-1)
    (seeds, clusters, _), mean = counts.shape, rate(counts)
    by_seed = np.array([rate(np.delete(counts, s, axis=0)) for s in range(seeds)]) - mean if seeds > 1 else [np.nan]
    by_cluster = np.array([rate(np.delete(counts, c, axis=1)) for c in range(clusters)]) - mean
    residual = 0.0
    for s in range(seeds if seeds > 1 else 0):
        for c in range(clusters):
            rest = np.delete(np.delete(counts, s, axis=0), c, axis=1)
            if rest[..., 1].sum():
                residual += (rate(rest) - mean - by_seed[s] - by_cluster[c]) ** 2
    shares = (seeds - 1) / seeds, (clusters - 1) / clusters
    first, second = shares[0] * np.sum(np.square(by_seed)), shares[1] * np.sum(by_cluster**2)
    se = np.sqrt(max(first + second - shares[0] * shares[1] * residual, first, second))
    sizes = counts[..., 1].sum(axis=0)
    half = t.ppf(0.975, min(seeds, sizes.sum() ** 2 / (sizes**2).sum()) - 1) * se if seeds > 1 else np.nan
    return mean, mean - half, mean + half


def test_every_row_of_the_main_table_follows_from_the_published_cells():
    if not MAIN.is_file():
        pytest.skip("results/11_heterogeneous_depth/tables/main.csv is not there yet")
    reads = json.loads((MAIN.parents[1] / "provenance.json").read_text(encoding="utf-8"))["reads"]["cell"]
    index = pd.read_parquet(RESULTS / "cells" / "cells.parquet", columns=["key", "name", "task", "method", "depth"])
    cells = pd.read_csv(MAIN.with_name("arms.csv"), dtype={"key": str}).merge(index)  # key, task, method and depth
    cells = cells[("cells/" + cells["key"] + "/" + cells["name"]).isin({*reads})]  # those that the notebook read
    items = pd.read_parquet(RESULTS / "cells" / "items.parquet").query("split == 'test' and metric in ('error', 'CER')")
    items = items.astype({"key": str, "name": str}).merge(cells[["key", "name", "arm"]])
    groups, main = items.groupby(["task", "arm", "exit"], observed=True), pd.read_csv(MAIN)
    assert {*groups.groups} == {*main[["task", "arm", "exit"]].itertuples(index=False, name=None)}
    for row in main.itertuples():
        own = groups.get_group((row.task, row.arm, row.exit))
        assert not own.duplicated(["seed", "item"]).any() and own["seed"].nunique() == row.seeds, row
        assert rate_with_interval(own) == pytest.approx((row.error, row.low, row.high), abs=1e-6, nan_ok=True), row
