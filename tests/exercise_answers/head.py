import numpy as np


def right_matrix(pooled, centre, scale, weight, bias):
    return (pooled - centre) / scale @ weight.T + bias


def right_loop(pooled, centre, scale, weight, bias):
    return [
        [
            b + sum(w * (x - c) / s for w, x, c, s in zip(row, clip, centre, scale, strict=True))
            for row, b in zip(weight, bias, strict=True)
        ]
        for clip in pooled
    ]


def wrong_raw(pooled, centre, scale, weight, bias):
    return pooled @ weight.T + bias


def wrong_multiplied(pooled, centre, scale, weight, bias):
    return (pooled - centre) * scale @ weight.T + bias


def wrong_biasless(pooled, centre, scale, weight, bias):
    return (pooled - centre) / scale @ weight.T


def wrong_softmax(pooled, centre, scale, weight, bias):
    odds = np.exp(right_matrix(pooled, centre, scale, weight, bias))
    return odds / odds.sum(1, keepdims=True)
