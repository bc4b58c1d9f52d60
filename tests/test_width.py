"""Test HeteroFL: the block of each weight of a narrow client, the average of blocks, and the saved costs."""

import pytest
import torch
from small_corpus import write_small_corpus
from test_costs import small
from test_federation import TRAINING, make_clients, make_model, tones
from test_grid import settings

from fedexit import Client, FedexitError, MultiExitModel, federate, load_backbone, open_corpus
from fedexit.data.trials import make_trials
from fedexit.federated.regime import Regime
from fedexit.lab import cells
from fedexit.lab import heterofl as width
from fedexit.lab.cells import run_cell
from fedexit.lab.heterofl import average_by_element, federate_by_width, narrowed, places_in, widths_for
from fedexit.lab.setting import Cell
from fedexit.model.costs import clip_macs


def one_exit():
    return MultiExitModel(load_backbone("nano"), ["low", "high"], [12])


def with_adapters():
    model = make_model()
    model.backbone.lora = (4, 16.0)
    return model


def two_tiers_deep():
    return [Client(c.name, c.data[:4], 12, c.tier) for c in make_clients()]


def two_tiers():
    return [Client(c.name, c.data, depth, c.tier) for c, depth in zip(make_clients(), (3, 12, 3, 12), strict=True)]


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_a_narrow_model_has_the_first_channels_and_heads_of_every_layer(family):
    model = MultiExitModel(small(family), ["a", "b", "c"], [2, 4]).eval()
    narrow = narrowed(model, 0.5).eval()
    assert narrow.backbone.layers == model.backbone.layers and narrow.backbone.width * 2 == model.backbone.width
    assert narrow(torch.randn(2, 8000))[4].shape == (2, 3)
    one, half = (m.backbone.model.encoder.layers[1].attention for m in (model, narrow))
    assert one.head_dim == half.head_dim and half.num_heads * 2 == one.num_heads  # whole heads, none cut through
    size = half.q_proj.out_features
    assert torch.equal(half.q_proj.weight, one.q_proj.weight[:size, :size])
    convolutions = [m.backbone.model.feature_extractor.state_dict() for m in (model, narrow)]
    assert all(torch.equal(tensor, convolutions[1][name]) for name, tensor in convolutions[0].items())


