import numpy as np


def right_loop(examples, depths, layers):
    found = []
    for layer in range(1, layers + 1):
        weights = [n * depth for n, depth in zip(examples, depths, strict=True) if depth >= layer]
        found.append(sum(weights) ** 2 / sum(w * w for w in weights) if weights else 0)
    return found


def right_matrix(examples, depths, layers):
    depths = np.array(depths)
    weights = (depths >= np.arange(1, layers + 1)[:, None]) * (depths * examples)
    squares = (weights**2).sum(1)
    return np.where(squares > 0, weights.sum(1) ** 2 / np.maximum(squares, 1), 0.0)


def wrong_counted(examples, depths, layers):
    return [sum(depth >= layer for depth in depths) for layer in range(1, layers + 1)]


def wrong_examples(examples, depths, layers):
    found = []
    for layer in range(1, layers + 1):
        own = [n for n, depth in zip(examples, depths, strict=True) if depth >= layer]
        found.append(sum(own) ** 2 / sum(n * n for n in own) if own else 0)
    return found


def wrong_everyone(examples, depths, layers):
    weights = np.multiply(examples, depths)
    return [weights.sum() ** 2 / (weights**2).sum()] * layers


def wrong_inverse(examples, depths, layers):
    return [1 / value if value else 0 for value in right_loop(examples, depths, layers)]


def wrong_undefined(examples, depths, layers):
    return [value or float("nan") for value in right_loop(examples, depths, layers)]
