"""Predict with every exit in one pass, and count errors per clip, character, word or label."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import ne
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fedexit.data.batches import WINDOW, Example, by_length, collate
from fedexit.data.inspection import check_sized, example_at
from fedexit.data.text import spell
from fedexit.model.ctc import greedy
from fedexit.model.exits import MultiExitModel
from fedexit.support.checks import check_exits, whole_number
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra

UNITS = {"CER": "character", "WER": "word"}  # unit of each error rate of texts


@torch.no_grad()
def predict(
    model: MultiExitModel,
    data: Sequence[Example],
    exits: Iterable[int] | None = None,
    batch_size: int = 32,
    decode: Callable[[Tensor], list[str]] | None = None,
) -> pd.DataFrame:
    """Return the predictions of every exit for every clip, from one pass over `data`.

    Args:
        model: put into evaluation mode.
        data: pairs (clip (T,) at 16 kHz, target).
        exits: some of the model's exits; default all.
        batch_size: clips per batch; it changes memory and speed only.
        decode: makes texts of a CTC head's logits (B, F, C); default greedy, with the model's labels.

    Returns:
        One row per (clip, exit): `item` (position in `data`), `exit`, `predicted`, `label`. The last two are indices
        of labels, texts, numbers (floats), or 0 and 1 for each of several labels (tuples).
    """
    rows = []
    for group, outputs, targets in forward(model, data, exits, batch_size):
        for depth, logits in outputs.items():
            pairs = answers(logits, targets, model.labels, decode, model.targets)
            rows += [(item, depth, *pair) for item, pair in zip(group, pairs, strict=True)]
    return pd.DataFrame(sorted(rows), columns=["item", "exit", "predicted", "label"])


def answers(
    logits: Tensor,
    targets: Tensor,
    labels: Sequence[str],
    decode: Callable[[Tensor], list[str]] | None = None,
    kind: str = "label",
) -> list[tuple]:
    """Return the pairs (predicted, true) of each clip: see `predict`; texts are in the characters `labels`."""
    if logits.dim() == 3:
        predicted = decode(logits) if decode else greedy(logits, labels)
        return [(text, spell(codes, labels)) for text, codes in zip(predicted, targets.tolist(), strict=True)]
    if kind == "number":
        return list(zip(logits[:, 0].tolist(), targets.double().tolist(), strict=True))
    if kind == "multi-label":
        return [(tuple(map(int, one)), tuple(map(int, own))) for one, own in zip(logits > 0, targets, strict=True)]
    return list(zip(logits.argmax(1).tolist(), targets.tolist(), strict=True))


@torch.no_grad()
def forward(
    model: MultiExitModel, data: Sequence[Example], exits: Iterable[int] | None = None, batch_size: int = 32
) -> Iterator[tuple[list[int], dict[int, Tensor], Tensor]]:
    """Yield batches of clips of similar length: positions in `data`, logits at each exit, targets.

    Raises FedexitError for a clip or target that the model cannot read (`check_clips`) and logits that are NaN.
    """
    check_sized(data, "evaluation")
    exits = None if exits is None else check_exits(exits, model.exits, "the model")
    batch_size = whole_number(batch_size, "batch_size", 1)
    model.eval()
    for start in range(0, len(data), WINDOW * batch_size):
        numbers = range(start, min(start + WINDOW * batch_size, len(data)))
        window = [example_at(data, number, f"evaluation, clip {number}") for number in numbers]
        model.check_clips(window, "evaluation", start=start)
        for group in by_length(window, batch_size):
            waveforms, lengths, targets = collate([window[position] for position in group])
            outputs = {depth: logits.cpu() for depth, logits in model(waveforms, lengths, exits).items()}
            if bad := [depth for depth, logits in outputs.items() if not torch.isfinite(logits).all()]:
                raise FedexitError(f"the model gives NaN at exit {bad[0]}; its weights are damaged: load it again")
            yield [start + position for position in group], outputs, targets


def error_rates(predictions: pd.DataFrame, by: Sequence[str] = ("exit",), unit: str = "character") -> pd.DataFrame:
    """Return the error per group: columns `by`, `value` and `n`; value * n is the number of errors.

    For labels, `n` counts clips and `value` is the share of wrong ones. For texts, `n` counts the units of all texts of
    the group and `value` is the CER or WER over them. With insertions it may exceed 1. If the texts are empty and a
    prediction is not, it is infinite. For numbers, `n` counts clips and `value` is the mean absolute error. For several
    labels, `n` counts the labels of all clips and `value` is the share of wrong ones (Hamming loss).
    `unit` is `character` or `word`; only texts read it.
    """
    counted = predictions.assign(**_counts(predictions, unit))
    sums = counted.groupby(list(by), sort=True)[["errors", "n"]].sum().reset_index()
    value = sums["errors"] / sums["n"]
    return sums.drop(columns=["errors", "n"]).assign(value=value.where(sums["errors"] > 0, 0.0), n=sums["n"])


def all_rates(predictions: pd.DataFrame, by: Sequence[str] = ("exit",)) -> pd.DataFrame:
    """Return `error_rates` with the column `metric`: `error`, `CER` and `WER`, `MAE`, or `Hamming`."""
    units = _units(predictions)
    return pd.concat(
        [error_rates(predictions, by, unit).assign(metric=metric) for metric, unit in units.items()], ignore_index=True
    )


def item_errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the errors of every clip at every exit: `exit, item, metric, errors, n`; texts have CER and WER rows."""
    about = predictions[["exit", "item"]]
    units = _units(predictions)
    return pd.concat([about.assign(metric=m, **_counts(predictions, unit)) for m, unit in units.items()])


def _units(predictions: pd.DataFrame) -> dict[str, str]:
    """Return the metrics of `predictions`, by the type of their labels, and the unit of each metric."""
    own = predictions["label"]
    if pd.api.types.is_integer_dtype(own):
        return {"error": "clip"}
    if pd.api.types.is_float_dtype(own):
        return {"MAE": "clip"}
    return {"Hamming": "label"} if len(own) and isinstance(own.iloc[0], tuple) else UNITS


def _counts(predictions: pd.DataFrame, unit: str) -> dict[str, Any]:
    """Return the number of errors (for numbers, their size) and of units of each prediction."""
    [metric, *_] = _units(predictions)
    if metric == "error":
        return {"errors": (predictions["predicted"] != predictions["label"]).astype(int), "n": 1}
    if metric == "MAE":
        return {"errors": (predictions["predicted"] - predictions["label"]).abs(), "n": 1}
    if metric == "Hamming":
        pairs = zip(predictions["predicted"], predictions["label"], strict=True)
        return {"errors": [sum(map(ne, *pair)) for pair in pairs], "n": predictions["label"].map(len)}
    with extra("asr"):
        import jiwer
    process: Any = {"character": jiwer.process_characters, "word": jiwer.process_words}[unit]
    found = [process(row.label, row.predicted) for row in predictions.itertuples()]
    return {
        "errors": [one.substitutions + one.deletions + one.insertions for one in found],
        "n": [one.substitutions + one.deletions + one.hits for one in found],
    }
