"""Test every method by name, and the differences between methods after one round."""

import copy

import pytest
import torch
from small_corpus import write_small_corpus
from test_federation import TRAINING, assert_same, make_clients, make_model, tones
from test_grid import setting

from fedexit import (
    FedexitError,
    MultiExitModel,
    Update,
    aggregate,
    federate,
    layer_of,
    load_backbone,
    local_round,
)
from fedexit.federated.clients import Client
from fedexit.federated.methods import METHODS, Method, find_method
from fedexit.federated.objectives import Objective
from fedexit.lab.cells import run_cell
from fedexit.lab.setting import Cell
from fedexit.model.names import in_layer

TOLERANCE = dict(rtol=1e-5, atol=1e-6)
LOW, HIGH = (4, 6), (8, 10)  # clips of the clients of depth 3 and of depth 9


def two_tiers():
    clips = {**dict.fromkeys(LOW, 3), **dict.fromkeys(HIGH, 9)}
    return [Client(f"c{n}", tones(n, n), depth, f"tier {depth}") for n, depth in clips.items()]


def after_a_round(method, clients=None, **changes):
    """Return the weights after one round that starts from `make_model`."""
    clients = clients or two_tiers()
    return federate(make_model(), clients, method, rounds=1, training=TRAINING, **changes).model.trainable_weights()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.narrow])  # test_width
def test_every_entry_runs_by_its_name(name):
    method, clients = METHODS[name], make_clients()
    if name == "homogeneous":
        clients = [Client(client.name, client.data, 6, client.tier) for client in clients]
    model = MultiExitModel(load_backbone("nano"), ["low", "high"], shared_head=method.shared_head)
    start = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    result = federate(model, clients, name, rounds=2, training=TRAINING, dev=tones(99, 6), evaluate_every=2)
    assert set(result.table["exit"]) == {3, 6, 9, 12} and set(result.table["round"]) == {0, 2}
    moved = {name for name, tensor in result.model.trainable_weights().items() if not torch.equal(tensor, start[name])}
    depths = method.exits([client.depth for client in clients])
    assert set(result.clients["depth"]) == set(depths)
    assert {layer_of(name) for name in moved} - {None} == set(range(1, max(depths) + 1))
    assert method.source and method.changes and len(method.changes) < 60


def test_masked_with_a_smaller_server_step_equals_stale_fedavg():
    start, stale, masked = make_model().trainable_weights(), after_a_round("stale"), after_a_round("masked")
    share = {"low": sum(LOW) / sum(LOW + HIGH), "high": sum(HIGH) / sum(LOW + HIGH)}
    for name, old in start.items():
        rate = 1.0 if (layer_of(name) or 0) <= 3 else share["high"]
        if name.startswith("heads."):
            rate = {"heads.3": share["low"], "heads.9": share["high"]}.get(name[:7], 0.0)
        torch.testing.assert_close(stale[name], old + rate * (masked[name] - old), **TOLERANCE)
    assert not torch.allclose(stale["heads.9.linear.weight"], masked["heads.9.linear.weight"], **TOLERANCE)


def test_two_tiers_of_eq_1_differ_from_masked_in_layers_1_to_3_and_outside_only():
    masked, ours = after_a_round("masked"), after_a_round("layerwise")
    for name in masked:
        if name.endswith("k_proj.bias"):  # it shifts all scores of a frame alike, so its gradient is rounding
            continue
        shared = (layer_of(name) or 0) <= 3 and not name.startswith("heads.")
        assert torch.allclose(masked[name], ours[name], **TOLERANCE) != shared, name


