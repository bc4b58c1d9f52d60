"""Test error rates, which are counted over all clips or words together, against values by hand and an edit distance."""

import math

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedexit import MultiExitModel, load_backbone
from fedexit.data.batches import WINDOW
from fedexit.data.text import CHARACTERS, characters
from fedexit.model import metrics

WORDS = st.lists(st.sampled_from(["a", "bb", "cab", "it's"]), max_size=5).map(" ".join)


def predictions(*pairs, exit=3):
    rows = [(item, exit, said, true) for item, (true, said) in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["item", "exit", "predicted", "label"])


def distance(one, other):
    """Return the fewest substitutions, deletions and insertions between two sequences."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, row = row, [i]
        for j, right in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (left != right)))
    return row[-1]


def test_error_rates_are_pooled_counts_and_not_means_of_rates():
    table = predictions(("a b c d", "a x c"), ("e", "e f g"))  # 2 errors of 4 words, 2 of 1
    [word] = metrics.error_rates(table, unit="word").itertuples(index=False)
    assert (word.exit, word.n, word.value) == (3, 5, 4 / 5)  # the mean of rates would be 1.25
    [character] = metrics.error_rates(table).itertuples(index=False)
    assert (character.n, character.value) == (8, 7 / 8)  # b for x, " d" lost, " f g" too much


@given(st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=6))
def test_error_rates_agree_with_a_plain_edit_distance(pairs):
    rates = metrics.all_rates(predictions(*pairs)).set_index("metric")
    for metric, units in (("CER", list), ("WER", str.split)):
        errors, n = (sum(f(units(true), units(said)) for true, said in pairs) for f in (distance, lambda t, _: len(t)))
        assert rates.loc[metric, "n"] == n and rates.loc[metric, "value"] == pytest.approx(errors / n)


def test_empty_texts_and_empty_predictions():
    for pair, value, n in ((("a b", ""), 1.0, 2), (("", ""), 0.0, 0), (("", "a b"), math.inf, 0)):
        [rate] = metrics.error_rates(predictions(pair), unit="word").itertuples(index=False)
        assert (rate.value, rate.n) == (value, n)
    [rate] = metrics.error_rates(predictions(("", "a b"), ("a b c d", "a b c d")), unit="word").itertuples(index=False)
    assert (rate.value, rate.n) == (0.5, 4)  # insertions in silence count against the words of other clips


def test_errors_of_labels_are_shares_of_clips_by_group():
    table = pd.concat(
        [predictions((0, 0), (1, 0), (2, 2), (2, 1)), predictions((0, 0), (1, 1), (2, 2), (2, 1), exit=6)]
    )
    table["tier"] = ["low", "low", "high", "high"] * 2
    rates = metrics.all_rates(table, ["tier", "exit"])
    assert set(rates["metric"]) == {"error"}
    assert rates.set_index(["tier", "exit"])["value"].to_dict() == {
        ("high", 3): 0.5, ("high", 6): 0.5, ("low", 3): 0.5, ("low", 6): 0.0,
    }  # fmt: skip
    assert set(rates["n"]) == {2}
    assert list(metrics.all_rates(table)["value"]) == [0.5, 0.25]


@pytest.mark.parametrize("pairs", [[("a b c", "a c"), ("b", "b b b"), ("", "c")], [(0, 1), (1, 1), (2, 0)]])
def test_errors_of_items_add_up_to_the_rates(pairs):
    table = pd.concat([predictions(*pairs), predictions(*pairs[:2], exit=6)])
    items = metrics.item_errors(table)
    assert list(items) == ["exit", "item", "metric", "errors", "n"]
    assert len(items) == len(table) * items["metric"].nunique()
    sums = items.groupby(["metric", "exit"])[["errors", "n"]].sum()
    rates = metrics.all_rates(table).set_index(["metric", "exit"])
    assert (sums["errors"] / sums["n"]).to_dict() == pytest.approx(rates["value"].to_dict())
    assert sums["n"].to_dict() == rates["n"].to_dict()


@pytest.mark.parametrize("head", ["pooled", "ctc", "ctc-bilstm"])
def test_predictions_do_not_depend_on_the_batch_size(head):
    """Use clips of many lengths, in more than one window of batches; positions are those in the data."""
    model = MultiExitModel(load_backbone("nano"), CHARACTERS, [3, 6], head=head)
    generator = torch.Generator().manual_seed(0)
    sizes = [1600 + 640 * (7 * n % 5) for n in range(2 * WINDOW + 3)]
    targets = [n % 5 if head == "pooled" else characters("yes no"[: 1 + n % 6]) for n in range(len(sizes))]
    data = [(torch.randn(size, generator=generator), target) for size, target in zip(sizes, targets, strict=True)]
    many, one = metrics.predict(model, data, batch_size=2), metrics.predict(model, data, batch_size=1)
    pd.testing.assert_frame_equal(many, one)
    assert list(many["item"]) == [item for item in range(len(sizes)) for _ in (3, 6)]
    assert many["predicted"].nunique() > 1
    expected = targets if head == "pooled" else [("yes no"[: 1 + n % 6]).strip() for n in range(len(sizes))]
    assert list(many.query("exit == 3")["label"]) == expected


def test_a_given_decoder_is_used_only_for_texts():
    data = [(torch.randn(1600), characters("yes"))] * 3
    model = MultiExitModel(load_backbone("nano"), CHARACTERS, [3], head="ctc")
    said = metrics.predict(model, data, decode=lambda logits: [f"{logits.shape[-1]}"] * len(logits))
    assert list(said["predicted"]) == [str(1 + len(CHARACTERS))] * 3
