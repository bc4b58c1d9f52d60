import statistics

import numpy as np


def right_loop(items):
    rates = []
    for seed in sorted(set(items[:, 0].tolist())):
        own = items[items[:, 0] == seed]
        rates.append(100 * own[:, 1].sum() / own[:, 2].sum())
    return statistics.mean(rates), statistics.stdev(rates)


def right_counts(items):
    seeds = np.unique(items[:, 0], return_inverse=True)[1].ravel()
    errors, words = np.bincount(seeds, items[:, 1]), np.bincount(seeds, items[:, 2])
    rates = errors / words * 100
    return [rates.mean(), rates.std(ddof=1)]


def wrong_clips(items):
    rates = [np.mean(own[:, 1] / own[:, 2]) * 100 for own in by_seed(items)]
    return np.mean(rates), np.std(rates, ddof=1)


def wrong_pooled(items):
    return 100 * items[:, 1].sum() / items[:, 2].sum(), right_loop(items)[1]


def wrong_population(items):
    return right_loop(items)[0], np.std([100 * own[:, 1].sum() / own[:, 2].sum() for own in by_seed(items)])


def wrong_fraction(items):
    return [value / 100 for value in right_loop(items)]


def by_seed(items):
    return [items[items[:, 0] == seed] for seed in np.unique(items[:, 0])]
