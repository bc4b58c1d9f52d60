"""Test what notebooks say they found: the cell is that of the published table, and sentences have the right numbers."""

import json
import subprocess

import pandas as pd
import pytest

from fedexit.lab import found, reports, wording
from fedexit.runner import publish
from fedexit.support.paths import project_root

ROOT = project_root()


def notebook(*cells):
    """Return a notebook (JSON) of prose cells: pairs of text and tag."""
    cells = [
        {"cell_type": "markdown", "id": f"c{k}", "metadata": {"tags": [tag]} if tag else {}, "source": [text]}
        for k, (text, tag) in enumerate(cells)
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def test_found_cells_are_those_of_the_published_tables():
    """A run may change a table, but only `fedexit readme` writes the cells."""
    git = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "results", "nbs_ci.yml"]
    try:
        changed = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    if changed:
        pytest.skip(f"results differ from the committed ones: {changed.split()[1]} ...")
    stale = [path.as_posix() for path, text in found.renewed(ROOT) if path.read_text(encoding="utf-8") != text]
    assert not stale, "run: fedexit readme"


@pytest.mark.parametrize("lines", [1, 5, 7])
def test_the_cell_has_the_first_sentences_of_the_table(lines, tmp_path):
    table = tmp_path / "says.csv"
    assert found.NOT_RUN in found.found_text(table)
    pd.DataFrame({"says": [f"Sentence {k}, with a comma." for k in range(lines)]}).to_csv(table, index=False)
    text = found.found_text(table)
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        f"- Sentence {k}, with a comma." for k in range(min(lines, 5))
    ]
    assert ("7 sentences in all" in text) == (lines == 7) and found.NOT_RUN not in text


@pytest.mark.parametrize("table", ["other\n1\n", "says\n"])
def test_a_table_without_sentences_says_that_nothing_was_run(table, tmp_path):
    (tmp_path / "says.csv").write_text(table)
    assert found.NOT_RUN in found.found_text(tmp_path / "says.csv")


def test_the_cell_stands_below_the_contract_and_is_replaced():
    plain = notebook(("# contract", ""), ("text", ""))
    once = found.with_found(plain, "## What we found\n\n- One.")
    first, second, third = json.loads(once)["cells"]
    assert "".join(second["source"]) == "## What we found\n\n- One." and second["metadata"]["tags"] == ["found"]
    assert (first["source"], third["source"]) == (["# contract"], ["text"])
    again = found.with_found(once, "## What we found\n\n- Two.")
    assert found.with_found(plain, "## What we found\n\n- Two.") == again != once


def test_the_cell_is_no_change_of_the_notebook(tmp_path):
    """Otherwise a run would replace published results although only their own sentences differ."""
    one, other = tmp_path / "one.ipynb", tmp_path / "other.ipynb"
    one.write_text(found.with_found(notebook(("# contract", ""), ("text", "")), "- One."))
    other.write_text(found.with_found(notebook(("# contract", ""), ("text", "")), "- Two."))
    assert publish._sources(one) == publish._sources(other) == [("markdown", "# contract"), ("markdown", "text")]
    other.write_text(found.with_found(notebook(("# contract", ""), ("another text", "")), "- One."))
    assert publish._sources(one) != publish._sources(other)


def judged(**changes):
    row = {"task": "t", "exit": 3, "one": "a", "other": "b", "difference": 2.6, "low": 0.6, "high": 4.6, "seeds": 8}
    return row | {"verdict": "worse", "p_holm": 0.01, "seeds_needed": float("nan")} | changes


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({}, "2.6 points more errors than **b** (8 seeds, 95 % interval +0.6 to +4.6): **worse**."),
        (
            {"verdict": "not resolved", "p_holm": 0.084, "seeds_needed": 14.0},
            "**not resolved** after correction for several comparisons (p = 0.08); 14 seeds would do.",
        ),
        (
            {"verdict": "not resolved", "low": -1.0, "p_holm": 0.3, "seeds_needed": float("inf")},
            "-1.0 to +4.6): **not resolved**, and more seeds would not resolve it.",
        ),
        (
            {"verdict": "demonstration", "seeds": 1, "low": float("nan"), "high": float("nan"), "difference": -0.31},
            "**a** makes 0.3 points fewer errors than **b** (one seed): **demonstration**.",
        ),
    ],
)
def test_a_sentence_has_seeds_interval_and_verdict(changes, ends):
    [line] = reports.sentences(pd.DataFrame([judged(**changes)]))
    assert line.startswith("*t*, at exit 3: **a** makes ") and line.endswith(ends)


def test_sentences_are_in_the_order_of_the_family():
    rows = pd.DataFrame([judged(exit=3), judged(exit=12), judged(exit=6, verdict="exploratory")])
    lines = reports.sentences(rows, family=[("t", 12, "a", "b"), ("t", 3, "a", "b")])
    assert [line[:14] for line in lines] == ["*t*, at exit 1", "*t*, at exit 3"]


def test_numbers_in_words():
    nan = float("nan")
    assert [wording.counted(k, "seed") for k in (0, 1, 2, 1200)] == ["no seeds", "one seed", "2 seeds", "1,200 seeds"]
    assert wording.counted(2, "dialogue of speech", "dialogues of speech") == "2 dialogues of speech"
    assert (wording.percent(0.1249), wording.percent(0.1249, 1)) == ("12 %", "12.5 %")
    assert (wording.points(-0.46), wording.points(1)) == ("-0.5 points", "+1.0 points")
    assert wording.interval(-0.5, 2) == "95 % interval -0.5 to +2.0" and wording.interval(nan, 2) == "no interval"
    assert [wording.listed(range(1, k)) for k in (2, 3, 5)] == ["1", "1 and 2", "1, 2, 3 and 4"]
    assert wording.bullets(["a", "b"]) == "- a\n- b"
