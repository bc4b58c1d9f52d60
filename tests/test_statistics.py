import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedexit.lab.statistics import (
    Pairs,
    bootstrap,
    changed,
    compared,
    half_interval,
    holm,
    interval,
    over_seeds,
    paired,
    pairs,
    permutation_p,
    resampled,
    verdict,
    wider,
)
from fedexit.support.errors import FedexitError


def test_half_interval_equals_students_t():
    values = [1.0, 2.0, 4.0, 8.0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert half_interval(values) == pytest.approx((high - low) / 2)
    assert np.isnan(half_interval([1.0]))


def test_pairs_come_from_the_same_seed():
    rows = [(seed, method, 10.0 * seed + (method == "b")) for seed in range(3) for method in "ab"]
    table = pd.DataFrame([*rows, (3, "a", 5.0)], columns=["seed", "method", "value"]).assign(task="t")
    assert over_seeds(table, ["task", "method"])["seeds"].tolist() == [4, 3]
    [found] = paired(table, ["task"], "method", "b", "a").itertuples()
    assert (found.mean, found.half_interval, found.seeds) == (1.0, 0.0, 3)  # seed 3 has no partner
    assert paired(table[:0], ["task"], "method", "b", "a").empty


def test_a_seed_that_a_group_has_twice_is_refused_by_name():
    table = pd.DataFrame({"task": "t", "method": ["a", "b", "b"], "seed": np.array([0, 0, 0]), "value": 1.0})
    with pytest.raises(FedexitError, match="two rows have task t, method b, seed 0; keep one row per group and seed"):
        over_seeds(table, ["task", "method"])
    with pytest.raises(FedexitError, match="two rows have task t, method b, seed 0"):
        paired(table, ["task"], "method", "b", "a")
    assert over_seeds(table[:2], ["task", "method"])["seeds"].tolist() == [1, 1]


@pytest.mark.parametrize(("column", "index"), [("value", 2), ("method", 1)])
def test_a_missing_value_or_group_is_refused_and_not_left_out(column, index):
    table = pd.DataFrame({"task": "t", "method": ["a", "b", "b"], "seed": [0, 0, 1], "value": 1.0}).astype(object)
    table.loc[index, column] = np.nan
    with pytest.raises(FedexitError, match=f"row {index} has no {column}"):
        over_seeds(table, ["task", "method"])


def test_groups_may_be_called_like_missing_values():
    table = pd.DataFrame({"client": ["NA", "nan", "", "0003"], "seed": np.int64(0), "value": 1.0})
    assert over_seeds(table, ["client"])["client"].tolist() == ["NA", "nan", "", "0003"]


def texts(seeds=1, clips=120, seed=0):
    """Return errors of two systems in texts of 1 to 12 words. Clips differ a lot, seeds little; system a errs more."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 13, clips)
    hard = rng.beta(1, 3, clips)
    rows = []
    for number in range(seeds):
        for method, shift in (("a", 0.06), ("b", 0.0)):
            errors = rng.binomial(words, np.clip(hard + shift + rng.normal(0, 0.02), 0, 1))
            rows += [(number, method, item, e, n) for item, (e, n) in enumerate(zip(errors, words, strict=True))]
    return pd.DataFrame(rows, columns=["seed", "method", "item", "errors", "n"]).assign(task="t")


def ratio(more, n, axis=-1):
    return more.sum(axis) / n.sum(axis)


def test_difference_equals_that_of_pooled_rates():
    items = texts(seeds=3)
    rates = items.groupby("method")[["errors", "n"]].sum().eval("errors / n")
    assert pairs(items, "method", "a", "b").difference == pytest.approx(rates["a"] - rates["b"])


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bootstrap_over_clips_agrees_with_scipy(level):
    found = pairs(texts(), "method", "a", "b")
    theirs = stats.bootstrap(
        tuple(matrix[0] for matrix in found), ratio, n_resamples=20_000, paired=True, method="percentile",
        confidence_level=level, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    ours = bootstrap(found, ("test",), draws=20_000, level=level)
    assert ours == pytest.approx(tuple(theirs), abs=0.03 * (theirs.high - theirs.low))


def test_bootstrap_over_seeds_agrees_with_scipy():
    rng = np.random.default_rng(3)
    found = Pairs(rng.integers(-9, 20, (7, 1)).astype(float), rng.integers(20, 90, (7, 1)).astype(float))
    theirs = stats.bootstrap(
        tuple(matrix[:, 0] for matrix in found), ratio, n_resamples=40_000, paired=True, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    ours = bootstrap(found, ("test",), draws=40_000)
    assert ours == pytest.approx(tuple(theirs), abs=0.03 * (theirs.high - theirs.low))


def test_bootstrap_draws_seeds_then_clips():
    """Compare with loops over both levels."""
    found = pairs(texts(seeds=4, clips=25), "method", "a", "b")
    rng, slow = np.random.default_rng(5), []
    for _ in range(8_000):
        chosen = np.ix_(rng.integers(4, size=4), rng.integers(25, size=25))
        slow.append(ratio(found.more[chosen], found.n[chosen], None))
    low, high = np.quantile(slow, [0.025, 0.975])
    assert bootstrap(found, ("test",), draws=20_000) == pytest.approx((low, high), abs=0.04 * (high - low))


def test_interval_covers_the_truth():
    """Seeds and clips both change the difference, so an interval over clips alone would miss the truth more often."""
    rng, covered, clips_alone = np.random.default_rng(7), [], []
    for trial in range(200):
        seeds, clips = rng.normal(0, 0.8, (12, 1)), rng.normal(0, 1, (1, 40))
        found = Pairs(seeds + clips + rng.normal(0, 1, (12, 40)), np.ones((12, 40)))
        for hits, own in ((covered, found), (clips_alone, Pairs(*(m.mean(0, keepdims=True) for m in found)))):
            low, high = bootstrap(own, ("test", trial), draws=400)
            hits.append(low <= 0 <= high)
    assert 0.88 <= np.mean(covered) <= 0.99
    assert np.mean(clips_alone) < np.mean(covered) - 0.05


def test_equal_streams_give_equal_intervals():
    found = pairs(texts(seeds=2), "method", "a", "b")
    assert bootstrap(found, ("one",), 500) == bootstrap(found, ("one",), 500) != bootstrap(found, ("two",), 500)


@pytest.mark.parametrize("seed", range(4))
def test_permutation_p_equals_the_exact_one_of_scipy(seed):
    found = pairs(texts(seeds=2, clips=11, seed=seed), "method", "a", "b")
    theirs = stats.permutation_test(
        (found.more.sum(axis=0),), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert permutation_p(found) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_permutation_p_of_many_clips_is_close_to_a_random_one_of_scipy():
    found = pairs(texts(clips=200, seed=9), "method", "a", "b")
    theirs = stats.permutation_test(
        (found.more[0],), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0),
        vectorized=True,
    )  # fmt: skip
    assert permutation_p(found) == pytest.approx(theirs.pvalue, abs=0.01)


def test_permutation_p_in_extreme_cases():
    same = Pairs(np.zeros((2, 5)), np.ones((2, 5)))
    assert permutation_p(same) == 1.0
    always = Pairs(np.ones((1, 10)), np.ones((1, 10)))
    assert permutation_p(always) == pytest.approx(2 / 2**10)
    with pytest.raises(FedexitError, match="integer counts"):
        permutation_p(Pairs(np.full((1, 3), 0.5), np.ones((1, 3))))


def closed(p):
    """Return the closed test by Bonferroni: a hypothesis is rejected if all intersections that contain it are."""
    adjusted = []
    for own in range(len(p)):
        sets = (s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size) if own in s)
        adjusted.append(max(min(1, len(s) * min(p[i] for i in s)) for s in sets))
    return adjusted


@pytest.mark.parametrize("p", [[0.01], [0.04, 0.01, 0.03, 0.01], [0.5, 0.9, 0.0, 0.02, 0.3, 0.02], []])
def test_holm_equals_the_closed_bonferroni_test(p):
    assert holm(p) == pytest.approx(closed(p))


def test_holm_refuses_values_that_are_no_probabilities():
    with pytest.raises(FedexitError, match="p between 0 and 1"):
        holm([0.1, float("nan")])


def test_compared_returns_a_row_per_comparison():
    items = pd.concat([texts(seeds=3), texts(seeds=3, clips=60, seed=1).assign(task="u")])
    items = pd.concat([items, items[items["method"] == "b"].assign(method="c")])
    table = compared(items, ["task"], "method", [("a", "b"), ("c", "b")], draws=300)
    assert table[["task", "one", "other"]].to_numpy().tolist() == [
        ["t", "a", "b"], ["t", "c", "b"], ["u", "a", "b"], ["u", "c", "b"],
    ]  # fmt: skip
    assert table["items"].tolist() == [120, 120, 60, 60] and set(table["seeds"]) == {3}
    assert (table.loc[[1, 3], ["difference", "low", "high"]] == 0).all(axis=None) and (
        table.loc[[1, 3], "p"] == 1
    ).all()
    assert table["p_holm"].tolist() == pytest.approx(closed(table["p"]))
    assert table["low"].le(table["difference"]).all() and table["high"].ge(table["difference"]).all()
    first = pairs(items[items["task"] == "t"], "method", "a", "b")
    student = stats.ttest_1samp(first.by_seed, 0).confidence_interval(0.95)  # all seeds have the same clips here
    assert table.loc[0, ["seeds_low", "seeds_high"]].tolist() == pytest.approx([student.low, student.high])
    assert compared(items[items["seed"] == 0], ["task"], "method", [("a", "b")], 100)["seeds_low"].isna().all()


def test_wider_takes_the_outer_limits_of_both_intervals():
    nan = float("nan")
    table = pd.DataFrame(
        [(-2.0, 1.0, -1.0, 3.0, "a"), (-1.0, 1.0, -2.0, 0.5, "b"), (-1.0, 1.0, nan, nan, "one seed")],
        columns=["low", "high", "seeds_low", "seeds_high", "name"],
    )
    found = wider(table)
    np.testing.assert_array_equal(found[["low", "high"]], [[-2.0, 3.0], [-2.0, 1.0], [nan, nan]])
    assert verdict(*found.loc[2, ["low", "high"]], -1) == "undecided"
    assert found["name"].tolist() == ["a", "b", "one seed"] and table["low"].tolist() == [-2.0, -1.0, -1.0]


def test_the_same_comparison_has_the_same_interval_in_every_table():
    items = texts(seeds=3)
    items = pd.concat([items, items[items["method"] == "b"].assign(method="c")]).assign(task="t", exit=3)
    by_exit = compared(items, ["task", "exit"], "method", [("a", "b"), ("a", "c")], draws=300)
    alone = compared(items, ["task"], "method", [("a", "c")], draws=300)
    assert (by_exit[["low", "high"]] == alone.loc[0, ["low", "high"]]).all(axis=None)


def test_folds_are_seeds_with_other_clips():
    items = texts(seeds=3, clips=40)
    folds = items.assign(item=items["seed"].astype(str) + "/" + items["item"].astype(str))
    found = pairs(folds, "method", "a", "b")
    assert found.n.shape == (3, 120) and found.difference == pairs(items, "method", "a", "b").difference
    low, high = bootstrap(found, ("test",), 500)
    assert low < found.difference < high


def test_draws_of_combined_differences_are_combined_draws():
    """Equal streams draw equal seeds and clips: (a - b) + (b - c) is a - c in every draw."""
    items = texts(seeds=3)
    items = pd.concat([items, items[items["method"] == "a"].assign(method="c", errors=0)])
    ab, bc, ac = (resampled(pairs(items, "method", *names), ("test",), 500) for names in ("ab", "bc", "ac"))
    assert ab + bc == pytest.approx(ac)
    other = resampled(pairs(items, "method", "b", "c"), ("another",), 500)
    assert np.ptp(ab + other - ac) > 0.001
    assert interval(ac) == bootstrap(pairs(items, "method", "a", "c"), ("test",), 500)
    assert interval([0, 1, 2, np.nan], 0.5) == (0.5, 1.5)


def test_change_of_a_difference_is_a_difference():
    """(a - b) - (c - b) is a - c: the same value and the same limits as these two compared."""
    items = texts(seeds=3)
    items = pd.concat([items, items[items["method"] == "a"].assign(method="c", errors=0)])
    ab, cb, ac = (pairs(items, "method", *names) for names in ("ab", "cb", "ac"))
    half = half_interval(ac.by_seed)
    expected = ac.difference, *bootstrap(ac, ("test",), 500), ac.difference - half, ac.difference + half
    assert changed(ab, cb, ("test",), 500) == pytest.approx(expected)
    assert np.isnan(
        changed(pairs(texts(seeds=1), "method", "a", "b"), pairs(texts(seeds=1), "method", "a", "b"), ("t",), 9)[3]
    )
    for unlike in (pairs(items[items["seed"] < 2], "method", "a", "b"), ab._replace(n=2 * ab.n)):
        with pytest.raises(FedexitError, match=r"other seeds or clips, or count differently: \(3, "):
            changed(ab, unlike, ("test",))


@pytest.mark.parametrize(
    ("low", "high", "sign", "expected"),
    [
        (0.1, 0.2, 1, "supported"), (-0.2, -0.1, 1, "refuted"), (-0.1, 0.2, 1, "undecided"), (0.0, 0.2, 1, "undecided"),
        (-0.2, -0.1, -1, "supported"), (0.1, 0.2, -1, "refuted"), (0.0, 0.0, -1, "undecided"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_interval(low, high, sign, expected):
    assert verdict(low, high, sign) == expected
    assert verdict(float("nan"), float("nan"), sign) == "undecided"  # one seed has no interval over seeds


def test_items_that_cannot_be_paired_are_refused():
    items = texts(clips=5)
    with pytest.raises(FedexitError, match="no items of method 'z'"):
        pairs(items, "method", "a", "z")
    with pytest.raises(FedexitError, match="only one of 'a' and 'b' has seed 0, item 4"):
        pairs(items[:-1], "method", "a", "b")
    with pytest.raises(FedexitError, match="there twice at seed 0"):
        pairs(pd.concat([items, items[:1]]), "method", "a", "b")
    with pytest.raises(FedexitError, match="count differently"):
        pairs(items.assign(n=range(10)), "method", "a", "b")
    with pytest.raises(FedexitError, match="item 4 of 'b' has no count of errors at seed 0"):
        pairs(items.assign(errors=[*range(9), np.nan]), "method", "a", "b")
