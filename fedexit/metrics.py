"""Predictions of every exit from one pass, and error rates with the number of clips behind them."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from fedexit.clients import Example, collate
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
    for start in range(0, len(data), batch_size):
        items = range(start, min(start + batch_size, len(data)))
        waveforms, lengths, labels = collate([data[i] for i in items])
        for depth, logits in model(waveforms.to(device), lengths, exits).items():
            predicted = logits.argmax(1).tolist()
            rows += [(i, depth, p, y) for i, p, y in zip(items, predicted, labels.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["item", "exit", "predicted", "label"])


def error_rates(predictions: pd.DataFrame, by: Sequence[str] = ("exit",)) -> pd.DataFrame:
    """Error per group: columns `by`, `value` (share of wrong clips, 0 to 1) and `n` (clips; value * n are wrong)."""
    wrong = predictions.assign(wrong=predictions["predicted"] != predictions["label"])
    grouped = wrong.groupby(list(by), sort=True)["wrong"].agg(value="mean", n="size")
    return grouped.reset_index()


def majority_error(labels: Sequence[int]) -> float:
    """Error of always answering the most frequent of `labels`: what a classifier must beat."""
    return 1.0 - np.bincount(np.asarray(labels)).max() / len(labels)