@pytest.mark.parametrize("rule", ["layerwise", "masked", "stale", "unmasked", "inclusive"])
@pytest.mark.parametrize("exponent", [-1.0, 0.5, 1.0, 2.0])
def test_with_one_depth_every_weighted_rule_equals_fedavg(rule, exponent):
    names = ["projection.weight", *(f"layers.{index}.weight" for index in range(6))]
    start = {name: torch.randn(4, 3) for name in names}
    updates = [Update({name: torch.randn(4, 3) for name in names}, examples, 6) for examples in (3, 50, 7)]
    averaged = aggregate(start, updates, rule, exponent)
    for name in names:
        fedavg = sum(update.examples * update.weights[name] for update in updates) / 60
        torch.testing.assert_close(averaged[name], fedavg, **TOLERANCE)


def test_the_rule_count_ignores_the_number_of_clips():
    updates = [Update({"layers.0.w": torch.tensor([float(value)])}, 10**value, 1 + value) for value in range(3)]
    assert aggregate({"layers.0.w": torch.zeros(1)}, updates, "count")["layers.0.w"].item() == 1.0


def test_inclusive_teaches_the_top_block_of_a_tier_with_the_mean_step_of_the_next():
    """Take two clients at depth 2 and one at depth 4. The deep one steps by l in layer l, the others by 10 and 40."""
    start = {f"layers.{index}.w": torch.full((1,), 100.0) for index in range(6)}
    clips_and_steps = ((1, 10), (2, 40))
    low = [Update({f"layers.{i}.w": torch.tensor([100.0 + d]) for i in range(2)}, n, 2) for n, d in clips_and_steps]
    high = Update({f"layers.{i}.w": torch.tensor([101.0 + i]) for i in range(4)}, 9, 4)
    steps = [tensor.item() - 100 for tensor in aggregate(start, [*low, high], "inclusive").values()]
    mean = (10 + 2 * 40) / 3
    taught = 0.8 * mean + 0.2 * (3 + 4) / 2
    assert steps == pytest.approx([(2 * mean + 1) / 3, (2 * taught + 2) / 3, 3, 4, 0, 0], abs=1e-4)


def test_who_takes_part_and_how_deep():
    ledger = {
        name: federate(make_model(), make_clients(), name, rounds=1, training=TRAINING).clients
        for name in ("exclusive", "all-shallow")
    }
    assert list(ledger["exclusive"]["depth"]) == [12]
    assert set(ledger["all-shallow"]["depth"]) == {3} and len(ledger["all-shallow"]) == 4
    assert set(ledger["all-shallow"]["tier"]) == {"tier 3", "tier 6", "tier 9", "tier 12"}  # the devices as they are
    with pytest.raises(FedexitError, match="one depth, not 3, 6, 9, 12"):
        federate(make_model(), make_clients(), "homogeneous", rounds=1)


def test_all_clients_train_a_shared_head_on_any_number_of_workers():
    results = []
    for workers in (1, 2):
        model = MultiExitModel(load_backbone("nano"), ["low", "high"], shared_head=True)
        results.append(federate(model, two_tiers(), "masked-shared", rounds=1, training=TRAINING, workers=workers))
    assert_same(*results)
    start, name = MultiExitModel(load_backbone("nano"), ["low", "high"], shared_head=True), "heads.shared.linear.weight"
    weights, stream = start.trainable_weights(), (0, "round", 1, "client")
    rounds = [
        local_round(start.client_model(client.depth), weights, client, TRAINING, (*stream, client.name))[0]
        for client in two_tiers()
    ]
    mean = sum(update.examples * update.weights[name] for update in rounds) / sum(LOW + HIGH)
    torch.testing.assert_close(results[0].model.trainable_weights()[name], mean, **TOLERANCE)
    sent = [sum(tensor.nbytes for tensor in update.weights.values()) for update in rounds]
    assert list(results[0].clients["bytes"]) == sent
    with pytest.raises(FedexitError, match="shared_head=True"):
        federate(make_model(), two_tiers(), "masked-shared", rounds=1)


