"""Predictions of every exit from one pass, and error rates with the number of clips behind them."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from fedexit.clients import WINDOW, Example, by_length, collate
from fedexit.exits import MultiExitModel


@torch.no_grad()
def predict(
    model: MultiExitModel, data: Sequence[Example], exits: Iterable[int] | None = None, batch_size: int = 32
) -> pd.DataFrame:
    """Predicted label index of every clip at every exit, from one pass over `data`.

    Returns one row per (clip, exit): `item` (position in `data`), `exit`, `predicted`, `label`.
    """
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(data), WINDOW * batch_size):
        window = [data[i] for i in range(start, min(start + WINDOW * batch_size, len(data)))]
        for group in by_length(window, batch_size):
            waveforms, lengths, labels = collate([window[position] for position in group])
            for depth, logits in model(waveforms.to(device), lengths, exits).items():
                found = zip(group, logits.argmax(1).tolist(), labels.tolist(), strict=True)
                rows += [(start + position, depth, predicted, label) for position, predicted, label in found]
    return pd.DataFrame(sorted(rows), columns=["item", "exit", "predicted", "label"])


def error_rates(predictions: pd.DataFrame, by: Sequence[str] = ("exit",)) -> pd.DataFrame:
    """Error per group: columns `by`, `value` (share of wrong clips, 0 to 1) and `n` (clips; value * n are wrong)."""
    wrong = predictions.assign(wrong=predictions["predicted"] != predictions["label"])
    grouped = wrong.groupby(list(by), sort=True)["wrong"].agg(value="mean", n="size")
    return grouped.reset_index()


def majority_error(labels: Sequence[int]) -> float:
    """Error of always answering the most frequent of `labels`: what a classifier must beat."""
    return 1.0 - np.bincount(np.asarray(labels)).max() / len(labels)
