"""Test heads that stay with their clients: the start of a client, the kept heads, and the heads that predict."""

import numpy as np
import pandas as pd
import torch
from small_corpus import write_small_corpus
from test_federation import TRAINING, assert_same, make_clients, make_model, run, tones
from test_grid import setting

from fedexit import federate, open_corpus
from fedexit.data.tasks import make_task
from fedexit.federated.clients import local_round
from fedexit.federated.local_heads import packed, unpacked
from fedexit.federated.partition import device_of
from fedexit.lab import cells
from fedexit.lab.cells import run_cell
from fedexit.lab.material import groups_tested
from fedexit.lab.own_heads import with_own_heads
from fedexit.lab.setting import Cell
from fedexit.model.metrics import predict

LOCAL = dict(method="layerwise-local", fraction=1.0)


def equal(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def same_run(one, two):
    assert_same(one, two)
    equal(packed(one.heads), packed(two.heads))


def test_a_client_continues_with_its_own_head_and_the_newest_layers():
    """Compute the second round by hand."""
    first, second = run(rounds=1, **LOCAL), run(rounds=2, **LOCAL)
    client = make_clients()[1]
    weights = first.model.trainable_weights()
    assert not torch.equal(weights["heads.6.linear.weight"], make_model().trainable_weights()["heads.6.linear.weight"])
    start = {**weights, **first.heads["c1"]}
    update, _ = local_round(first.model.client_model(6), start, client, TRAINING, (0, "round", 2, "client", "c1"))
    equal(second.heads["c1"], {name: update.weights[name] for name in ("heads.6.linear.weight", "heads.6.linear.bias")})


def test_two_heads_at_one_exit_differ_and_the_server_has_their_average():
    clients = [type(c)(c.name, c.data, 3, "tier") for c in make_clients()[:2]]
    result = federate(make_model(), clients, "layerwise-local", rounds=2, training=TRAINING)
    name, sizes = "heads.3.linear.weight", [len(client.data) for client in clients]
    own = [result.heads[client.name][name] for client in clients]
    assert not torch.equal(*own)
    average = sum(size * head for size, head in zip(sizes, own, strict=True)) / sum(sizes)
    torch.testing.assert_close(result.model.trainable_weights()[name], average)


def test_only_sampled_clients_have_heads_of_their_own():
    result = run(rounds=1, method="layerwise-local", fraction=0.5)
    assert set(result.heads) == set(result.clients["client"]) and len(result.heads) == 2
    assert run(rounds=1).heads == {}


def test_results_are_bit_identical_with_workers_and_after_resuming(tmp_path):
    whole = run(rounds=4, method="layerwise-local")
    same_run(run(rounds=4, method="layerwise-local", workers=2), whole)
    run(tmp_path / "state", rounds=2, method="layerwise-local")
    same_run(run(tmp_path / "state", rounds=4, method="layerwise-local"), whole)


def test_heads_are_restored_from_a_checkpoint_for_any_client_name():
    heads = {"a:b": {"heads.3.linear.bias": torch.ones(2)}, "c": {"heads.6.linear.bias": torch.zeros(2)}}
    found = unpacked({"backbone.weight": torch.ones(1), "first:heads.3.linear.bias": torch.ones(2), **packed(heads)})
    assert found == heads and unpacked({}) == {}


def test_each_device_predicts_with_the_mean_of_its_heads_at_its_exit():
    model, data = make_model().eval(), tones(5, 6)
    bias, weight = "heads.3.linear.bias", "heads.3.linear.weight"

    def says(label, how_surely):
        sure = how_surely * torch.nn.functional.one_hot(torch.tensor(label), 2).float()
        return {bias: sure, weight: torch.zeros_like(model.trainable_weights()[weight])}

    heads = {"BOB1.DOG": says(0, 1.0), "BOB2.DOG": says(1, 3.0), "ANN1.DOG": says(0, 1.0), "EVE1.DOG": says(0, 1.0)}
    before = model.checksum()
    plain = predict(model, data)
    told = with_own_heads(model, plain, data, ["BOB", "ANN", "BOB", "new", "ANN", "new"], heads)
    at_exit = told[told["exit"] == 3].set_index("item")["predicted"]
    assert at_exit[[0, 2]].tolist() == [1, 1] and at_exit[[1, 4]].tolist() == [0, 0]
    untouched = (told["exit"] != 3) | told["item"].isin([3, 5])
    pd.testing.assert_frame_equal(told[untouched], plain[untouched.to_numpy()])
    assert model.checksum() == before and told.columns.equals(plain.columns) and len(told) == len(plain)


def test_a_cell_predicts_with_the_heads_of_the_speakers(tmp_path, monkeypatch):
    folder, asked = write_small_corpus(tmp_path / "small", clips=10), {}

    def recorded(model, predictions, data, devices, heads):
        asked[len(data)] = list(devices), set(heads)
        return with_own_heads(model, predictions, data, devices, heads)

    monkeypatch.setattr(cells, "with_own_heads", recorded)
    average, local = (
        run_cell(Cell("voice", method, 0), setting(folder, 3), tmp_path / "state")
        for method in ("layerwise", "layerwise-local")
    )
    task = make_task("voice", open_corpus(str(folder)))
    devices, clients = asked[len(groups_tested(task))]
    assert len(asked) == 1 and devices == [device_of(group) for group in groups_tested(task)]
    assert clients == set(local.ledger["client"]) and (local.ledger["bytes"] == average.ledger["bytes"]).all()
    test = local.errors.query("split == 'test'").assign(wrong=lambda rows: rows["value"] * rows["n"])
    wrong = test.groupby(["exit", test["tier"] == "all"])["wrong"].sum().unstack()
    np.testing.assert_allclose(wrong[True], wrong[False])
