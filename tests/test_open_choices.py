"""Test that the table of choices has the values of the code, and that the columns are those of the notebook."""

from fedexit.federated.clients import LocalTraining
from fedexit.lab.experiments import SCHEDULES
from fedexit.lab.open_choices import COLUMNS, OPEN, SAME, _by, choices_table
from fedexit.lab.paper_profile import ROWS


def test_choices_are_those_of_the_code():
    table = choices_table()
    assert list(table.columns) == COLUMNS and table.notna().all(axis=None) and table["choice"].is_unique
    paper, default, ours = (table.set_index("choice")[column] for column in COLUMNS[1:4])
    for row in ROWS.values():
        assert row.corpus in paper["corpora"] and str(row.best) in paper["depths of the tiers"]
    for schedule in SCHEDULES.values():
        assert (
            str(schedule.rounds) in ours["rounds"]
            and f"{schedule.fraction:g}" in ours["share of the clients per round"]
        )
    assert default["learning rate of the layers"] == f"{LocalTraining().learning_rate:g}"
    assert default["learning rate over the rounds"] == "constant" != ours["learning rate over the rounds"]
    assert default["model that is evaluated"] == "the last" and "decay 0.9" in ours["model that is evaluated"]
    assert ours["local loss"].startswith(SAME) and ours["heads"] == SAME and paper["heads"] == OPEN


def test_equal_values_are_joined():
    assert _by({"a": 1, "b": 1}) == "1" and _by({"a": 1, "b": 2, "c": 1}) == "1 (a, c); 2 (b)"
