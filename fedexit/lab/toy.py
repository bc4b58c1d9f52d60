"""Make toy federations of random weights, and compare sets of weights (notebook 02)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedexit.federated.aggregation import Update
from fedexit.model.exits import MultiExitModel
from fedexit.model.names import layer_of
from fedexit.support.streams import numpy_stream

Weights = Mapping[str, Tensor]


def toy_weights(random: np.random.Generator, depth: int = 12) -> dict[str, Tensor]:
    """Return a projection and `depth` layers of three random numbers each."""
    layers = {f"encoder.layers.{k}.weight": torch.from_numpy(random.normal(size=3)).float() for k in range(depth)}
    return {"projection.weight": torch.from_numpy(random.normal(size=3)).float(), **layers}


def toy_federation(seed: int, number: int, depths: Sequence[int]) -> tuple[dict[str, Tensor], list[Update]]:
    """Return global weights and one update per depth, with 1 to 500 examples each, drawn by `seed` and `number`."""
    random = numpy_stream(seed, "toy", number)
    start = toy_weights(random)
    return start, [Update(toy_weights(random, depth), int(random.integers(1, 500)), depth) for depth in depths]


def moved(model: MultiExitModel, depth: int, number: int) -> dict[str, Tensor]:
    """Return what a client of `depth` would send after a training that moved each weight at random, by `number`."""
    noise = torch.Generator().manual_seed(number)
    held = model.client_model(depth).trainable_weights()
    return {name: weight + 0.01 * torch.randn(weight.shape, generator=noise) for name, weight in held.items()}


def gap(one: Weights, other: Weights) -> float:
    """Return the largest difference between two sets of weights with equal names."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def differing(one: Weights, other: Weights) -> list[int]:
    """Return the layers (0: outside the layers) in which two sets of weights differ by more than float rounding."""
    return sorted({layer_of(n) or 0 for n in one if not torch.allclose(one[n], other[n], rtol=1e-5, atol=1e-6)})