def test_a_narrow_head_reads_means_and_deviations_of_the_first_channels():
    model = make_model()
    narrow = narrowed(model, 0.5)
    full, half = model.heads["6"].linear.weight, narrow.heads["6"].linear.weight
    width = model.backbone.width
    assert torch.equal(half[:, : width // 2], full[:, : width // 2])  # means
    assert torch.equal(half[:, width // 2 :], full[:, width : width + width // 2])  # deviations


def test_narrowing_twice_by_half_gives_a_quarter():
    model = MultiExitModel(load_backbone("tiny-random"), ["low", "high"])
    twice, once = narrowed(narrowed(model, 0.5), 0.5).state_dict(), narrowed(model, 0.25).state_dict()
    assert twice.keys() == once.keys() and all(torch.equal(twice[name], once[name]) for name in once)


def test_every_element_is_averaged_over_the_clients_that_trained_it():
    model = make_model()
    start = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    halves = places_in(model, narrowed(model, 0.5))
    one = {name: torch.full_like(tensor, 1.0) for name, tensor in start.items()}
    two = {name: torch.full_like(start[name][halves[name]], 2.0) for name in start}
    everything = places_in(model, model)
    name = "backbone.model.encoder.layers.0.attention.k_proj.weight"
    size = two[name].shape[0]
    mean = average_by_element(start, [(one, everything), (two, halves), (two, halves)])[name]
    assert torch.allclose(mean[:size, :size], torch.tensor(5 / 3))
    assert (mean[size:] == 1).all() and (mean[:, size:] == 1).all()
    alone = average_by_element(start, [(two, halves)])[name]
    assert (alone[:size, :size] == 2).all() and torch.equal(alone[size:], start[name][size:])
    two[name][0, 0] = torch.nan
    with pytest.raises(FedexitError, match=r"average of .*k_proj.weight' is not finite: a client diverged"):
        average_by_element(start, [(two, halves)])


def test_with_full_width_it_is_bit_identical_to_fedavg_with_equal_weights():
    plain, clients = one_exit(), [Client(c.name, c.data, 12, c.tier) for c in make_clients()]
    settings = dict(rounds=2, seed=3, fraction=0.5, training=TRAINING, dev=tones(99, 6))
    expected = federate(plain, clients, "count", **settings, evaluate_every=2)
    found = federate_by_width(one_exit(), clients, {12: 1.0}, **settings)
    weights = found.model.models["12"].state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.model.state_dict().items())
    assert found.table.equals(expected.table)
    ours = found.clients.drop(columns=["seconds", "width"])
    assert ours.equals(expected.clients.drop(columns="seconds")) and (found.clients["width"] == 1).all()


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_a_ranked_narrow_model_keeps_what_the_full_model_uses(family):
    """Where half of the channels, heads and units are zero, the other half computes the same before the heads."""
    model = MultiExitModel(small(family), ["a", "b", "c"], [2, 4]).eval()
    wide, weights = narrowed(model, 0.5, ranked=True), model.state_dict()
    kept = places_in(model, wide, ranked=True)
    grown = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for name, tensor in grown.items():
        tensor[kept[name]] = weights[name][kept[name]]
    units = "backbone.model.encoder.layers.{}.feed_forward.intermediate_dense.weight"
    norms = [weights[units.format(layer)].square().sum(1) for layer in range(2)]
    chosen = [set(kept[units.format(layer)][0][:, 0].tolist()) for layer in range(2)]
    assert chosen[0] != chosen[1] and chosen[0] != set(range(len(chosen[0])))  # each layer has its own, not the first
    assert all(len(own) * 2 == len(norm) for own, norm in zip(chosen, norms, strict=True))
    model.load_state_dict(grown)
    again = narrowed(model, 0.5, ranked=True).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in wide.state_dict().items())


def test_a_regime_trains_the_heads_of_all_widths_first_and_evaluates_the_average():
    clips, widths, regime = tones(50, 20), {3: 0.5, 12: 1.0}, Regime(3, falling_rates=True, average=0.9)
    seen = []
    settings = dict(training=TRAINING, unlabelled=clips, dev=tones(99, 20), regime=regime, ranked=True)
    found = federate_by_width(
        one_exit(), two_tiers(), widths, 4, **settings, evaluate_every=2, on_round=lambda n, *_: seen.append(n)
    )
    assert sorted(set(found.table["round"])) == [0, 2, 4] and seen == [1, 2, 3, 4]
    assert sorted(set(found.clients["round"])) == [-2, -1, 0, 1, 2, 3, 4]
    sent = found.clients.query("width == 0.5").groupby(found.clients["round"] > 0)["bytes"].max()
    assert sent[False] < sent[True] / 10  # heads alone
    start = federate_by_width(one_exit(), two_tiers(), widths, 1, **settings).table.query("round == 0")["value"]
    raw = settings | {"regime": None}
    cold = federate_by_width(one_exit(), two_tiers(), widths, 1, **raw).table.query("round == 0")["value"]
    assert start.sum() < cold.sum()
    same = dict(rounds=0, dev=tones(99, 6), training=TRAINING, regime=regime)  # heads alone
    full = federate(one_exit(), two_tiers_deep(), "count", **same)
    wide = federate_by_width(one_exit(), two_tiers_deep(), {12: 1.0}, **same)
    weights = wide.model.at(12).state_dict()
    assert all(torch.allclose(tensor, weights[name], atol=1e-4) for name, tensor in full.model.state_dict().items())


def test_narrow_and_wide_clients_learn_something_easy_together():
    clips, model = tones(50, 20), one_exit()
    widths = widths_for((3, 12), model.backbone)
    assert widths == {3: 0.5, 12: 1.0}
    found = federate_by_width(model, two_tiers(), widths, 8, training=TRAINING, unlabelled=clips, dev=tones(99, 20))
    last = found.table[found.table["round"] == 8].set_index("exit")["value"]
    assert list(last.index) == [3, 12] and (last < 0.25).all()
    sent = found.clients.groupby("width")[["bytes", "macs_forward", "memory_training"]].first()
    assert (sent.loc[0.5] < sent.loc[1.0]).all()
    assert found.model.embeddings(torch.randn(1, 8000), exits=[3])[3].shape == (1, model.backbone.width)


def test_tiers_have_whole_attention_heads():
    tiny = load_backbone("tiny-random")
    assert widths_for((3, 6, 9, 12), tiny) == {3: 0.5, 6: 0.75, 9: 0.75, 12: 1.0}
    assert widths_for((3, 12), tiny) == {3: 0.5, 12: 1.0}


def test_tiers_of_base_have_whole_heads_and_groups():
    """Base has 12 heads and 16 groups of the positional convolution, so not every share gives whole numbers."""
    base = load_backbone("base")
    assert widths_for((1, 4, 8, 12), base) == {1: 0.25, 4: 0.5, 8: 0.75, 12: 1.0}
    assert widths_for((3, 6, 9, 12), base) == {3: 0.5, 6: 0.75, 9: 0.75, 12: 1.0}


def test_every_evaluation_uses_one_thread(monkeypatch):
    """With two threads, sums may round differently."""
    threads, plain = [], width.evaluated

    def counted(*arguments):
        threads.append(torch.get_num_threads())
        return plain(*arguments)

    monkeypatch.setattr(width, "evaluated", counted)
    torch.set_num_threads(2)
    try:
        federate_by_width(one_exit(), two_tiers(), {3: 0.5, 12: 1.0}, 1, training=TRAINING, dev=tones(99, 2))
    finally:
        torch.set_num_threads(1)
    assert threads == [1, 1]


def test_a_cell_of_a_grid_runs_heterofl(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    folder = write_small_corpus(tmp_path / "small", clips=10)
    listed = make_trials(open_corpus(folder).select("test"), 30)
    monkeypatch.setattr(cells, "trials_of", lambda corpus: listed)
    found = run_cell(Cell("voice", "heterofl", 0), settings(folder, "voice"), tmp_path / "state")
    test = found.errors.query("split == 'test' and tier == 'all'")
    assert list(test["exit"]) == [3, 6] and set(found.ledger["depth"]) == {3, 6}
    assert list(found.errors.query("metric == 'EER'")["exit"]) == [3, 6]  # speakers are verified at each width
    with pytest.raises(FedexitError, match="drop-outs"):
        run_cell(Cell("voice", "heterofl", 0), settings(folder, "voice", drop_out=0.5), tmp_path / "state")


def test_half_the_width_costs_a_quarter_of_the_work_per_layer():
    model = MultiExitModel(load_backbone("base"), ["low", "high"])
    cut = {depth: clip_macs(model.backbone, 16_000, depth).trained for depth in (3, 12)}
    narrow = clip_macs(narrowed(model, 0.5).backbone, 16_000, 12).trained
    assert 0.23 < narrow / cut[12] < 0.29 and abs(narrow - cut[3]) < 0.12 * cut[3]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda: narrowed(make_model(), 0.3), "whole number"),
        (lambda: narrowed(make_model(), 1.5), "whole number"),
        (lambda: narrowed(MultiExitModel(load_backbone("nano"), ["a"], head="ctc-bilstm"), 0.5), "recurrent"),
        (lambda: federate_by_width(one_exit(), [], {}, 1), "at least one client"),
        (lambda: federate_by_width(one_exit(), 2 * two_tiers(), {3: 0.5, 12: 1.0}, 1), "listed twice"),
        (lambda: federate_by_width(one_exit(), two_tiers(), {3: 0.5, 12: 1.0}, 1, fraction=1.5), "fraction must be in"),
        (lambda: narrowed(with_adapters(), 0.5), "without LoRA"),
        (lambda: federate_by_width(make_model(), two_tiers(), {3: 0.5, 12: 1.0}, 1), "one exit"),
        (lambda: federate_by_width(one_exit(), two_tiers(), {12: 1.0}, 1), "every client's depth"),
        (
            lambda: federate_by_width(one_exit(), two_tiers(), {3: 0.5, 12: 1.0}, 1).model(
                torch.ones(1, 800), None, [6]
            ),
            "exit 6",
        ),
        (lambda: federate(one_exit(), two_tiers(), "heterofl"), "cuts width"),
    ],
)
def test_impossible_widths_are_refused(change, word):
    with pytest.raises(FedexitError, match=word):
        change()
