"""Test early exit: rules against values by hand, equal exits offline and at run time, thresholds and the oracle."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus

from fedexit import FedexitError, MultiExitModel, load_backbone, open_corpus
from fedexit.central.fine_tuning import Recipe
from fedexit.data.batches import normalised
from fedexit.data.tasks import make_task
from fedexit.data.text import CHARACTERS
from fedexit.lab.exit_study import (
    FIXED,
    Stopped,
    as_arm,
    at_equal_error,
    at_work,
    by_way,
    fixed_exit_for,
    held,
    latencies,
    oracle,
    scored,
    stop_shares,
    sweep,
    swept_rules,
    taken,
    threshold_at_work,
    threshold_for,
    totals,
    train_and_score,
)
from fedexit.model.costs import clip_macs
from fedexit.model.early_exit import RULES, agreement, entropy, probability, run

NOTHING = -math.inf
EXITS = [3, 6, 9, 12]


def certain(*codes):
    """Return logits (1, F, 4) that give probability 1 to these codes."""
    return 100.0 * torch.nn.functional.one_hot(torch.tensor([codes]), 4).float()


def test_entropy_and_probability_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30], [1 / 3, 1 / 3, 1 / 3]]).log()
    bits = 0.5 * math.log(2) + 0.5 * math.log(4)
    torch.testing.assert_close(entropy([logits]), torch.tensor([-bits / math.log(3), 0.0, -1.0]))
    torch.testing.assert_close(probability([logits]), torch.tensor([0.5, 1.0, 1 / 3]))


def test_confidence_of_a_text_ignores_blank_frames():
    frames = torch.tensor([[[0.97, 0.01, 0.01, 0.01], [0.1, 0.7, 0.1, 0.1], [0.2, 0.2, 0.5, 0.1]]]).log()
    by_hand = [-sum(p * math.log(p) for p in row) for row in ((0.1, 0.7, 0.1, 0.1), (0.2, 0.2, 0.5, 0.1))]
    torch.testing.assert_close(entropy([frames]), torch.tensor([-sum(by_hand) / 2 / math.log(4)]))
    torch.testing.assert_close(probability([frames]), torch.tensor([0.6]))


def test_an_exit_with_an_empty_text_is_never_confident():
    silent = certain(0, 0, 0)
    for name, rule in RULES.items():
        assert rule([silent, silent]).tolist() == [NOTHING], name


def test_agreement_of_labels_counts_equal_answers_in_a_row():
    answers = [[0, 0, 0, 1], [1, 0, 1, 1], [1, 0, 0, 0]]  # of four clips, at three exits
    seen = [10.0 * torch.nn.functional.one_hot(torch.tensor(row), 2).float() for row in answers]
    assert agreement(seen[:1]).tolist() == [NOTHING] * 4
    assert agreement(seen[:2]).tolist() == [NOTHING, 1, NOTHING, 1]
    assert agreement(seen).tolist() == [1, 2, NOTHING, NOTHING]


def test_agreement_of_texts_counts_edits():
    a, ab, abc = certain(1, 0, 0), certain(1, 2, 0), certain(1, 2, 3)
    assert agreement([abc]).tolist() == [NOTHING]
    assert agreement([a, ab, ab]).tolist() == [0]  # the last two count
    assert agreement([ab, abc]).tolist() == pytest.approx([-1 / 3])
    assert agreement([certain(0, 0, 0), abc]).tolist() == [-1]


def model(head):
    labels = CHARACTERS if head == "ctc" else ["low", "mid", "high"]
    made = MultiExitModel(load_backbone("nano"), labels, EXITS, head=head).eval()
    with torch.no_grad():  # so that exits differ and are not all unsure
        for depth in made.exits:
            made.heads[str(depth)].linear.weight.mul_(8)
    return made


def clips():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=generator) for length in (4000, 8000, 5000, 16000, 12345, 7000)]


def table_of(made):
    target = [1, 2] if made.head == "ctc" else 1
    return scored(made, [(clip, target) for clip in clips()], [len(clip) for clip in clips()])


@pytest.mark.parametrize("head", ["pooled", "ctc"])
def test_confidence_does_not_depend_on_padding(head):
    made = model(head)
    table = table_of(made)
    target = [1, 2] if head == "ctc" else 1
    for item, clip in enumerate(clips()):
        alone = scored(made, [(clip, target)], [len(clip)])
        together = table[table["item"] == item]
        assert together["errors"].tolist() == alone["errors"].tolist()
        for name in RULES:
            np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["pooled", "ctc"])
@pytest.mark.parametrize("rule", RULES)
def test_run_stops_at_the_exit_of_the_table_and_runs_no_deeper_layer(head, rule):
    made = model(head)
    table = table_of(made)
    ran = []
    for number, layer in enumerate(made.backbone.model.encoder.layers, 1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    finite = np.unique(table.loc[np.isfinite(table[rule]), rule])
    thresholds = [NOTHING, *(finite[1:] + finite[:-1]) / 2, math.inf]
    found = []
    for threshold in [*thresholds[:: max(1, len(thresholds) // 6)], math.inf]:
        expected = taken(table, rule, threshold)["exit"].tolist()
        for clip, depth in zip(clips(), expected, strict=True):
            ran.clear()
            exit, logits = run(made, clip, rule, threshold)
            assert exit == depth and ran == list(range(1, depth + 1))
            assert torch.equal(logits, made(normalised(clip)[None])[depth])
        found += expected
    assert {min(EXITS), max(EXITS)} <= set(found)


def small(errors, sure, n=1):
    """Return a table of `scored` with two exits, from errors and confidences (N, 2)."""
    rows = [
        (item, exit, errors[item][place], n, sure[item][place], 10, (30, 50)[place], (30, 60)[place])
        for item in range(len(errors))
        for place, exit in enumerate((3, 12))
    ]
    columns = ["item", "exit", "errors", "n", "entropy", "convolutions", "macs_alone", "macs_early"]
    return pd.DataFrame(rows, columns=columns).assign(clip=lambda table: table["item"])


def test_the_threshold_is_the_laxest_before_the_first_failure_on_dev():
    errors = [(0, 0), (0, 0), (1, 0), (0, 1), (1, 0), (1, 0)]
    dev = small(errors, [(0.9, 0.0), (0.8, 0.0), (0.7, 0.0), (0.6, 0.0), (0.5, 0.0), (NOTHING, 0.0)])
    assert threshold_for(dev, "entropy", 0) == 0.8  # 0.6 compensates the error at 0.7 by chance
    assert threshold_for(dev, "entropy", 16) == 0.8 and threshold_for(dev, "entropy", 17) == 0.5
    assert threshold_for(dev, "entropy", 100) == 0.5  # a clip without evidence never stops early
    worse = small([(1, 0)], [(0.9, 0.0)])
    assert threshold_for(worse, "entropy", 99) == math.inf
    assert taken(worse, "entropy", math.inf)["exit"].tolist() == [12]


def test_the_fixed_exit_is_the_shallowest_that_dev_allows():
    dev = small([(1, 0), (0, 0)], [(0.0, 0.0)] * 2)
    assert fixed_exit_for(dev, 50) == 3 and fixed_exit_for(dev, 49) == 12
    assert taken(dev, FIXED, 3)["macs"].tolist() == [30, 30] and taken(dev, FIXED, 12)["macs"].tolist() == [
        50,
        50,
    ]


def test_work_includes_the_heads_of_earlier_exits():
    made = model("pooled")
    table = table_of(made).query("item == 3").set_index("exit")
    head = 64 * 3
    for place, exit in enumerate(EXITS):
        bare = clip_macs(made.backbone, 16000, exit)
        assert table.loc[exit, "convolutions"] == bare.frozen
        assert table.loc[exit, "macs_alone"] == bare.frozen + bare.trained + head
        assert table.loc[exit, "macs_early"] == bare.frozen + bare.trained + (place + 1) * head


@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_is_at_least_as_good_as_every_exit_and_rule(seed):
    rng = np.random.default_rng(seed)
    table = small(rng.integers(0, 3, (40, 2)), rng.random((40, 2)), n=4)
    best = oracle(table)
    assert best["errors"].sum() <= table.groupby("exit")["errors"].sum().min()
    for threshold in rng.random(10):
        assert best["errors"].sum() <= taken(table, "entropy", threshold)["errors"].sum()
    tied = small([(1, 1), (1, 0)], [(0.0, 0.0)] * 2)
    assert oracle(tied)["exit"].tolist() == [3, 12]


def test_totals_by_hand():
    rows = taken(
        small([(1, 0), (0, 0), (0, 0), (0, 1)], [(1.0, 0.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0)]), "entropy", 0.5
    )
    found = totals(rows)
    assert rows["exit"].tolist() == [3, 3, 12, 12]
    assert (found["error"], found["extra"]) == (0.5, 0.25)
    assert found["saved"] == pytest.approx(1 - (30 + 30 + 60 + 60) / 200)
    assert found["saved_layers"] == pytest.approx(1 - (20 + 20 + 50 + 50) / 160)


def test_a_model_is_trained_and_scored_and_then_reused(tmp_path):
    task = make_task("voice", open_corpus(str(write_small_corpus(tmp_path / "tones"))), min_clips=4)
    arguments = (task, "nano", EXITS, Recipe(epochs=4, batch_size=8, crop=None), 0.25, 20, 0, tmp_path / "cell")
    table = train_and_score(*arguments)
    assert table["split"].value_counts().to_dict() == {"dev": 20 * 4, "test": 20 * 4}
    assert held(task, "dev", 0.25, 20).ids == table.query("split == 'dev'")["clip"].unique().tolist()
    assert table["guess"].between(0.5, 0.9).all()
    pd.testing.assert_frame_equal(train_and_score(*arguments), table)  # from the checkpoint
    made = MultiExitModel.from_pretrained(tmp_path / "cell")
    test = table[table["split"] == "test"]
    waveforms = [clip for clip, _ in held(task, "test", 0.25, 20)]
    threshold = test["probability"].median() + 1e-6
    timed = latencies(made, waveforms[:5], {"probability": threshold}, 2).pivot(index="item", columns="way")
    assert timed["exit", "probability"].tolist() == taken(test, "probability", threshold)["exit"].tolist()[:5]
    assert timed["exit", "exit 9"].tolist() == [9] * 5 and (timed["seconds"] > 0).all(axis=None)


def test_the_strictest_threshold_within_a_budget_of_work():
    table = small([(0, 0)] * 3, [(0.9, 0.0), (0.5, 0.0), (0.2, 0.0)])  # 30 to stop at the first exit, 60 at the last
    found = [threshold_at_work(table, "entropy", macs) for macs in (29, 30, 45, 50, 60)]
    assert found == [-math.inf, 0.2, 0.5, 0.9, math.inf]
    assert taken(table, "entropy", 0.5)["macs"].mean() == 40


def test_a_sweep_goes_from_the_first_exit_to_the_last():
    table = small([(1, 0), (0, 0), (1, 1)], [(0.9, 0.0), (0.5, 0.0), (0.2, 0.0)])
    found = sweep(table, "entropy", steps=3)
    assert (found["macs"] / found["clips"]).tolist() == [30, 40, 50, 60]
    assert found["errors"].tolist() == [2, 2, 2, 1] and set(found["n"]) == set(found["clips"]) == {3}


def with_all_rules(table):
    """Return a table of `small` in which every rule of `RULES` is as confident as `entropy`."""
    return table.assign(**dict.fromkeys(RULES, table["entropy"]))


def test_ways_are_compared_at_equal_work_and_at_equal_error():
    many = with_all_rules(small([(1, 0), (0, 0), (1, 1)], [(0.9, 0.0), (0.5, 0.0), (0.2, 0.0)]))
    alone = many[many["exit"] == 3].assign(errors=0, exit=6)
    stopped = at_work(many, many, macs=45)
    assert list(stopped) == list(RULES) and {own.threshold for own in stopped.values()} == {0.5}
    table = by_way(many, alone, stopped).set_index("way")
    assert list(table.index) == [FIXED, FIXED, "dedicated", *RULES, "oracle"]
    assert table.loc[FIXED, "macs"].tolist() == [30, 50] and table.loc[FIXED, "error"].tolist() == [2 / 3, 1 / 3]
    assert table.loc["dedicated", ["error", "macs"]].tolist() == [0, 30]
    assert table.loc["entropy", ["error", "macs", "saved"]].tolist() == pytest.approx([2 / 3, 40, 1 - 40 / 50])
    assert table.loc["oracle", ["error", "macs"]].tolist() == pytest.approx([1 / 3, (50 + 30 + 30) / 3])
    curves = swept_rules(many)
    assert curves["way"].unique().tolist() == list(RULES)
    last = curves[curves["way"] == "entropy"].iloc[-1]
    assert (last["macs"], last["error"]) == (60, 1 / 3)  # the strictest threshold runs all exits
    equal = at_equal_error(many, many).set_index("rule")
    assert equal.loc[FIXED, "threshold"] == 12 and equal.loc["entropy", "threshold"] == math.inf
    assert (equal["extra"] == 0).all() and equal.loc[FIXED, "saved"] == 0


def test_stops_become_shares_and_rows_of_an_arm():
    table = small([(1, 0), (0, 0), (1, 1)], [(0.9, 0.0), (0.5, 0.0), (0.2, 0.0)]).assign(task="t", seed=7)
    shares = stop_shares({"t, entropy": Stopped(taken(table, "entropy", 0.5), 0.5)}, [3, 6, 12])
    assert shares.columns.tolist() == ["rule", "exit 3", "exit 6", "exit 12"]
    assert shares.iloc[0].tolist() == ["t, entropy", pytest.approx(2 / 3), 0, pytest.approx(1 / 3)]
    clips = pd.DataFrame({"id": [0, 1, 2], "group": ["a", "a", "b"]})
    rows = as_arm(taken(table, "entropy", 0.5), "early", 6, clips)
    assert rows.columns.tolist() == ["task", "exit", "arm", "seed", "cluster", "item", "errors", "n"]
    assert rows["exit"].tolist() == [6] * 3 and rows["cluster"].tolist() == ["a", "a", "b"]
    assert rows["errors"].tolist() == [1, 0, 1]


def test_an_unknown_rule_and_a_clip_with_channels_are_refused():
    model = MultiExitModel(load_backbone("nano"), ["a", "b"]).eval()
    wrong = (torch.randn(8000), "margin", "known: entropy"), (torch.randn(1, 8000), "entropy", "shape")
    for clip, rule, words in wrong:
        with pytest.raises(FedexitError, match=words):
            run(model, clip, rule, 0.5)
