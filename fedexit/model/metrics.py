"""Predictions of every exit from one pass, and error rates with the number of clips, or words, behind them."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jiwer
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_curve
from torch import Tensor

from fedexit.data.batches import WINDOW, Example, by_length, collate
from fedexit.data.text import spell
from fedexit.model.ctc import greedy
from fedexit.model.exits import MultiExitModel

UNITS = {"CER": "character", "WER": "word"}  # what the rates of texts count


@torch.no_grad()
def predict(
    model: MultiExitModel,
    data: Sequence[Example],
    exits: Iterable[int] | None = None,
    batch_size: int = 32,
    decode: Callable[[Tensor], list[str]] = greedy,
) -> pd.DataFrame:
    """What every exit says of every clip, from one pass over `data`.

    Returns one row per (clip, exit): `item` (position in `data`), `exit`, `predicted`, `label`: indices of labels, or
    texts, which `decode` makes of a CTC head's logits (B, F, C).
    """
    rows = []
    for group, outputs, targets in forward(model, data, exits, batch_size):
        for depth, logits in outputs.items():
            pairs = answers(logits, targets, decode)
            rows += [(item, depth, *pair) for item, pair in zip(group, pairs, strict=True)]
    return pd.DataFrame(sorted(rows), columns=["item", "exit", "predicted", "label"])


def answers(logits: Tensor, targets: Tensor, decode: Callable[[Tensor], list[str]] = greedy) -> list[tuple]:
    """What a head says of each clip, and what is true: indices of labels, or texts."""
    if logits.dim() == 3:
        return list(zip(decode(logits), map(spell, targets.tolist()), strict=True))
    return list(zip(logits.argmax(1).tolist(), targets.tolist(), strict=True))


@torch.no_grad()
def forward(
    model: MultiExitModel, data: Sequence[Example], exits: Iterable[int] | None = None, batch_size: int = 32
) -> Iterator[tuple[list[int], dict[int, Tensor], Tensor]]:
    """Batches of clips of like length: their positions in `data`, their logits at each exit, their targets."""
    model.eval()
    device = next(model.parameters()).device
    for start in range(0, len(data), WINDOW * batch_size):
        window = [data[i] for i in range(start, min(start + WINDOW * batch_size, len(data)))]
        for group in by_length(window, batch_size):
            waveforms, lengths, targets = collate([window[position] for position in group])
            yield [start + position for position in group], model(waveforms.to(device), lengths, exits), targets


def error_rates(predictions: pd.DataFrame, by: Sequence[str] = ("exit",), unit: str = "character") -> pd.DataFrame:
    """Error per group: columns `by`, `value` and `n`; value * n are the errors.

    `n` are clips, and `value` the share of those with a wrong label. Of texts, `value` is the error rate (CER or WER,
    by `unit`, `character` or `word`), counted over all texts together, and `n` the units that they have: with
    insertions it may exceed 1, and it is infinite if something was heard where nothing is said at all.
    """
    counted = predictions.assign(**_counts(predictions, unit))
    sums = counted.groupby(list(by), sort=True)[["errors", "n"]].sum().reset_index()
    value = sums["errors"] / sums["n"]
    return sums.drop(columns=["errors", "n"]).assign(value=value.where(sums["errors"] > 0, 0.0), n=sums["n"])


def all_rates(predictions: pd.DataFrame, by: Sequence[str] = ("exit",)) -> pd.DataFrame:
    """`error_rates` with the column `metric`: `error` of labels; `CER` and `WER` of texts."""
    if _are_labels(predictions):
        return error_rates(predictions, by).assign(metric="error")
    return pd.concat(
        [error_rates(predictions, by, unit).assign(metric=metric) for metric, unit in UNITS.items()], ignore_index=True
    )


def item_errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """Errors of every clip at every exit: `exit, item, metric, errors, n`; of texts once for CER and once for WER."""
    about = predictions[["exit", "item"]]
    if _are_labels(predictions):
        return about.assign(metric="error", **_counts(predictions, "character"))
    return pd.concat([about.assign(metric=m, **_counts(predictions, unit)) for m, unit in UNITS.items()])


def _are_labels(predictions: pd.DataFrame) -> bool:
    return pd.api.types.is_integer_dtype(predictions["label"])


def _counts(predictions: pd.DataFrame, unit: str) -> dict[str, Sequence[int]]:
    """Errors, and what could be wrong, of each prediction."""
    if _are_labels(predictions):
        return {"errors": (predictions["predicted"] != predictions["label"]).astype(int), "n": 1}
    process = {"character": jiwer.process_characters, "word": jiwer.process_words}[unit]
    found = [process(row.label, row.predicted) for row in predictions.itertuples()]
    return {
        "errors": [one.substitutions + one.deletions + one.insertions for one in found],
        "n": [one.substitutions + one.deletions + one.hits for one in found],
    }


def majority_error(labels: Sequence[int]) -> float:
    """Error of always answering the most frequent of `labels`: what a classifier must beat."""
    return 1.0 - np.bincount(np.asarray(labels)).max() / len(labels)


def verify(model: MultiExitModel, data: Sequence[Example], ids: Sequence[str], trials: pd.DataFrame) -> pd.DataFrame:
    """EER and minDCF of every exit on `trials`: columns `exit, metric, value, n` (trials).

    data: the clips called `ids`, targets unused. A trial's score is the cosine of its clips' embeddings.
    """
    embedded: dict[int, list[torch.Tensor]] = {depth: [] for depth in model.exits}
    model.eval()
    device = next(model.parameters()).device
    for clip, _ in data:  # one by one: trial lists are short
        waveforms, lengths, _ = collate([(clip, 0)])
        for depth, embedding in model.embeddings(waveforms.to(device), lengths).items():
            embedded[depth].append(torch.nn.functional.normalize(embedding[0].cpu(), dim=0))
    place = {clip: position for position, clip in enumerate(ids)}
    first, second = (trials[side].map(place).to_numpy() for side in ("first", "second"))
    same, rows = trials["same"].to_numpy(), []
    for depth, vectors in embedded.items():
        matrix = torch.stack(vectors).numpy()
        scores = (matrix[first] * matrix[second]).sum(1)
        rows += [(depth, "EER", equal_error_rate(scores, same)), (depth, "minDCF", min_dcf(scores, same))]
    return pd.DataFrame(rows, columns=["exit", "metric", "value"]).assign(n=len(trials))


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Where misses and false alarms are equally frequent, by a straight line between the two nearest thresholds."""
    alarms, hits, _ = roc_curve(same, scores, drop_intermediate=False)
    gap = (1 - hits) - alarms  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(alarms[after - 1] + share * (alarms[after] - alarms[after - 1]))


def min_dcf(scores: np.ndarray, same: np.ndarray, prior: float = 0.05) -> float:
    """Least detection cost over thresholds (NIST SRE; misses and false alarms cost 1 each), over that of no system.

    prior: of a trial being of one speaker.
    """
    alarms, hits, _ = roc_curve(same, scores, drop_intermediate=False)
    return float((prior * (1 - hits) + (1 - prior) * alarms).min() / min(prior, 1 - prior))
