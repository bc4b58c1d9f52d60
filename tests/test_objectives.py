"""Test losses over exits against sums by hand, and the training of clients with several exits."""

import numpy as np
import pytest
import torch
from test_federation import TRAINING, assert_same, make_clients, make_model, tones

from fedexit import FedexitError, federate, local_round
from fedexit.federated.methods import Method
from fedexit.federated.objectives import Objective, divergence, objective_loss
from fedexit.model.ctc import CTCHead

SHALLOW, DEEP = np.array([[1.0, -0.5, 0.2], [0.3, 0.1, -2.0]]), np.array([[0.1, 0.9, 0.0], [-1.0, 2.0, 0.5]])
LABELS = np.array([2, 1])


def softmax(logits):
    exp = np.exp(logits)
    return exp / exp.sum(-1, keepdims=True)


def cross_entropy_gradient(logits):
    return (softmax(logits) - np.eye(3)[LABELS]) / 2  # of two clips


def teaching_gradient(teacher, student, temperature):
    """Return d/dz of T^2 KL(p || q) = T (q - p), where p and q are softmaxes of logits over T and p is constant."""
    return temperature * (softmax(student / temperature) - softmax(teacher / temperature)) / 2


def found(**changes):
    """Return the gradients at the shallow and the deep exit."""
    logits = {3: torch.tensor(SHALLOW, requires_grad=True), 6: torch.tensor(DEEP, requires_grad=True)}
    objective_loss(logits, torch.tensor(LABELS), Objective(**changes)).backward()
    return [tensor.grad.numpy() for tensor in logits.values()]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_mutual_teaching_has_the_gradients_computed_by_hand(temperature):
    shallow, deep = found(losses="all", distillation="mutual", strength=0.7, temperature=temperature)
    taught = 0.7 * teaching_gradient(DEEP, SHALLOW, temperature)
    np.testing.assert_allclose(shallow, (cross_entropy_gradient(SHALLOW) + taught) / 2, rtol=1e-9)
    taught = 0.7 * teaching_gradient(SHALLOW, DEEP, temperature)
    np.testing.assert_allclose(deep, (cross_entropy_gradient(DEEP) + taught) / 2, rtol=1e-9)


def test_the_deepest_exit_teaches_without_being_taught_and_weighs_twice():
    shallow, deep = found(losses="depth-weighted", distillation="deepest", strength=0.5, temperature=2.0)
    taught = 0.5 * teaching_gradient(DEEP, SHALLOW, 2.0)
    np.testing.assert_allclose(shallow, (cross_entropy_gradient(SHALLOW) + taught) / 3, rtol=1e-9)
    np.testing.assert_allclose(deep, cross_entropy_gradient(DEEP) * 2 / 3, rtol=1e-9)


def test_without_distillation_exits_do_not_affect_each_other():
    shallow, deep = found(losses="all")
    np.testing.assert_allclose(shallow, cross_entropy_gradient(SHALLOW) / 2, rtol=1e-9)
    np.testing.assert_allclose(deep, cross_entropy_gradient(DEEP) / 2, rtol=1e-9)


def test_an_exit_that_agrees_learns_nothing_from_its_teacher_and_padding_does_not_count():
    torch.manual_seed(0)
    head, other = CTCHead(4, 28), CTCHead(4, 28)
    states, frames = torch.randn(2, 9, 4), torch.tensor([9, 5])
    one, two = head(states, frames), other(states, frames)
    assert divergence(one, one).item() == pytest.approx(0, abs=1e-6)
    alone = [divergence(one[clip, :length], two[clip, :length]) for clip, length in enumerate(frames)]
    expected = (9 * alone[0] + 5 * alone[1]) / 14
    torch.testing.assert_close(divergence(one[:1, :9], two[:1, :9]), alone[0])
    torch.testing.assert_close(divergence(one, two), expected)


@pytest.mark.parametrize(
    "kind",
    [
        dict(losses="all"),
        dict(losses="all", distillation="mutual"),
        dict(losses="depth-weighted", distillation="deepest"),
    ],
)
def test_training_all_exits_is_bit_identical_for_any_number_of_workers(kind):
    method = Method("own", "here", "", objective=Objective(**kind))
    one, two = (
        federate(make_model(), make_clients(), method, rounds=2, training=TRAINING, dev=tones(99, 6), workers=workers)
        for workers in (1, 2)
    )
    assert_same(one, two)


def test_a_client_sends_and_trains_only_the_heads_in_its_loss():
    model, deep = make_model(), make_clients()[3]
    start = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    for objective, learned in ((Objective(), {"12"}), (Objective("all"), {"3", "6", "9", "12"})):
        scratch = model.client_model(12, objective.exits(12, model.exits))
        update, _ = local_round(scratch, start, deep, TRAINING, (0,), objective)
        heads = {name for name in update.weights if name.startswith("heads.")}
        assert {name.split(".")[1] for name in heads} == learned
        assert not any(torch.equal(update.weights[name], start[name]) for name in heads)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"losses": "first"}, "first.*last, all, depth-weighted"),
        ({"losses": "all", "distillation": "peer"}, "peer.*mutual, deepest"),
        ({"distillation": "mutual"}, "needs several exits"),
        ({"strength": -1.0}, "strength"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_impossible_objectives_are_refused(changes, says):
    with pytest.raises(FedexitError, match=says):
        Objective(**changes)
