"""Draw random inputs for the exercises. Each draw contains the special cases that separate known wrong answers."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator


def _pooling(rng: Generator) -> list:
    frames = np.append(rng.integers(2, 6, 2), [1, 6])
    return [rng.normal(size=(4, 6, 3)).round(3), frames]


def _head(rng: Generator) -> list:
    sizes: list[tuple[int, ...]] = [(3, 4), (4,), (4,), (2, 4), (2,)]
    pooled, centre, scale, weight, bias = (rng.normal(size=size).round(3) for size in sizes)
    return [pooled, centre, np.abs(scale) + 0.5, weight, bias]


def _early_exit(rng: Generator) -> list:
    confidence = rng.uniform(size=(12, 4)).round(3)
    confidence[0] = (confidence[0] / 2).round(3)  # never confident
    return [confidence, [3, 6, 9, 12], 0.601]


def _eq1(rng: Generator) -> list:
    def weights(layers: int) -> dict[str, np.ndarray]:
        names = [f"layers.{layer}.{kind}" for layer in range(1, layers + 1) for kind in ("weight", "bias")]
        return {name: rng.normal(size=2).round(3) for name in [*names, "heads.2.weight"]}

    updates = [(weights(depth), int(rng.integers(5, 50)), depth) for depth in (2, 3, 2, 1)]
    del updates[3][0]["heads.2.weight"]  # this client is shallower than the exit
    return [weights(4), list(map(list, updates)), float(rng.choice([0.5, 2.0]))]


def _layers(rng: Generator) -> list:
    return [rng.permutation([0, 3, *rng.integers(1, 4, 5)]).tolist(), 5]


def _effective(rng: Generator) -> list:
    return [rng.integers(5, 90, 6).tolist(), rng.permutation([1, 2, 2, 3, 4, 4]).tolist(), 5]


def _depth(rng: Generator) -> list:
    exits = rng.permutation([3, 6, 9, 12])
    needs = [[int(depth), round(float(depth * 100 + rng.uniform(0, 50)), 1)] for depth in exits]
    return [needs, rng.uniform(100, 2200, 12).round(1).tolist(), 0.25]


def _partition(rng: Generator) -> list:
    while True:
        shares = rng.dirichlet([0.8] * 3, 3).round(3)
        shares[:, -1] = (1 - shares[:, :-1].sum(1)).round(3)
        labels = rng.permutation(np.repeat([0, 1, 2], rng.integers(6, 12, 3)))
        middles = [(np.arange(n) + 0.5) / n for n in np.bincount(labels)]
        ends = shares.cumsum(1)[:, :-1]
        near = min(np.abs(own[:, None] - middle).min() for own, middle in zip(ends, middles, strict=True))
        if (shares >= 0).all() and near > 1e-6:  # rounding must not decide who gets a clip
            return [labels, shares]


def _wer(rng: Generator) -> list:
    counts = np.column_stack([rng.integers(0, 5, (8, 3)), rng.integers(1, 25, 8)])
    return [np.vstack([counts, [[0, 0, 2, 0]]])]


def _interval(rng: Generator) -> list:
    centres = np.concatenate([[0.0, 0.0, -0.5, 0.5, 3.0, -3.0], rng.uniform(-2, 2, 8)])
    halves = np.concatenate([[0.5, 3.0, 0.2, 0.2, 1.0, 1.0], rng.uniform(0.1, 2, 8)])
    few = np.where(np.arange(14) < 6, 8, rng.choice([3, 4, 5, 24], 14))
    ends = [(centres + side * halves).round(2) + 0.003 for side in (-1, 1)]  # never exactly -1, 0 or 1
    return [[list(row) for row in zip(*map(np.ndarray.tolist, (*ends, few)), strict=True)]]


def _row(rng: Generator) -> list:
    rows = [
        (seed, rng.integers(0, 4), rng.integers(4, 20)) for seed in range(4) for _ in range(int(rng.integers(3, 7)))
    ]
    return [np.array(rows)]


DRAWS: dict[str, Callable[[Generator], list]] = {
    "pooling": _pooling,
    "head": _head,
    "early_exit": _early_exit,
    "eq1": _eq1,
    "layers": _layers,
    "effective": _effective,
    "depth": _depth,
    "partition": _partition,
    "wer": _wer,
    "interval": _interval,
    "row": _row,
}
