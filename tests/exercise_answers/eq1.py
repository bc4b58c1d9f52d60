import numpy as np


def right_by_name(old, updates, g):
    new = {}
    for name, value in old.items():
        sent = [(weights[name], n * depth**g) for weights, n, depth in updates if name in weights]
        new[name] = sum(w * x for x, w in sent) / sum(w for _, w in sent) if sent else value
    return new


def right_streaming(old, updates, g):
    sums, totals = {}, {}
    for weights, n, depth in updates:
        for name, value in weights.items():
            sums[name] = sums.get(name, 0) + value * (n * depth**g)
            totals[name] = totals.get(name, 0) + n * depth**g
    return {name: (sums[name] / totals[name] if name in sums else old[name]).tolist() for name in old}


def average(old, updates, weight):
    new = dict(old)
    for name in old:
        sent = [(weights[name], weight(n, depth)) for weights, n, depth in updates if name in weights]
        if sent:
            new[name] = np.average([x for x, _ in sent], axis=0, weights=[w for _, w in sent])
    return new


def wrong_everyone(old, updates, g):
    total = sum(n * depth**g for _, n, depth in updates)
    new = {}
    for name, value in old.items():
        sent = [n * depth**g * weights[name] for weights, n, depth in updates if name in weights]
        new[name] = sum(sent) / total if sent else value
    return new


def wrong_examples(old, updates, g):
    return average(old, updates, lambda n, depth: n)


def wrong_equal(old, updates, g):
    return average(old, updates, lambda n, depth: 1)


def wrong_exponent(old, updates, g):
    return average(old, updates, lambda n, depth: n * depth)


def wrong_lost(old, updates, g):
    sent = {name for weights, *_ in updates for name in weights}
    return {name: value for name, value in right_by_name(old, updates, g).items() if name in sent}
