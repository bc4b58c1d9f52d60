"""Test heads first, falling rates and the averaged model: by hand, and after a resume with any number of workers."""

import copy
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fedexit import Client, FedexitError, LocalTraining, MultiExitModel, federate, load_backbone
from fedexit.data.batches import collate
from fedexit.federated import regime as regimes
from fedexit.federated import rounds
from fedexit.federated.clients import at_share
from fedexit.federated.ledger import heads_costs
from fedexit.federated.regime import Regime, pooled_statistics
from fedexit.lab.checks import check_cell
from fedexit.lab.setting import Cell, DataPart, FederationPart, ModelPart, Setting

FULL = Regime(heads_rounds=3, falling_rates=True, average=0.8)
TRAINING = LocalTraining(batch_size=4, learning_rate=1e-3, head_learning_rate=1e-2)


def clips(count, seed):
    """Return clips of two classes, high and low tones."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        length = 3200 + 160 * (index % 3)
        tone = torch.sin(2 * torch.pi * (300 + 900 * (index % 2)) * torch.arange(length) / 16_000)
        found.append((tone + 0.1 * torch.randn(length, generator=generator), index % 2))
    return found


@pytest.fixture
def model():
    made = MultiExitModel(load_backbone("nano").truncated(6), ["low", "high"], exits=[2, 4, 6])
    made.standardise(*collate(clips(8, 9))[:2])
    return made


@pytest.fixture
def clients():
    return [Client(name, clips(size, seed), depth) for seed, (name, size, depth) in
            enumerate([("ann", 8, 2), ("ben", 6, 6), ("cem", 4, 4)])]  # fmt: skip


def run(model, clients, rounds=3, **options):
    fixed = dict(training=TRAINING, dev=clips(6, 20), rounds=rounds, regime=FULL)
    return federate(copy.deepcopy(model), clients, **fixed | options)


def same(one, other):
    assert one.model.checksum() == other.model.checksum()
    pd.testing.assert_frame_equal(one.table, other.table)
    pd.testing.assert_frame_equal(one.clients.drop(columns="seconds"), other.clients.drop(columns="seconds"))
    assert all(torch.equal(one.last[name], other.last[name]) for name in one.last | other.last)


def test_a_regime_without_options_changes_nothing(model, clients):
    same(run(model, clients, regime=None), run(model, clients, regime=Regime()))
    assert run(model, clients, regime=None).last == {}


def test_rates_fall_along_half_a_cosine():
    shares = [Regime(falling_rates=True).share(number, 4) for number in (1, 2, 3, 4)]
    np.testing.assert_allclose(shares, [1, 0.853553, 0.5, 0.146447], atol=1e-6)
    assert Regime().share(3, 4) == 1.0
    assert at_share(TRAINING, 0.5) == replace(TRAINING, learning_rate=5e-4, head_learning_rate=5e-3)


def test_a_round_with_fallen_rates_is_one_with_these_rates(model, clients):
    """Two rounds with falling rates equal two federations of one round, the second with half the rates."""
    found = run(model, clients, rounds=2, regime=Regime(falling_rates=True))
    by_hand = run(model, clients, rounds=1, regime=None).model
    weights = {}
    real = regimes.Regime.share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regimes.Regime, "share", lambda own, number, rounds: (1.0, 0.5)[number - 1])
        weights["patched"] = run(model, clients, rounds=2, regime=Regime()).model.checksum()
    assert real(Regime(falling_rates=True), 2, 2) == pytest.approx(0.5)
    assert found.model.checksum() == weights["patched"] != by_hand.checksum()


def test_the_average_is_exponential_and_the_last_model_is_kept(model, clients):
    rounds = [run(model, clients, rounds=n, regime=None).model.trainable_weights() for n in (1, 2, 3)]
    found = run(model, clients, rounds=3, regime=Regime(average=0.8))
    for name, tensor in found.model.trainable_weights().items():
        expected = 0.8 * (0.8 * rounds[0][name] + 0.2 * rounds[1][name]) + 0.2 * rounds[2][name]
        torch.testing.assert_close(tensor, expected)
        assert torch.equal(found.last[name], rounds[2][name])


def test_errors_are_those_of_the_average(model, clients, monkeypatch):
    seen = []
    monkeypatch.setattr(rounds, "evaluated", lambda model, dev, number: seen.append(model.checksum()) or [])
    found = run(model, clients, rounds=2, regime=Regime(average=0.8))
    first = run(model, clients, rounds=1, regime=None, dev=[])
    assert seen[:3] == [model.checksum(), first.model.checksum(), found.model.checksum()]


def test_heads_learn_first_on_a_frozen_backbone(model, clients):
    found = run(
        model, clients, rounds=0 + 1, regime=Regime(heads_rounds=30), training=replace(TRAINING, learning_rate=1e-9)
    )
    before, after = model.trainable_weights(), found.model.trainable_weights()
    for name, tensor in after.items():
        if name.startswith("heads."):
            assert not torch.equal(tensor, before[name]), name
        else:
            torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)
    assert found.table.query("round == 0")["value"].max() < 0.5  # before round 1, after the heads
    assert sorted(found.clients["round"].unique()) == list(range(-29, 2))


def test_heads_alone_are_a_federation_without_rounds(model, clients, tmp_path):
    """It ends with the model after the heads, which a run with rounds evaluates at round 0."""
    by_hand, file = copy.deepcopy(model), tmp_path / "run.safetensors"
    regimes.train_heads(by_hand, FULL, lambda number: clients, TRAINING, seed=0)
    found = run(model, clients, rounds=0)
    assert found.model.checksum() == by_hand.checksum() != model.checksum() and found.last == {}
    assert sorted(found.clients["round"].unique()) == [-2, -1, 0]
    pd.testing.assert_frame_equal(found.table, run(model, clients, rounds=1).table.query("round == 0"))
    assert len(found.table) == 3 and "0 rounds, 9 local rounds" in found._repr_html_()
    for _ in range(2):  # a new run and a resumed one
        same(run(model, clients, rounds=0, checkpoint=file), found)
    same(run(model, clients, rounds=0, workers=2), found)


def test_frozen_backbone_becomes_a_whole_federation(model, clients, tmp_path):
    regime, file = Regime(heads_rounds=2, average=0.8), tmp_path / "run.safetensors"
    run(model, clients, rounds=0, regime=regime, checkpoint=file)
    same(run(model, clients, regime=regime, checkpoint=file), run(model, clients, regime=regime))


def test_no_rounds_without_heads_are_refused(model, clients):
    for regime in (None, Regime(average=0.9)):
        with pytest.raises(FedexitError, match="rounds must be >= 1, not 0"):
            run(model, clients, rounds=0, regime=regime)
    with pytest.raises(FedexitError, match="rounds must be >= 0, not -1"):
        run(model, clients, rounds=-1)


def test_a_cell_may_train_heads_alone():
    def setting(rounds, regime):
        federation = FederationPart(rounds, "group", 1.0, regime=regime)
        return Setting(DataPart("no-such-corpus", 1.0), federation, ModelPart("nano", (3, 6)))

    cell = Cell("keyword", "layerwise", 0)
    with pytest.raises(FedexitError, match="rounds must be >= 1 and evaluations >= 1, not 0 and 6"):
        check_cell(cell, setting(0, Regime()))
    with pytest.raises(FedexitError, match="corpus 'no-such-corpus' is not there"):  # the last check of a cell
        check_cell(cell, setting(0, FULL))


def test_a_round_of_heads_by_hand(model, clients):
    """One step of SGD on each client, then Eq. (1): client i holds all heads up to L_i."""
    training = LocalTraining(optimiser="sgd", batch_size=100, head_learning_rate=0.5, clip_norm=float("inf"))
    trained = copy.deepcopy(model)
    regimes.train_heads(trained, Regime(heads_rounds=1), lambda number: clients, training, seed=0)
    sums, totals = {}, {}
    for client in clients:
        own = copy.deepcopy(model).eval()
        waves, lengths, targets = collate(client.data)
        exits = [exit for exit in model.exits if exit <= client.depth]
        losses = [torch.nn.functional.cross_entropy(own(waves, lengths, [e])[e], targets) for e in exits]
        torch.stack(losses).mean().backward()
        for name, parameter in own.named_parameters():
            if name.startswith("heads.") and int(name.split(".")[1]) <= client.depth:
                weight = len(client.data) * client.depth
                moved = parameter.detach() - 0.5 * parameter.grad
                sums[name] = sums.get(name, 0) + weight * moved
                totals[name] = totals.get(name, 0) + weight
    assert len(sums) == 6
    for name, tensor in sums.items():
        torch.testing.assert_close(trained.get_parameter(name).detach(), tensor / totals[name], atol=1e-5, rtol=1e-4)


def test_dropout_does_not_touch_the_statistics(clients):
    """A model with dropout that was left in training mode gives the same heads twice."""
    backbone = load_backbone("nano").truncated(2)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    made = MultiExitModel(backbone, ["low", "high"], exits=[2]).train()
    found = []
    for _ in range(2):
        own = copy.deepcopy(made)
        regimes.train_heads(own, Regime(heads_rounds=1), lambda number: clients[:1], TRAINING, seed=0)
        found.append(own.checksum())
    assert found[0] == found[1]


def test_statistics_are_in_the_order_of_the_clips(model, clients):
    model.eval()
    read = pooled_statistics(model, clients[1], TRAINING)
    assert list(read.by_exit) == [2, 4, 6] and not read.cached and read.lengths[:3] == [3200, 3360, 3520]
    for index, (clip, _) in enumerate(clients[1].data):
        expected = model.embeddings(clip[None])
        for exit in (2, 4, 6):
            torch.testing.assert_close(read.by_exit[exit][index], expected[exit][0], atol=2e-3, rtol=0)


def test_the_ledger_has_the_bytes_and_the_work_of_heads(model, clients):
    ledger = run(model, clients, rounds=1).clients
    ann = ledger[ledger["client"] == "ann"].set_index("round")
    head = 2 * model.backbone.width * 2 + 2
    assert list(ann.loc[[-2, -1, 0], "parameters"]) == [head] * 3 and (ann.loc[-2:0, "bytes"] == 4 * head).all()
    assert ledger.query("client == 'ben' and round == 0")["parameters"].item() == 3 * head
    assert ann.loc[-2, "macs_forward"] > 1000 * ann.loc[-1, "macs_forward"] == 1000 * 8 * (head - 2)
    assert ann.loc[1, "macs_forward"] == ann.loc[-2, "macs_forward"]
    assert ann.loc[1, "memory_training"] > ann.loc[0, "memory_training"]


@pytest.mark.parametrize("method", ["layerwise", "stale", "layerwise-shared", "fedra"])
def test_resumed_runs_and_workers_give_identical_results(model, clients, tmp_path, monkeypatch, method):
    from fedexit.federated.methods import METHODS

    if METHODS[method].shared_head:
        model = MultiExitModel(load_backbone("nano").truncated(6), ["low", "high"], [2, 4, 6], shared_head=True)
    whole = run(model, clients, method=method)
    file = tmp_path / "run.safetensors"
    real, done = regimes.update_average, []

    def stopping(*arguments):
        real(*arguments)
        done.append(1)
        if len(done) in (2, 4):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedexit.federated.rounds.update_average", stopping)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(model, clients, method=method, checkpoint=file)
    same(run(model, clients, method=method, checkpoint=file), whole)
    same(run(model, clients, method=method, checkpoint=file), whole)  # a finished run
    if method == "layerwise":
        same(run(model, clients, method=method, workers=2), whole)


def test_another_regime_does_not_resume(model, clients, tmp_path):
    file = tmp_path / "run.safetensors"
    run(model, clients, checkpoint=file)
    for changed in ({"regime": replace(FULL, average=0.5)}, {"rounds": 4}, {"regime": None}):
        with pytest.raises(FedexitError, match="belongs to another run"):
            run(model, clients, checkpoint=file, **changed)
    constant = replace(FULL, falling_rates=False)
    run(model, clients, checkpoint=tmp_path / "other", regime=constant)
    same(
        run(model, clients, rounds=4, checkpoint=tmp_path / "other", regime=constant),
        run(model, clients, rounds=4, regime=constant),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads_rounds": -1}, "setting heads_rounds=-1"),
        ({"heads_rounds": 1.5}, "setting heads_rounds=1.5"),
        ({"average": 1.0}, "setting average=1.0"),
        ({"average": float("nan")}, "setting average=nan"),
        ({"falling_rates": 1}, "setting falling_rates=1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(FedexitError, match=message):
        Regime(**options)


def test_a_foreign_regime_and_heads_first_for_texts_are_refused(model, clients):
    with pytest.raises(FedexitError, match="regime must be a Regime, not a dict"):
        run(model, clients, regime={"average": 0.9})
    spelling = MultiExitModel(load_backbone("nano").truncated(2), list("ab"), exits=[2], head="ctc")
    texts = [Client("ann", [(torch.randn(3200), [1, 2])], 2)]
    with pytest.raises(FedexitError, match="heads_rounds=3 needs heads on pooled statistics, not ctc"):
        federate(spelling, texts, rounds=1, regime=FULL)


def test_heads_costs_are_ready_for_json(model, clients):
    read = pooled_statistics(model, clients[0], TRAINING)
    report = regimes.RoundReport(0.5, 0.0, read.lengths, read.cached)
    json.dumps(heads_costs(model, 2, report, TRAINING, True))


# ---- after every round -------------------------------------------------------------------------------------------


def test_a_function_is_called_after_every_round_and_can_stop_the_run(model, clients, tmp_path):
    seen = []

    def stop_early(number, own, table):
        seen.append((number, own.checksum(), table["round"].max()))
        return number == 2

    stopped = run(model, clients, rounds=5, on_round=stop_early, checkpoint=tmp_path / "run")
    assert [(number, latest) for number, _, latest in seen] == [(1, 1), (2, 2)]
    assert stopped.clients["round"].max() == 2 and stopped.table["round"].max() == 2
    whole = run(model, clients, rounds=5)
    assert seen[1][1] != whole.model.checksum()
    same(run(model, clients, rounds=5, checkpoint=tmp_path / "run"), whole)  # it resumes where it stopped


def test_a_round_that_was_not_stored_is_reported_again(model, clients, tmp_path):
    seen = []

    def failing(number, own, table):
        seen.append((number, own.checksum()))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, clients, on_round=failing, checkpoint=tmp_path / "run")
    run(model, clients, on_round=failing, checkpoint=tmp_path / "run")
    assert [number for number, _ in seen] == [1, 2, 2, 3] and seen[1] == seen[2]
