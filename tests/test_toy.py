"""Test the toy federations of the notebook on Eq. (1)."""

import pytest
import torch

from fedexit import MultiExitModel, layer_of, load_backbone
from fedexit.lab.toy import differing, gap, moved, toy_federation


def test_a_toy_update_has_the_layers_of_its_depth():
    weights, updates = toy_federation(0, 5, [3, 12])
    assert len(weights) == 13 and [len(update.weights) for update in updates] == [4, 13]
    assert [update.depth for update in updates] == [3, 12] and all(1 <= update.examples < 500 for update in updates)
    again, _ = toy_federation(0, 5, [3, 12])
    other, _ = toy_federation(1, 5, [3, 12])
    assert gap(weights, again) == 0 and gap(weights, other) > 0


def test_gaps_and_differing_layers_by_hand():
    one = {name: torch.ones(2) for name in ("projection.weight", "layers.0.weight", "layers.4.weight")}
    other = one | {"layers.4.weight": torch.tensor([1.0, 1.5]), "projection.weight": torch.full((2,), 0.75)}
    assert gap(one, other) == 0.5 and differing(one, other) == [0, 5] and differing(one, one) == []
    with pytest.raises(AssertionError):
        gap(one, {"layers.0.weight": torch.ones(2)})


def test_every_weight_of_a_client_moves_and_no_other():
    model = MultiExitModel(load_backbone("nano"), ["a", "b"])
    start, found = model.trainable_weights(), moved(model, 6, number=2)
    assert max(layer_of(name) or 0 for name in found) == 6 and not any(name.startswith("heads.9") for name in found)
    assert all((found[name] != start[name]).any() for name in found)
    assert all(torch.equal(weight, moved(model, 6, number=2)[name]) for name, weight in found.items())
