from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedexit.lab.admission import CONVERGED, LAST_PART, STEADY, admission
from fedexit.lab.effects import effect_sentences, effect_sizes, random_effects, squared_effect
from fedexit.lab.inference import (
    compare,
    count_verdicts,
    difference,
    error_rates,
    holm,
    judge,
    seeds_needed,
)
from fedexit.lab.layouts import Layout, layout
from fedexit.support.errors import FedexitError


def table(more, n, clusters="cluster"):
    """Return raw rows of arms a and b, one clip per cell: b makes 50 errors in each, a makes `more` errors."""
    rows = []
    for (seed, cluster), count in np.ndenumerate(n):
        if count:
            about = dict(seed=seed, cluster=f"{clusters} {cluster}", item=cluster, n=count)
            rows += [about | dict(arm="a", errors=50 + more[seed, cluster]), about | dict(arm="b", errors=50)]
    return pd.DataFrame(rows)


def even(more, n=100):
    return Layout(np.array(more, float), np.full(np.shape(more), float(n)))


def test_rows_are_paired_by_seed_and_clip_and_summed_per_cluster():
    rows = [
        (s, c, i, e, e2, n)
        for s, c, i, e, e2, n in [(7, "x", 1, 3, 1, 10), (7, "x", 2, 0, 4, 20), (7, "y", 3, 1, 1, 5)]
    ]
    rows += [(2, "y", 3, 5, 2, 5)]
    wide = pd.DataFrame(rows, columns=["seed", "cluster", "item", "a", "b", "n"])
    long = wide.melt(["seed", "cluster", "item", "n"], ["b", "a"], var_name="arm", value_name="errors")
    found = layout(long.sample(frac=1, random_state=0), "a", "b")  # the order of the rows does not matter
    order = np.argsort(found.n[1])  # clusters of seed 7: y has 5, x has 30
    assert found.n[:, order].tolist() == [[5, 0], [5, 30]]  # rows: seeds 2 and 7
    assert found.more[:, order].tolist() == [[3, 0], [0, -2]]
    assert found.by_seed == pytest.approx([60, -200 / 35])
    assert difference(found).difference == pytest.approx(100 * 1 / 40)
    assert difference(layout(long, "b", "a")).difference == pytest.approx(-100 * 1 / 40)


def test_variance_by_hand():
    # seed means 3, 5, 10; cluster means 4, 8; MS seeds 52 / 2, clusters 24 / 1, residual 4 / 2; over 6 cells
    found = difference(even([[2, 4], [3, 7], [7, 13]]))
    assert found.difference == pytest.approx(6)
    assert (found.se**2, found.seed_se**2) == pytest.approx(((26 + 24 - 2) / 6, 26 / 6))
    assert (found.high - 6, 6 - found.low) == pytest.approx((12.7062 * 8**0.5,) * 2, rel=1e-4)  # one degree of freedom
    assert found.p == pytest.approx(2 * stats.t.sf(6 / 8**0.5, 1))
    assert (found.seeds, found.clusters, found.layout) == (3, 2, "crossed")


def test_variance_is_not_below_the_larger_term():
    # seed means 3, 3, 6; cluster means 4, 4; MS seeds 6, clusters 0, residual 14: the sum would be negative
    found = difference(even([[2, 4], [6, 0], [4, 8]]))
    assert found.se == found.seed_se == pytest.approx(1)
    transposed = difference(even(np.transpose([[2, 4], [6, 0], [4, 8]])))
    assert (transposed.se, transposed.seed_se) == pytest.approx((1, 0))


def test_no_difference_at_all_is_certain():
    same, constant = difference(even(np.zeros((5, 3)))), difference(even(np.full((5, 3), 2.0)))
    assert (same.low, same.high, same.p) == (0, 0, 1)
    assert (constant.low, constant.high, constant.p) == pytest.approx((2, 2, 0))


