"""Measure what a change of weights reveals about clips: membership and speakers, layer by layer.

The attack is passive: it knows the global weights before the change, the change (one client's, or that of the whole
round) and candidate clips with their targets. A clip that was trained on has a loss gradient that points against the
change. The score of a clip is the cosine of the two, within a layer (after Nasr et al., S&P 2019, and Li et al., 2022).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from torch import Tensor

from fedexit.data.batches import Example, collate
from fedexit.federated.objectives import Objective, objective_loss
from fedexit.model.exits import MultiExitModel
from fedexit.privacy.noise import group_of
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

EVERYTHING = "all"  # the group of all weights together


def change_of(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return new minus old by name, for each weight of `new`."""
    return {name: tensor.detach() - old[name].detach() for name, tensor in new.items()}


def scores(
    model: MultiExitModel, depth: int, changes: Mapping[str, Mapping[str, Tensor]], clips: Sequence[Example]
) -> pd.DataFrame:
    """Return how well each change fits the gradient of each clip: columns `change, group, clip, score`.

    Args:
        model: The global model before the change.
        depth: The exit at which the client trained (L_i). Changes of deeper layers are ignored.
        changes: By a name, the changes of weights by their names (`change_of`).
        clips: Pairs (clip, target): candidates.

    Raises:
        FedexitError: a change lacks weights of the client's model.
    """
    own = model.client_model(depth).eval()
    weights = {name: parameter for name, parameter in own.named_parameters() if parameter.requires_grad}
    for name, given in changes.items():
        if lacking := weights.keys() - given.keys():
            raise FedexitError(f"change {name!r} lacks {min(lacking)!r} of exit {depth}; give all weights up to there")
    rows = []
    for clip, example in enumerate(clips):
        waveforms, lengths, target = collate([example])
        own.zero_grad()
        logits = own(waveforms, lengths, exits=[depth])
        objective_loss(logits, target, Objective(), model.targets).backward()
        gradients = {name: parameter.grad for name, parameter in weights.items() if parameter.grad is not None}
        for change, tensors in changes.items():
            rows += [(change, group, clip, score) for group, score in _cosines(gradients, tensors).items()]
    return pd.DataFrame(rows, columns=["change", "group", "clip", "score"])


def _cosines(gradients: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the cosine of each group's change and its negative gradient; 0 for one that is zero."""
    sums: dict[str, np.ndarray] = {}
    for name, gradient in gradients.items():
        one, other = gradient.double(), change[name].double()
        three = np.array([-(one * other).sum(), one.square().sum(), other.square().sum()])
        for group in (group_of(name), EVERYTHING):
            sums[group] = sums.get(group, 0.0) + three
    return {group: dot / math.sqrt(one * two) if one * two else 0.0 for group, (dot, one, two) in sums.items()}


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the probability that a positive score is above a negative one; a tie counts one half. 0.5 is a guess.

    Raises:
        FedexitError: one of the two is empty.
    """
    if not len(positive) or not len(negative):
        raise FedexitError(f"{len(positive)} positive and {len(negative)} negative scores; an AUC needs both")
    ranks = rankdata([*positive, *negative])[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def auc_by_group(found: pd.DataFrame, positive: Sequence[bool]) -> pd.DataFrame:
    """Return the AUC of the `scores` by change and group: columns `change, group, auc`. `positive` is by clip."""
    marks = np.asarray(positive, bool)
    rows = [
        (*names, auc(own.loc[marks[own["clip"]], "score"].tolist(), own.loc[~marks[own["clip"]], "score"].tolist()))
        for names, own in found.groupby(["change", "group"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["change", "group", "auc"])


def information(seen: Sequence, secret: Sequence, seed: int = 0, draws: int = 500) -> tuple[float, float]:
    """Return what `seen` reveals about `secret` in bits, and the p-value of a permutation test.

    The plain estimate is too large for few samples, so the mean under random permutations is subtracted.

    Args:
        seen: What an observer sees of each clip, such as its exit or its answer time.
        secret: What the observer wants to know of it, such as its label.
        seed: Seed of the permutations.
        draws: Number of permutations.
    """
    one, other = (np.unique(np.asarray(values), return_inverse=True)[1] for values in (seen, secret))
    rng, plain = numpy_stream(seed, "information"), _mutual(one, other)
    null = np.array([_mutual(one, rng.permutation(other)) for _ in range(draws)])
    return plain - null.mean(), float((1 + (null >= plain - 1e-12).sum()) / (1 + draws))


def _mutual(one: np.ndarray, other: np.ndarray) -> float:
    joint = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(joint, (one, other), 1 / len(one))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    held = joint > 0
    return float((joint[held] * np.log2(joint[held] / apart[held])).sum())


def padded(times: Sequence[float], slots: Sequence[float]) -> list[float]:
    """Return when each answer is given if it waits for the next of the public `slots`; one slot hides the exit.

    Raises:
        FedexitError: an answer takes longer than the last slot.
    """
    places = np.searchsorted(sorted(slots), np.asarray(times, float))
    if (places == len(slots)).any():
        raise FedexitError(f"an answer takes {max(times):g}, after the last slot ({max(slots):g}); add a later slot")
    return np.asarray(sorted(slots), float)[places].tolist()
