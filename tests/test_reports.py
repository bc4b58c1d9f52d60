"""Test what the notebooks of experiments report: placed arms, admitted arms, sentences and grids."""

import pandas as pd
import pytest

from fedexit import FedexitError
from fedexit.lab import experiments, reports
from fedexit.lab.cells import Measured
from fedexit.lab.inference import judge


def measured():
    """Return curves of two arms and the yardsticks; `b` has not converged."""
    ends = {"a": ("layerwise", [0.9, 0.4, 0.2, 0.2]), "b": ("masked", [0.9, 0.6, 0.5, 0.3])}
    rows = [
        (method, "t", 0, round, exit, "dev", "error", value, arm)
        for arm, (method, values) in ends.items()
        for exit in (3, 12)
        for round, value in zip((0, 10, 15, 20), values, strict=True)
    ]
    rows += [(name, "t", 0, 0, 0, "dev", "error", 0.8, name) for name in ("guessing", "log-mel")]
    columns = ["method", "task", "seed", "round", "exit", "split", "metric", "value", "arm"]
    return Measured(pd.DataFrame(rows, columns=columns), *[pd.DataFrame()] * 3)


def test_reasons_are_those_of_each_arm_and_of_its_placed_names():
    against = reports.reasons_against(measured(), ["t"])
    assert against["t"]["a"] == against["t"]["a, exit 3"] == []
    assert against["t"]["b"] == against["t"]["b, exit 12"] != []
    assert reports.admitted(against)["finding"].tolist() == [
        "admitted", "b has not converged: its dev error moves by 20.0 points after round 15"
    ]  # fmt: skip


def test_of_texts_an_arm_must_beat_the_empty_text():
    errors = measured().errors.query("method not in ('guessing', 'log-mel')").assign(metric="CER")
    found = measured()._replace(errors=errors)
    assert reports.reasons_against(found, ["t"])["t"]["a"] == []
    worse = found._replace(errors=errors.assign(value=errors["value"] + 1))
    [_, reason] = reports.reasons_against(worse, ["t"])["t"]["a"]
    assert reason == "a does not beat guessing: 120.0 against 100.0 %"


def test_a_placed_arm_stands_at_another_exit():
    rows = pd.DataFrame({"arm": ["a", "a", "b"], "exit": [3, 12, 3], "errors": [1, 2, 3]})
    assert reports.placed(rows, "a", 3, 12).to_dict("records") == [{"arm": "a, exit 3", "exit": 12, "errors": 1}]


@pytest.mark.parametrize(("low", "high", "p", "says"), [(-3, -1, 0.001, "fewer.*better"), (1, 3, 0.001, "more.*worse")])
def test_sentences_name_direction_and_verdict(low, high, p, says):
    columns = ["task", "exit", "one", "other", "difference", "low", "high", "p", "se", "seed_se", "seeds", "clusters"]
    row = ("t", 3, "a", "b", (low + high) / 2, low, high, p, 0.5, 0.5, 8, 9)
    table = pd.DataFrame([row], columns=columns).assign(effective=9.0, layout="crossed")
    [line] = reports.sentences(judge(table, [("t", 3, "a", "b")], {"t": {}}))
    assert pd.Series([line]).str.contains(says).all() and "2.0 points" in line


def test_a_sentence_names_the_arms_that_are_not_admitted():
    columns = ["task", "exit", "one", "other", "difference", "low", "high", "p", "se", "seed_se", "seeds", "clusters"]
    table = pd.DataFrame([("t", 3, "a", "b", 1.0, 0.5, 1.5, 0.01, 0.5, 0.5, 8, 9)], columns=columns)
    reasons = {"t": {"b": ["b has not converged"]}}
    judged = judge(table.assign(effective=9.0, layout="crossed"), [("t", 3, "a", "b")], reasons)
    [line] = reports.sentences(judged)
    assert line.endswith("**not admitted**, because of **b**.")


def test_costs_are_sums_over_rounds_and_means_over_seeds():
    ledger = pd.DataFrame({"task": "t", "arm": "a", "seed": [0, 0, 1, 1], "bytes": [1, 2, 3, 4]})
    ledger = ledger.assign(macs_forward=1, macs_backward=2)
    empty = pd.DataFrame()
    [row] = reports.cost(Measured(empty, ledger, empty, empty)).to_dict("records")
    assert (row["bytes"], row["macs"]) == (5.0, 6.0)


def test_unknown_arms_and_tasks_are_named(tmp_path):
    for tasks, arms in ((["keyword"], ["nobody"]), (["nothing"], ["masked"])):
        with pytest.raises(FedexitError, match=r"unknown name '(nobody|nothing)'; known: "):
            experiments.measure(tasks, arms, [0], tmp_path)


def test_arms_are_compared_on_the_seeds_that_both_have():
    own = {"a": range(3), "b": range(2), "c": range(1)}
    rows = [(task, arm, seed) for task in "tu" for arm, seeds in own.items() for seed in seeds]
    found = reports.on_shared_seeds(pd.DataFrame(rows, columns=["task", "arm", "seed"]), "a", "b")
    assert set(found["seed"]) == {0, 1} and set(found["arm"]) == {"a", "b"} and len(found) == 8


def test_single_arms_have_more_seeds(tmp_path, monkeypatch):
    asked = {}

    def noted(grids, *options):
        asked.update({name: [cell.seed for cell in cells] for name, (cells, _) in grids.items()})
        raise FedexitError("enough")

    monkeypatch.setattr(experiments, "run_grids", noted)
    with pytest.raises(FedexitError, match="enough"):
        experiments.measure(["keyword"], ["masked", "stale"], [0, 1], tmp_path, more_seeds={"masked": [7]})
    assert asked == {("keyword", "masked"): [0, 1, 7], ("keyword", "stale"): [0, 1]}