def test_degrees_of_freedom_count_effective_clusters():
    uneven = Layout(np.array([[3.0, 0], [2, 1], [7, 4]]), np.array([[30.0, 10]] * 3))
    found = difference(uneven)
    assert found.effective == pytest.approx((30 + 10) ** 2 / (30**2 + 10**2))
    assert found.high - found.difference == pytest.approx(found.se * stats.t.ppf(0.975, 0.6))
    assert difference(even([[2, 4], [3, 7]])).effective == 2


def test_one_seed_has_a_difference_and_no_interval():
    found = difference(even([[2, 4, 6]]))
    assert found.difference == 4
    assert np.isnan([found.low, found.high, found.p, found.se, found.seed_se]).all()


def random_layout(rng, seeds, clusters, effects=(1.4, 3.0, 0.0), sizes="even", kind="crossed", n=20):
    """Draw counts: `effects` are the standard deviations over seeds, clusters and cells, in points; the mean is 0.

    Sizes of clusters are `n` clips, or uneven around that. Rotated: seed s tests each fourth cluster, from s on.
    """
    size = np.full(clusters, n) if sizes == "even" else np.ceil(n * rng.lognormal(0, 0.8, clusters))
    tested = np.ones((seeds, clusters), bool)
    owner = np.arange(clusters)
    if kind == "nested":
        tested = owner % seeds == np.arange(seeds)[:, None]
    if kind == "rotated":
        tested = owner % 4 == np.arange(seeds)[:, None] % 4
    n = (size * tested).astype(int)
    shapes = (seeds, 1), (1, clusters), (seeds, clusters)
    shift = sum(rng.normal(0, sd / 100, shape) for sd, shape in zip(effects, shapes, strict=True))
    return Layout((rng.binomial(n, np.clip(0.3 + shift, 0, 1)) - rng.binomial(n, 0.3)).astype(float), n.astype(float))


def left_out(rows, seed=None, cluster=None):
    rows = rows[(rows["seed"] != seed) & (rows["cluster"] != cluster)]
    sums = rows.groupby("arm")[["errors", "n"]].sum()
    return 100 * (sums["errors"]["a"] - sums["errors"]["b"]) / sums["n"]["a"]


@pytest.mark.parametrize("kind", ["crossed", "nested", "rotated"])
def test_every_term_is_a_jackknife_over_the_raw_rows(kind):
    seeds, clusters = 6, 12
    found = random_layout(np.random.default_rng(1), seeds, clusters, sizes="uneven", kind=kind)
    rows = table(found.more, found.n)
    theta, names = left_out(rows), rows["cluster"].unique()
    by_seed = {s: left_out(rows, s) - theta for s in range(seeds)}
    by_cluster = {c: left_out(rows, None, c) - theta for c in names}
    both = {(s, c): left_out(rows, s, c) - theta - by_seed[s] - by_cluster[c] for s in by_seed for c in names}
    terms = [sum(value**2 for value in changes.values()) for changes in (by_seed, by_cluster, both)]
    shares = (seeds - 1) / seeds, (clusters - 1) / clusters
    seed, cluster, residual = shares[0] * terms[0], shares[1] * terms[1], shares[0] * shares[1] * terms[2]
    result = difference(layout(rows, "a", "b"))
    assert result.se**2 == pytest.approx(max(seed + cluster - residual, seed, cluster))
    assert result.layout == {"crossed": "crossed", "nested": "nested", "rotated": "partly crossed"}[kind]


def test_nested_clusters_are_not_counted_twice():
    found = difference(random_layout(np.random.default_rng(2), 8, 400, sizes="uneven", kind="nested"))
    assert 1 <= found.se**2 / found.seed_se**2 < 1 + 1.5 / 8


