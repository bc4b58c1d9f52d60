"""Test that bad clients are refused and named, that robust rules outvote them by layer, and that ranks name them."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_federation import TRAINING, make_clients, make_model, tones
from test_fuzz import fuzzed, refused_or_read

from fedexit import Client, FedexitError, LocalTraining, Update, aggregate, federate
from fedexit.federated.clients import RoundReport, local_round
from fedexit.federated.methods import Method
from fedexit.federated.regime import Statistics, round_of_heads
from fedexit.federated.workers import local_rounds
from fedexit.robust.faults import FAULTS, Faulty
from fedexit.robust.guard import federate_guarded
from fedexit.robust.inspection import Inspector
from fedexit.robust.rules import ROBUST, Capped, Clipped, Krum, Median, Outliers, Trimmed, capped
from fedexit.robust.scores import culprits, found_at_the_top, norms_and_cosines
from fedexit.robust.trial import fleet_of, stepped, tried, with_one

NAMES = {"encoder.layers.0.w": 1, "encoder.layers.1.w": 2, "heads.1.linear.weight": 1, "heads.2.linear.weight": 2}
OLD = {name: torch.zeros(3) for name in NAMES}


def update(value, depth, examples=10):
    """Return an update of a client that moves all weights up to its depth by `value`."""
    moved = torch.as_tensor(value, dtype=torch.float32).expand(3)
    names = [name for name, layer in NAMES.items() if layer <= depth]
    return Update({name: OLD[name] + moved for name in names}, examples, depth)


def quiet(row):
    """Take a note and do nothing."""


@pytest.mark.parametrize("name", ROBUST)
def test_a_rule_outvotes_one_hostile_of_five_in_each_layer_and_keeps_layers_that_nobody_holds(name):
    rule = ROBUST[name].rule
    honest = [update(1 + place / 100, 2) for place in range(4)]
    found = aggregate(OLD, [*honest, update(-10, 2)], rule)
    expected = -1.2 if name == "capped" else 0.6 if name == "clipped" else 1.0
    for tensor in found.values():
        torch.testing.assert_close(tensor, torch.full((3,), expected), atol=0.05, rtol=0)
    shallow = rule(OLD, [update(1, 1), update(1, 1), update(1, 1)])
    assert shallow["encoder.layers.1.w"] is OLD["encoder.layers.1.w"] and shallow["heads.1.linear.weight"].eq(1).all()


def test_the_share_of_bad_clients_counts_in_the_layer_not_in_the_federation():
    honest, hostile = [update(1, 1)] * 6 + [update(1, 2)], [update(-10, 2)] * 2
    found = aggregate(OLD, honest + hostile, Median())
    assert found["encoder.layers.0.w"].eq(1).all() and found["encoder.layers.1.w"].eq(-10).all()


@pytest.mark.parametrize("name", ROBUST)
def test_one_holder_gets_its_change_and_two_cannot_outvote_each_other(name):
    rule = ROBUST[name].rule
    torch.testing.assert_close(rule(OLD, [update(2, 2)])["encoder.layers.1.w"], torch.full((3,), 2.0))
    both = rule(OLD, [update(2, 2), update(-10, 2)])["encoder.layers.1.w"]
    torch.testing.assert_close(both, torch.full((3,), 0.0 if name == "clipped" else -4.0), atol=1e-6, rtol=0)
    wary = replace(rule, least=3)
    assert wary(OLD, [update(2, 2), update(-10, 2)])["encoder.layers.1.w"] is OLD["encoder.layers.1.w"]


def test_rules_without_bad_clients_are_what_their_papers_say():
    values = torch.tensor([[1.0, 9.0], [2.0, 7.0], [4.0, 8.0], [50.0, 1.0], [3.0, 3.0]])
    shares = torch.ones(5)
    assert Median().combined(values, shares).tolist() == [3, 7]
    assert Median().combined(values[:4], shares[:4]).tolist() == [3, 7.5]
    assert Trimmed(share=0.2).combined(values, shares).tolist() == [3, 6]
    points = torch.tensor([[0.0], [1.0], [1.2], [1.5], [9.0]])
    torch.testing.assert_close(Krum(share=0.2).combined(points, shares), torch.tensor([1.2]))  # 0.04 + 0.09 is least
    torch.testing.assert_close(Krum(share=0.2, best=0.4).combined(points, shares), torch.tensor([1.1]))


def test_capped_without_a_cap_is_eq_1_and_a_cap_limits_claimed_clips():
    updates = [update(1, 1, 5), update(2, 2, 7), update(-3, 2, 9)]
    plain = aggregate(OLD, updates)
    for name, tensor in aggregate(OLD, updates, Capped(cap=0.0)).items():
        torch.testing.assert_close(tensor, plain[name])
    claims = [update(0, 2), update(0, 2), update(1, 2, 10_000)]
    assert capped(claims, 2.0) == [20, 20, 40] and capped(claims, 0.0)[2] == 20_000
    torch.testing.assert_close(aggregate(OLD, claims, Capped(cap=2.0))["encoder.layers.0.w"], torch.full((3,), 0.5))
    with pytest.raises(FedexitError, match=r"setting share=0\.5"):
        Trimmed(share=0.5)


def guarded(faults, rounds=2, method="layerwise", **options):
    clients = [replace(client, name=f"{client.name}{take}") for take in "ab" for client in make_clients()]
    settings = dict(rounds=rounds, training=TRAINING, note=quiet, transport=Faulty(local_rounds, faults)) | options
    return federate_guarded(make_model(), clients, method, **settings)


def test_without_bad_clients_the_weights_are_those_of_federate_also_with_workers():
    settings = dict(rounds=2, training=TRAINING, dev=tones(9, 4))
    plain = federate(make_model(), make_clients(), **settings)
    for workers in (1, 2):
        found = federate_guarded(make_model(), make_clients(), scores=workers == 1, workers=workers, **settings)
        assert found.model.checksum() == plain.model.checksum() and found.table.equals(plain.table)
        same = found.clients[plain.clients.columns].drop(columns="seconds")
        assert same.equals(plain.clients.drop(columns="seconds")) and set(found.clients["refused"]) == {""}


def test_a_bad_client_is_skipped_noted_and_named_and_the_others_are_averaged_as_without_it():
    notes = []
    found = guarded({"c1a": "nan"}, note=notes.append)
    bad = found.clients[found.clients["refused"] != ""]
    assert (
        [*bad["client"]] == ["c1a", "c1a"] and [*bad["round"]] == [1, 2] and bad["refused"].str.contains("finite").all()
    )
    assert [(row["round"], row["client"], row["event"]) for row in notes] == [
        (1, "c1a", "refused"),
        (2, "c1a", "refused"),
    ]
    assert len(found.clients) == 16 and bad["depth"].eq(6).all()
    without = guarded({}, depths=lambda number: {"c1a": None})
    assert found.model.checksum() == without.model.checksum()


def test_too_many_bad_clients_end_the_run_with_one_line():
    bad = dict.fromkeys(["c0a", "c1a", "c2a"], "nan")
    with pytest.raises(
        FedexitError, match=r"round 1: 3 of 8 clients were refused \(c0a, c1a, c2a\), limit=0.3 allows 2"
    ):
        guarded(bad)
    assert len(guarded(bad, rounds=1, limit=0.4).clients) == 8
    with pytest.raises(FedexitError, match="limit is the share"):
        guarded({}, limit=2)


def fails_for_c1(model, weights, client, *rest):
    """Run a local round that fails for one client, and sends a wrong shape for another."""
    if client.name == "c1":
        raise FedexitError("client c1's loss is not finite")
    found, report = local_round(model, weights, client, *rest)
    if client.name == "c2":
        found = replace(found, weights={name: tensor[:0] for name, tensor in found.weights.items()})
    return found, report


@pytest.mark.parametrize("workers", [1, 2])
def test_a_local_round_that_fails_costs_its_client_only(workers):
    way = Method("fails", local_round=fails_for_c1)
    found = federate_guarded(
        make_model(), make_clients(), way, limit=0.5, note=quiet, rounds=1, training=TRAINING, workers=workers
    )
    refused = found.clients.set_index("client")["refused"]
    assert refused["c1"] == "client c1's loss is not finite" and "has shape (0" in refused["c2"]
    assert refused["c0"] == refused["c3"] == ""


def test_a_guarded_run_resumes_bit_identically_with_its_ledger(tmp_path):
    options = dict(method=ROBUST["outliers"], scores=True)
    faults = {"c1a": "nan", "c2b": "reversed"}
    whole = guarded(faults, rounds=3, **options)
    guarded(faults, rounds=2, checkpoint=tmp_path / "c", **options)
    again = guarded(faults, rounds=3, checkpoint=tmp_path / "c", **options)
    assert again.model.checksum() == whole.model.checksum()
    assert again.clients.drop(columns="seconds").equals(whole.clients.drop(columns="seconds"))
    (tmp_path / "c.guard").unlink()
    with pytest.raises(FedexitError, match="lacks rounds before 4; delete the checkpoint"):
        guarded(faults, rounds=4, checkpoint=tmp_path / "c", **options)


def test_the_ledger_ranks_a_hostile_and_a_refused_client_first():
    clients = [Client(f"c{place}", tones(place, 6), 3 if place % 2 else 12) for place in range(8)]
    place = Faulty(local_rounds, {"c3": "reversed", "c4": "nan"})
    settings = dict(rounds=1, training=TRAINING, note=quiet, transport=place)
    found = federate_guarded(make_model(), clients, scores=True, **settings)
    table = culprits(found.clients)
    assert found_at_the_top(table, ["c3", "c4"]) == 1 and [*table["rank"]] == [*range(1, 9)]
    row = table.set_index("client").loc["c3"]
    assert row["norm"] > 5 and row["cosine"] < 0 and table.set_index("client")["refused"].to_dict()["c4"] == 1
    with pytest.raises(FedexitError, match="has no scores"):
        culprits(federate_guarded(make_model(), clients, **settings).clients)


def test_the_cosine_is_to_the_directions_of_the_others():
    norms, cosines = norms_and_cosines(torch.tensor([[3.0, 0.0], [1.0, 0.0], [-50.0, 0.0], [0.0, 0.0]]))
    assert norms == [3, 1, 50, 0] and cosines[2] == pytest.approx(-1)
    assert pd.isna(cosines[0]) and pd.isna(cosines[3])  # the others cancel; no direction of its own
    assert pd.isna(norms_and_cosines(torch.ones(1, 2))[1][0])


def test_outliers_keeps_everyone_when_clients_agree_and_drops_length_and_direction():
    torch.manual_seed(0)
    honest = torch.tensor([1.0, 2.0, 3.0]) + 0.1 * torch.randn(12, 3)
    shares = torch.ones(15)
    bad = torch.tensor([[10.0, 20.0, 30.0], [-1.0, -2.0, -3.0], [0.01, 0.02, 0.03]])
    found = Outliers().combined(torch.cat([honest, bad]), shares)
    torch.testing.assert_close(found, honest.mean(dim=0), atol=0.1, rtol=0)
    same = torch.ones(5, 3)
    assert torch.equal(Outliers().combined(same, shares[:5]), Capped().combined(same, shares[:5]))
    torch.testing.assert_close(Clipped().combined(same, shares[:5]), same[0])


def statistics(seed, depth=6, clips=6):
    generator = torch.Generator().manual_seed(seed)
    by_exit = {exit: torch.randn(clips, 64, generator=generator) for exit in (3, 6, 9, 12) if exit <= depth}
    return Statistics(by_exit, torch.arange(clips) % 2, [3200] * clips, True)


def test_a_trial_takes_the_step_of_a_round_of_heads():
    model, read = make_model(), statistics(1, depth=3)
    client, plain = Client("a", tones(0, 6), 3), LocalTraining(6, 1)
    training = replace(plain, epochs=1, batch_size=6, optimiser="sgd", clip_norm=float("inf"), head_learning_rate=0.3)
    sent, _ = round_of_heads(model, client, 1, training, training, 0, {"a": read}, {("a", False): {}})
    linear = model.head_at(3).linear
    old = torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach()
    own = stepped(old, with_one(read.by_exit[3])[None], read.targets[None], 0.3)[0]
    torch.testing.assert_close(own[:, :-1], sent.weights["heads.3.linear.weight"])
    torch.testing.assert_close(own[:, -1], sent.weights["heads.3.linear.bias"])


def test_a_trial_is_repeatable_refuses_nan_and_names_each_fault():
    depths = {f"c{place}": (3, 12)[place % 2] for place in range(12)}
    fleet = fleet_of({name: statistics(int(name[1:]), depth) for name, depth in depths.items()}, depths, 2)
    for fault in FAULTS:
        heads, ledger = tried(fleet, Median(), {"c1": fault}, 2, 0.3)
        again, _ = tried(fleet, Median(), {"c1": fault}, 2, 0.3)
        assert all(torch.equal(heads[exit], again[exit]) and heads[exit].isfinite().all() for exit in heads)
        assert {*ledger.loc[ledger["refused"] != "", "client"]} == ({"c1"} if fault == "nan" else set())
    with pytest.raises(FedexitError, match="unknown fault 'x'; known: nan"):
        tried(fleet, Median(), {"c1": "x"}, 1, 0.3)
    with pytest.raises(FedexitError, match="equal numbers of clips"):
        fleet_of({"a": statistics(1, 3, 4), "b": statistics(2, 3, 6)}, {"a": 3, "b": 3}, 2)


CLIENTS = [Client("ann", [None] * 10, 1), Client("ben", [None] * 10, 2)]


def inspector():
    return Inspector(3, CLIENTS, OLD, 2, lambda depth: {name for name, layer in NAMES.items() if layer <= depth})


GOOD = RoundReport(0.5, 1.0, [100] * 10)


@pytest.mark.parametrize(
    ("client", "changes", "number", "report", "why"),
    [
        ("ann", {}, 2, GOOD, "is for round 2, not 3"),
        ("eve", {}, 3, GOOD, "'eve' was not sampled in round 3"),
        ("ann", {"examples": 11}, 3, GOOD, "n_i of an update is 11; its client has 10"),
        ("ann", {"examples": 10.0}, 3, GOOD, "must be a whole number"),
        ("ann", {"depth": 3}, 3, GOOD, "the model has 2 layers"),
        ("ann", {"depth": 2}, 3, GOOD, "the server gave its client 1"),
        ("ann", {"weights": {}}, 3, GOOD, "holds no weights"),
        ("ann", {"weights": update(1, 2).weights}, 3, GOOD, "2 unexpected: encoder.layers.1.w"),
        ("ben", {"depth": 2}, 3, GOOD, "2 missing: encoder.layers.1.w"),
        ("ann", {"weights": {"heads.1.linear.weight": torch.zeros(3).half()}}, 3, GOOD, "is of type torch.float16"),
        ("ann", {"weights": {"heads.1.linear.weight": torch.zeros(3).to_sparse()}}, 3, GOOD, "sparse or empty"),
        ("ann", {"weights": {"heads.1.linear.weight": torch.zeros(3, device="meta")}}, 3, GOOD, "sparse or empty"),
        ("ann", {}, 3, replace(GOOD, loss=float("nan")), "the loss in a report is nan"),
        ("ann", {}, 3, replace(GOOD, lengths=[1]), "a report has 1 lengths; its client has 10"),
    ],
)
def test_the_inspector_says_what_is_wrong(client, changes, number, report, why):
    with pytest.raises(FedexitError, match=why):
        inspector().check(client, replace(update(1, 1), **changes), number, report)


def test_the_inspector_accepts_each_client_once():
    checking = inspector()
    checking.check("ann", update(1, 1), 3, GOOD)
    checking.check("ben", update(1, 2))
    with pytest.raises(FedexitError, match="client ann has sent its update of round 3 already"):
        checking.check("ann", update(1, 1), 3, GOOD)


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4)
ODD_TENSORS = st.builds(
    lambda shape, kind, value: torch.full(shape, value).to(kind),
    st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]),
    st.floats(width=32),
)  # fmt: skip
WEIGHTS = st.dictionaries(
    st.sampled_from([*NAMES, "other\n"]) | ODD, ODD_TENSORS | st.just(torch.ones(3)) | ODD, max_size=4
)
UPDATES = st.builds(Update, WEIGHTS | ODD | st.just(update(1, 1).weights), ODD | st.just(10), ODD | st.integers(0, 3))
REPORTS = st.builds(RoundReport, ODD, ODD, ODD | st.lists(ODD, min_size=10, max_size=10))


@fuzzed
@given(st.sampled_from(["ann", "ben"]) | ODD, UPDATES | ODD, st.just(3) | ODD, REPORTS | ODD)
def test_only_fedexit_errors_come_out_of_the_inspector(client, sent, number, report):
    checking = inspector()
    refused_or_read(checking.check, client, sent, number, report)
    for name in checking.accepted:  # what it accepts can be averaged
        assert all(tensor.isfinite().all() for tensor in aggregate(OLD, [sent]).values()), name
