import numpy as np


def right_sums(counts):
    substitutions, deletions, insertions, hits = counts.sum(0)
    return (substitutions + deletions + insertions) / (substitutions + deletions + hits)


def right_loop(counts):
    errors = words = 0
    for row in counts.tolist():
        errors += sum(row[:3])
        words += row[0] + row[1] + row[3]
    return errors / words


def wrong_averaged(counts):
    own = counts[counts[:, [0, 1, 3]].sum(1) > 0]
    return np.mean(own[:, :3].sum(1) / own[:, [0, 1, 3]].sum(1))


def wrong_insertions(counts):
    return counts[:, :2].sum() / counts[:, [0, 1, 3]].sum()


def wrong_hypothesis(counts):
    return counts[:, :3].sum() / counts[:, [0, 2, 3]].sum()


def wrong_all(counts):
    return counts[:, :3].sum() / counts.sum()