def pigeonhole(found, rng, draws):
    """Return the difference in resamples of seeds and clusters, drawn independently of each other (Owen 2007)."""
    seeds, clusters = found.n.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
    by_cluster = rng.multinomial(clusters, np.full(clusters, 1 / clusters), draws)
    more, n = (((by_seed @ counts) * by_cluster).sum(axis=1) for counts in found)
    return 100 * more / n


@pytest.mark.parametrize("sizes", ["even", "uneven"])
def test_interval_agrees_with_the_pigeonhole_bootstrap(sizes):
    rng, ratios, ends = np.random.default_rng(3), [], []
    for _ in range(20):
        found = random_layout(rng, 24, 30, effects=(4, 8, 0), sizes=sizes, n=200)
        result, drawn = difference(found), pigeonhole(found, rng, 1000)
        ratios.append(drawn.std() / result.se)
        ends.append(np.quantile(drawn, [0.025, 0.975]) - result.difference)
        ends[-1] /= result.high - result.difference
    assert 0.9 < np.mean(ratios) < 1.05
    low, high = np.mean(ends, axis=0)  # a percentile interval is narrower than that of Student's t
    assert -1 < low < -0.8 and 0.8 < high < 1


LAYOUTS = [  # seeds, clusters, sizes, layout
    (8, 6, "even", "crossed"),
    (8, 6, "uneven", "crossed"),
    (8, 50, "uneven", "crossed"),
    (24, 6, "even", "crossed"),
    (25, 6, "uneven", "crossed"),
    (25, 50, "even", "crossed"),
    (25, 50, "uneven", "crossed"),
    (8, 48, "uneven", "nested"),
    (8, 16, "uneven", "rotated"),
    (24, 24, "uneven", "rotated"),
]


@pytest.mark.parametrize("effects", [(1.4, 3, 0), (0.4, 10, 0)])
@pytest.mark.parametrize(("seeds", "clusters", "sizes", "kind"), LAYOUTS)
def test_intervals_cover_the_truth(seeds, clusters, sizes, kind, effects):
    rng, draws = np.random.default_rng(4), 600
    covered = 0
    for _ in range(draws):
        found = difference(random_layout(rng, seeds, clusters, effects, sizes, kind))
        covered += found.low <= 0 <= found.high
    assert covered / draws >= 0.93


def compared(*rows):
    """Return a table as `compare` does, from task, difference, half of the interval, p and seeds."""
    columns = ["task", "difference", "half", "p", "seeds"]
    made = pd.DataFrame([row if len(row) == 5 else (*row, 8) for row in rows], columns=columns)
    se = made["half"] / stats.t.ppf(0.975, 7)
    ends = dict(low=made["difference"] - made["half"], high=made["difference"] + made["half"])
    made = made.assign(**ends, se=se, seed_se=se, clusters=50, effective=50.0, layout="crossed", one="a", other="b")
    return made[
        [
            "task",
            "one",
            "other",
            "difference",
            "low",
            "high",
            "p",
            "se",
            "seed_se",
            "seeds",
            "clusters",
            "effective",
            "layout",
        ]
    ]


def named(*tasks):
    return [(task, "a", "b") for task in tasks]


def test_each_verdict():
    cases = {
        "better": (-2.0, 1.0, 0.001),
        "worse": (2.0, 1.0, 0.001),
        "equivalent within 1 point": (0.1, 0.5, 0.6),
        "not resolved": (0.4, 2.0, 0.6),
    }
    made = compared(*((word, *numbers) for word, numbers in cases.items()))
    found = judge(made, named(*cases), {word: {} for word in cases})
    assert found["verdict"].tolist() == list(cases)
    assert found["p_holm"].tolist() == pytest.approx([0.004, 0.004, 1, 1])
    assert not found["small"].any()
    assert np.isfinite(found["seeds_needed"]).tolist() == [False, False, False, True]


