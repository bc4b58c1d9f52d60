"""Test FedAdam at the server and FedProx at the client against plain implementations."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_federation import SGD, assert_same, make_clients, make_model, run

from fedexit import FedexitError, federate, layer_of, local_round
from fedexit.data.batches import batches
from fedexit.federated.clients import make_optimiser
from fedexit.federated.ledger import client_costs
from fedexit.federated.objectives import Objective
from fedexit.federated.server import FedAdam
from fedexit.support.streams import numpy_stream


def test_fedadam_follows_the_published_algorithm_and_keeps_unused_moments():
    adam, rng = FedAdam(learning_rate=0.1, beta1=0.8, beta2=0.95, tau=0.01), np.random.default_rng(0)
    weights = {"a": torch.randn(3, dtype=torch.float64), "b": torch.randn(2, dtype=torch.float64)}
    expected = {name: tensor.numpy().copy() for name, tensor in weights.items()}
    m, v, moments = {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, {}
    for trained in ("ab", "a", "b", "ab"):
        averages = dict(weights)
        for name in trained:
            step = rng.normal(size=len(weights[name])) / 10
            averages[name] = weights[name] + torch.tensor(step)
            m[name] = 0.8 * m[name] + 0.2 * step
            v[name] = 0.95 * v[name] + 0.05 * step**2
            expected[name] = expected[name] + 0.1 * m[name] / (np.sqrt(v[name]) + 0.01)
        before, kept = weights, dict(moments)
        weights = adam.step(weights, averages, moments)
        for name in {"a", "b"} - set(trained):
            assert weights[name] is before[name]
            assert moments[f"first:{name}"] is kept[f"first:{name}"]
            assert moments[f"second:{name}"] is kept[f"second:{name}"]
    for name in weights:
        np.testing.assert_allclose(weights[name].numpy(), expected[name], rtol=1e-12)


def test_fedadam_is_bit_identical_after_resuming_and_with_two_workers(tmp_path):
    whole = run(rounds=4, method="fedadam")
    run(tmp_path / "state", rounds=2, method="fedadam")
    assert_same(whole, run(tmp_path / "state", rounds=4, method="fedadam"))
    assert_same(whole, run(rounds=4, method="fedadam", workers=2))
    assert not whole.table.equals(run(rounds=4, method="masked").table)


def test_fedadam_leaves_layers_that_nobody_trained():
    model = make_model()
    start = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    model = federate(model, make_clients()[:2], "fedadam", rounds=2, training=SGD).model
    moved = {name for name, tensor in model.trainable_weights().items() if not torch.equal(tensor, start[name])}
    assert {layer_of(name) for name in moved} == {None, 1, 2, 3, 4, 5, 6}
    assert {name[:8] for name in moved if name.startswith("heads.")} == {"heads.3.", "heads.6."}


def proximal_by_autograd(model, client, training, proximal):
    """Train with the objective of the FedProx paper as the loss."""
    start, local = copy.deepcopy(model), copy.deepcopy(model)
    optimiser = make_optimiser(local, training)
    for epoch in range(training.epochs):
        rng = numpy_stream(0, "batches", epoch)
        for waveforms, lengths, labels in batches(client.data, training.batch_size, rng):
            loss = torch.nn.functional.cross_entropy(local(waveforms, lengths)[client.depth], labels)
            for parameter, old in zip(local.parameters(), start.parameters(), strict=True):
                loss = loss + proximal / 2 * (parameter - old.detach()).square().sum()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(local.parameters(), training.clip_norm)
            optimiser.step()
    return local.trainable_weights()


def trained(proximal, client, epochs=3, **changes):
    model, training = make_model().client_model(client.depth), replace(SGD, epochs=epochs, **changes)
    start = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    update, _ = local_round(model, start, client, training, (0,), Objective(proximal=proximal))
    distance = sum((update.weights[name] - start[name]).square().sum() for name in start).sqrt().item()
    return update.weights, distance, training


def test_fedprox_adds_its_published_term_and_a_large_one_keeps_weights_near():
    client = make_clients()[1]
    for proximal in (0.0, 2.0):
        weights, _, training = trained(proximal, client)
        expected = proximal_by_autograd(make_model().client_model(6), client, training, proximal)
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)
    longer = dict(epochs=10, head_learning_rate=0.1, clip_norm=float("inf"))
    far, near = (trained(proximal, client, **longer)[1] for proximal in (0.0, 9.0))
    assert near < 0.3 * far


def test_fedprox_adds_a_copy_of_the_weights_to_the_memory():
    model = make_model()
    plain, pulled = (client_costs(model, 3, [3200], SGD, objective=Objective(proximal=mu)) for mu in (0.0, 0.1))
    assert pulled["memory_training"] - plain["memory_training"] == plain["bytes"]
    assert {**pulled, "memory_training": 0} == {**plain, "memory_training": 0}
    with pytest.raises(FedexitError, match="proximal"):
        Objective(proximal=-1.0)


def test_fedprox_is_bit_identical_for_any_number_of_workers():
    one, two = (
        federate(make_model(), make_clients(), "fedprox", rounds=2, training=SGD, workers=workers) for workers in (1, 2)
    )
    assert_same(one, two)