def test_fedra_trains_only_the_drawn_layers():
    whole, [client, *_] = MultiExitModel(load_backbone("nano"), ["low", "high"], shared_head=True), two_tiers()
    fedra = find_method("fedra")
    weights, seen = whole.trainable_weights(), set()
    for number in range(8):
        update, _ = fedra.local_round(whole.client_model(3), weights, client, TRAINING, (0, number), fedra.objective)
        drawn = sorted({layer_of(name) for name in update.weights} - {None})
        assert len(drawn) == 3 and update.depth == 12
        seen.update(drawn)
        skipping = copy.deepcopy(whole)  # the model of the layers drawn, made by hand
        layers = skipping.backbone.model.encoder.layers
        skipping.backbone.model.encoder.layers = torch.nn.ModuleList([layers[layer - 1] for layer in drawn])
        expected, _ = local_round(skipping, skipping.trainable_weights(), client, TRAINING, (0, number))
        for name, tensor in expected.weights.items():
            place = in_layer(name, drawn[layer_of(name) - 1]) if layer_of(name) else name
            assert torch.equal(update.weights[place], tensor), name
    assert len(seen) > 6


def test_fedra_averages_each_layer_over_the_clients_that_drew_it_on_any_number_of_workers():
    results = []
    for workers in (1, 2):
        model = MultiExitModel(load_backbone("nano"), ["low", "high"], shared_head=True)
        start = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
        results.append(federate(model, two_tiers()[:2], "fedra", rounds=1, training=TRAINING, workers=workers))
    assert_same(*results)
    ends = results[0].model.trainable_weights()
    moved = {layer_of(name) for name in ends if not torch.equal(ends[name], start[name])} - {None}
    assert len(moved) <= 6 and max(moved) > 3


def test_unmasked_eq_1_is_between_stale_fedavg_and_eq_1_in_deep_layers():
    ends = {name: after_a_round(name) for name in ("stale", "stale-g1", "layerwise")}
    start, share = make_model().trainable_weights(), 9 * sum(HIGH) / (3 * sum(LOW) + 9 * sum(HIGH))
    for name, old in start.items():
        if 3 < (layer_of(name) or 0) <= 9:
            torch.testing.assert_close(
                ends["stale-g1"][name], old + share * (ends["layerwise"][name] - old), **TOLERANCE
            )
            assert (ends["stale-g1"][name] - old).norm() >= (ends["stale"][name] - old).norm()


def test_an_exponent_can_be_set_by_entry_or_argument():
    for exponent in (-1.0, 0.5, 2.0):
        entry, argument = after_a_round(f"layerwise-g{exponent:g}"), after_a_round("layerwise", depth_exponent=exponent)
        assert all(torch.equal(entry[name], argument[name]) for name in entry)


def test_a_user_can_define_a_method():
    mine = Method("mine", "here", "n_i, and the loss at all exits", "masked", objective=Objective("all"))
    own, named = after_a_round(mine), after_a_round("masked-all")
    assert all(torch.equal(own[name], named[name]) for name in own)


def test_unknown_methods_are_refused_with_the_known_ones():
    with pytest.raises(FedexitError, match="unknown method 'best'; known: homogeneous, exclusive"):
        find_method("best")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "small", clips=10)


def test_cells_run_entries_by_name_and_test_the_exits_they_train(corpus, tmp_path):
    found = {}
    for method, depth, exits in (
        ("exclusive", 0, {6}), ("all-shallow", 0, {3}), ("homogeneous", 3, {3}), ("depthfl", 0, {3, 6})
    ):  # fmt: skip
        found[method] = run_cell(Cell("voice", method, 0, depth), setting(corpus), tmp_path)
        assert set(found[method].errors["exit"]) == exits and set(found[method].errors["method"]) == {method}
    ours, same = (found[name].errors.drop(columns="method") for name in ("all-shallow", "homogeneous"))
    assert ours.equals(same)
    with pytest.raises(FedexitError, match="unknown method 'best'"):
        run_cell(Cell("voice", "best", 0), setting(corpus), tmp_path)