def test_a_small_difference_is_worse_before_it_is_equivalent():
    alone = judge(compared(("t", 0.5, 0.3, 0.01)), named("t"), {"t": {}})
    assert (alone["verdict"][0], alone["small"][0]) == ("worse", True)
    more = compared(("t", 0.5, 0.3, 0.01), *((other, 0.4, 2.0, 0.9) for other in "uvwxy"))
    found = judge(more, named(*"tuvwxy"), {task: {} for task in "tuvwxy"})
    assert found["p_holm"][0] == pytest.approx(0.06)  # of a family of six, it is not significant
    assert (found["verdict"][0], found["small"][0]) == ("equivalent within 1 point", False)


def test_only_the_declared_family_gets_verdicts():
    made = compared(("t", -2.0, 1.0, 0.03), ("u", -2.0, 1.0, 0.03))
    found = judge(made, named("u"), {"u": {}})
    assert found["verdict"].tolist() == ["exploratory", "better"]
    assert found["p_holm"].isna().tolist() == [True, False]
    assert judge(made, named("t", "u"), {"t": {}, "u": {}})["verdict"].tolist() == ["not resolved"] * 2  # by Holm
    assert judge(made, [], {})["verdict"].tolist() == ["exploratory"] * 2
    assert judge(made.set_axis([3, 3]), named("u"), {"u": {}})["verdict"].tolist() == ["exploratory", "better"]


def test_few_seeds_and_arms_that_are_not_admitted_get_no_verdict():
    made = compared(
        ("t", -2.0, 1.0, 0.001, 4),
        ("u", -2.0, 1.0, 0.001, 5),
        ("v", -2.0, 1.0, 0.001, 5),
        ("w", -2.0, np.nan, np.nan, 1),
    )
    other = {"a": [], "c": ["c has not converged"]}  # c is in no comparison
    reasons = {"t": {}, "u": other, "v": {"a": [], "b": ["b has not converged"]}, "w": {}}
    found = judge(made, named(*"tuvw"), reasons)
    assert found["verdict"].tolist() == ["demonstration", "better", "not admitted", "demonstration"]
    assert found["refused"].tolist() == ["", "", "b", ""]
    assert found["p_holm"].tolist() == pytest.approx([0.004] * 3 + [np.nan], nan_ok=True)  # all four count


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]).tolist() == []


def test_seeds_needed():
    # 24 seeds detect 0.84 points with a chance of 80 % if seeds differ by 1.4 points: 2.07 + 0.86 standard errors
    found = SimpleNamespace(
        difference=0.84, se=1.4 / 8**0.5, seed_se=1.4 / 8**0.5, seeds=8, effective=1000.0, layout="crossed"
    )
    assert seeds_needed(found) == 24
    assert seeds_needed(found, family=3) > 24
    assert seeds_needed(SimpleNamespace(**vars(found) | dict(difference=0.0))) == pytest.approx(18, abs=1)  # equivalent
    assert seeds_needed(SimpleNamespace(**vars(found) | dict(se=0.7))) == float("inf")  # the clusters differ too much
    assert seeds_needed(SimpleNamespace(**vars(found) | dict(se=0.7, layout="nested"))) < 100


def test_verdicts_are_counted_in_words():
    words = ["better", "equivalent within 1 point", "better", "better"]
    assert count_verdicts(words) == "better on 3 of 4, equivalent on 1"
    assert count_verdicts(["not resolved", "worse"]) == "worse on 1 of 2, not resolved on 1"
    assert count_verdicts(["better"]) == "better on 1 of 1"


VACCINES = [  # tuberculosis cases and others, vaccinated and not, in 13 trials (Colditz et al. 1994, JAMA 271)
    (4, 119, 11, 128),
    (6, 300, 29, 274),
    (3, 228, 11, 209),
    (62, 13536, 248, 12619),
    (33, 5036, 47, 5761),
    (180, 1361, 372, 1079),
    (8, 2537, 10, 619),
    (505, 87886, 499, 87892),
    (29, 7470, 45, 7232),
    (17, 1699, 65, 1600),
    (186, 50448, 141, 27197),
    (5, 2493, 3, 2338),
    (27, 16886, 29, 17825),
]


