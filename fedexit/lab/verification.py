"""Verify speakers in pairs of clips: EER and minDCF of every exit."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_curve

from fedexit.data.batches import Example, collate
from fedexit.data.trials import check_trials
from fedexit.model.exits import MultiExitModel


def verify(model: MultiExitModel, data: Sequence[Example], ids: Sequence[str], trials: pd.DataFrame) -> pd.DataFrame:
    """Return EER and minDCF of every exit on `trials`: columns `exit, metric, value, n` (trials).

    The score of a trial is the cosine between the embeddings of its clips. `data` are the clips called `ids`, targets
    ignored. `trials` has the columns `first`, `second` (ids) and `same` (whether one speaker says both). Raises
    FedexitError for ids that are not one per clip, trials of other clips, and trials of one kind only.
    """
    check_trials(trials, ids, len(data))
    embedded: dict[int, list[torch.Tensor]] = {depth: [] for depth in model.exits}
    model.eval()
    for clip, _ in data:  # one by one: trial lists are short
        waveforms, lengths, _ = collate([(clip, 0)])
        for depth, embedding in model.embeddings(waveforms, lengths).items():
            embedded[depth].append(torch.nn.functional.normalize(embedding[0].cpu(), dim=0))
    place = {clip: position for position, clip in enumerate(ids)}
    first, second = (trials[side].map(place).to_numpy() for side in ("first", "second"))
    same, rows = trials["same"].to_numpy(bool), []
    for depth, vectors in embedded.items():
        matrix = torch.stack(vectors).numpy()
        scores = (matrix[first] * matrix[second]).sum(1)
        rows += [(depth, "EER", equal_error_rate(scores, same)), (depth, "minDCF", min_dcf(scores, same))]
    return pd.DataFrame(rows, columns=["exit", "metric", "value"]).assign(n=len(trials))


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Return the rate at which misses and false alarms are equal, interpolated between the two nearest thresholds."""
    alarms, hits, _ = roc_curve(same, scores, drop_intermediate=False)
    gap = (1 - hits) - alarms  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(alarms[after - 1] + share * (alarms[after] - alarms[after - 1]))


def min_dcf(scores: np.ndarray, same: np.ndarray, prior: float = 0.05) -> float:
    """Return the least detection cost over thresholds, divided by that of a system that always answers the same.

    A miss and a false alarm cost 1 each (NIST SRE); `prior` is the probability that one speaker says both clips.
    """
    alarms, hits, _ = roc_curve(same, scores, drop_intermediate=False)
    return float((prior * (1 - hits) + (1 - prior) * alarms).min() / min(prior, 1 - prior))