def test_random_effects_agree_with_a_published_analysis():
    a, b, c, d = np.array(VACCINES, float).T
    y, variance = np.log(a / (a + b) / (c / (c + d))), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    found = random_effects(pd.DataFrame({"task": range(13), "difference": y, "se": variance**0.5}))
    assert (found.q, found.tau2, found.mean) == pytest.approx((152.233, 0.3088, -0.7141), abs=6e-4)
    weights = 1 / (variance + found.tau2)
    error = (weights @ (y - found.mean) ** 2 / 12 / weights.sum()) ** 0.5  # Hartung and Knapp
    assert found.high - found.mean == pytest.approx(max(error, weights.sum() ** -0.5) * stats.t.ppf(0.975, 12))
    assert found.q_p == pytest.approx(stats.chi2.sf(152.233, 12), rel=0.01)


def test_random_effects_by_hand():
    alike = random_effects(pd.DataFrame({"task": list("abc"), "difference": [1.0, 1.0, 1.0], "se": [1.0, 1.0, 0.5]}))
    assert (alike.mean, alike.tau2, alike.q, alike.q_p) == pytest.approx((1, 0, 0, 1))
    assert alike.high - 1 == pytest.approx(stats.t.ppf(0.975, 2) / 6**0.5)  # never below the weights' own error
    apart = random_effects(pd.DataFrame({"task": list("ab"), "difference": [3.0, -3.0], "se": [1.0, 1.0]}))
    assert (apart.mean, apart.q, apart.tau2, apart.p) == pytest.approx((0, 18, 17, 1))


def test_squared_effect():
    assert squared_effect([1, 2, 3]) == pytest.approx((1 * 2 + 1 * 3 + 2 * 3) / 3)
    drawn = np.random.default_rng(5).normal(0.5, 2, (4000, 8))
    assert np.mean([squared_effect(d) for d in drawn]) == pytest.approx(0.25, abs=0.05)
    assert np.mean(drawn.mean(axis=1) ** 2) > 0.6  # the square of the mean is biased


def test_effect_sizes_use_the_seeds_that_both_arms_have():
    errors = {"a": [3, 1, 2, 9], "b": [1, 1, 5]}  # of 10 in each of two clusters; only arm a has seed 3
    rows = [
        ("t", exit, arm, seed, cluster, cluster, count + exit * (arm == "a"), 10)
        for arm, counts in errors.items()
        for seed, count in enumerate(counts)
        for cluster in ("x", "y")
        for exit in (0, 1)
    ]
    columns = ["task", "exit", "arm", "seed", "cluster", "item", "errors", "n"]
    effects = {"one": ("a", "b"), "other": ("a", "c")}  # arm c is missing
    found = effect_sizes(pd.DataFrame(rows, columns=columns), effects, [1, 0])
    assert found[["task", "exit", "effect"]].values.tolist() == [["t", 1, "one"], ["t", 0, "one"]]
    assert found["mean"].tolist() == pytest.approx([10 * (3 + 1 - 2) / 3, 10 * (2 + 0 - 3) / 3])
    assert found["squared"].tolist() == pytest.approx([squared_effect([30, 10, -20]), squared_effect([20, 0, -30])])
    assert found["size"].tolist() == pytest.approx([max(value, 0) ** 0.5 for value in found["squared"]])


def test_effects_stand_beside_each_other_with_their_verdicts():
    rows = [
        ("t", 3, "m", "s", 1.04, "not admitted"),
        ("t", 3, "e", "m", -2.71, "better"),
        ("t", 12, "e", "x", 1, "worse"),
    ]
    judged = pd.DataFrame(rows, columns=["task", "exit", "one", "other", "difference", "verdict"])
    [says] = effect_sentences(judged, {"mask": ("m", "s"), "weight": ("e", "m"), "none": ("a", "b")}, (3, 12))
    changes = "+1.0 points from the mask (**not admitted**) and -2.7 points from the weight (**better**)"
    assert says == f"*t*, at exit 3, the error changes by {changes}."


def curves(**arms):
    """Return dev errors, given in percent for rounds 0, 10, ..., of two seeds that differ by 2 points."""
    rows = [
        (arm, s, 10 * r, v / 100 + s / 50) for arm, errors in arms.items() for s in (0, 1) for r, v in enumerate(errors)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "round", "value"])


def test_admission_gives_reasons():
    good = [60, 40, 30, 21, 20.1]
    assert admission(curves(a=good, b=good), 0.5, 0.7) == {"a": [], "b": []}
    falling, swinging, bad = [60, 50, 40, 30, 20], [60, 40, 20, 25, 20], [60, 80, 70, 69.5, 69.3]
    assert admission(curves(a=good, b=falling), 0.5, 0.7) == {
        "a": [],
        "b": ["b has not converged: its dev error moves by 10.0 points after round 30"],
    }
    assert admission(curves(a=swinging), 0.5, 0.7)["a"] == [
        "a has not converged: its dev error moves by 5.0 points after round 30"
    ]
    assert admission(curves(a=bad), 0.5, 0.7)["a"] == [
        "a does not beat its own start: 70.3 against 61.0 %",
        "a does not beat log-mel + linear: 70.3 against 50.0 %",
        "a does not beat guessing: 70.3 against 70.0 %",
    ]
    assert (
        "moves by 40.0 points after round 0" in admission(curves(a=[60, 20]), 0.5, 0.7)["a"][0]
    )  # too few evaluations


def test_the_limit_of_convergence_is_the_one_that_is_printed():
    assert f"last {100 * LAST_PART:g} % of the rounds" in CONVERGED and f"less than {STEADY:g} point" in CONVERGED
    for change, reasons in ((0.9 * STEADY, 0), (1.1 * STEADY, 1)):
        errors = [60.0, 20.0, 20.0, 20.0, 20.0 - change]  # the last part starts at the fourth
        assert len(admission(curves(a=errors), 0.5, 0.7)["a"]) == reasons


GOOD = table(np.arange(6).reshape(3, 2), np.full((3, 2), 100)).assign(task="t", exit=3)


def changed(column, value, row=3):
    rows = GOOD.astype({column: object})
    rows.loc[row, column] = value
    return rows if isinstance(value, str) else rows.infer_objects()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (GOOD.drop(columns="cluster"), "no column 'cluster'; it needs task, exit, arm, seed"),
        (GOOD[:0], "the table has no rows"),
        (changed("errors", np.nan), "row 3 has no errors"),
        (changed("cluster", None), "row 3 has no cluster"),
        (changed("exit", np.nan), "row 3 has no exit"),
        (changed("errors", -1), "row 3 has errors -1; it must be a finite number of at least 0"),
        (changed("n", 0), "row 3 has n 0; it must be a finite number of at least 1"),
        (changed("n", np.inf), "row 3 has n inf"),
        (changed("errors", "many"), "column 'errors' holds .*, not numbers"),
        (changed("n", 99), "task t, exit 3: arms 'a' and 'b' count a different n at seed 0, item 1"),
        (changed("cluster", "cluster 0"), "item 1 has two clusters"),
        (GOOD.drop(3), "task t, exit 3: only arm 'a' has seed 0, item 1"),
        (GOOD.drop(2), "only arm 'b' has seed 0, item 1"),
        (GOOD[GOOD["seed"].ne(2) | GOOD["arm"].eq("a")], "only arm 'a' has seed 2, item 0"),
        (pd.concat([GOOD, GOOD[3:4]]), "arm 'b' has seed 0, item 1 twice; name in `by`"),
        (GOOD[GOOD["arm"] == "a"], r"arm 'b' has no rows; there are \['a'\]"),
        (GOOD[GOOD["item"] == 0], "all clips are of cluster 'cluster 0'"),
    ],
)
def test_incomplete_tables_are_refused(rows, says):
    with pytest.raises(FedexitError, match=says):
        compare(rows, ["task", "exit"], [("a", "b")])


def test_a_table_of_comparisons():
    both = pd.concat([GOOD, GOOD.assign(exit=6)])
    found = compare(both, ["task", "exit"], [("a", "b"), ("b", "a")])
    assert found[["exit", "one", "difference"]].values.tolist() == [
        [e, o, d] for e in (3, 6) for o, d in (("a", 2.5), ("b", -2.5))
    ]
    assert "verdict" not in found
    judged = judge(found, [("t", 6, "b", "a")], {"t": {}})
    assert judged["verdict"].tolist() == ["exploratory", "exploratory", "exploratory", "demonstration"]


BASE = compared(("t", 1.0, 0.5, 0.01))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: compare(GOOD, ["task"], [("a", "a")]), "arm 'a' is compared with itself"),
        (lambda: judge(BASE, named("u"), {"t": {}}), "0 times in the table; name it once, as task, one, other"),
        (lambda: judge(BASE, named("t", "t"), {"t": {}}), "2 times in the family"),
        (lambda: judge(pd.concat([BASE, BASE]), named("t"), {"t": {}}), "2 times in the table"),
        (lambda: judge(BASE, named("t"), {}), "task 't' has no admission"),
        (lambda: judge(BASE.drop(columns="task"), [], {}), "no column 'task'"),
        (lambda: holm([0.1, np.nan]), "p is nan, not between 0 and 1"),
        (lambda: count_verdicts(["better", "exploratory"]), "'exploratory' is no verdict"),
        (lambda: count_verdicts([]), "'no comparison' is no verdict"),
        (lambda: random_effects(BASE), "give one row for each of at least two tasks"),
        (lambda: random_effects(pd.concat([BASE, BASE])), r"tasks are \['t', 't'\]"),
        (lambda: random_effects(compared(("t", 1, 1, 0.1), ("u", 1, np.nan, np.nan))), "row 1 has no se"),
        (lambda: random_effects(compared(("t", 1, 1, 0.1), ("u", 1, 0, 0.1))), "task 'u' has the standard error 0"),
        (lambda: squared_effect([1.0]), "the effect of 1 seeds"),
        (lambda: squared_effect([1.0, np.nan]), "give a finite one"),
        (lambda: admission(curves(a=[60, 20]), 29, 0.7), "log-mel . linear is 29; give a share"),
        (lambda: admission(curves(a=[60, 20]), 0.5, np.nan), "guessing is nan"),
        (lambda: admission(curves(a=[60, 20])[1:], 0.5, 0.7), "the seeds of 'a' must have each round once"),
        (
            lambda: admission(pd.concat([curves(a=[60, 20])] * 2), 0.5, 0.7),
            "the seeds of 'a' must have each round once",
        ),
        (lambda: admission(curves(a=[60, 20]).query("round > 0"), 0.5, 0.7), r"has rounds \[10\]; it needs round 0"),
        (lambda: admission(curves(a=[60, np.nan]), 0.5, 0.7), "row 1 has no value"),
    ],
)
def test_impossible_questions_are_refused(call, says):
    with pytest.raises(FedexitError, match=says):
        call()


def test_intervals_of_error_rates_end_at_the_possible_rates():
    rows = table(np.array([[-50, -50, 49], [-50, -49, 50]]), np.full((2, 3), 100)).query("arm == 'a'")
    [found] = error_rates(rows.assign(exit=3), ["exit"]).itertuples()
    assert found.low == 0 < found.error < found.high == 100
    [texts] = error_rates(rows.assign(exit=3, errors=2 * rows["errors"]), ["exit"]).itertuples()  # insertions count
    assert texts.high > 100
