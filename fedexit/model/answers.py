"""Answer for recordings: the label, text or number of each, the confidence, and the exit that gave it."""

import math
from collections.abc import Callable

import pandas as pd
from torch import Tensor

from fedexit.data.recordings import Recordings
from fedexit.model.ctc import greedy
from fedexit.model.early_exit import check_rule, probability, run_checked
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import forward
from fedexit.support.checks import check_exit, whole_number
from fedexit.support.errors import FedexitError


def answered(
    model: MultiExitModel,
    clips: Recordings,
    exit: int | None,
    rule: str | Callable | None,
    threshold: float | None,
    size: int,
) -> pd.DataFrame:
    """Return `MultiExitModel.predict`, which states the arguments and errors; `size` is its `batch_size`."""
    threshold = _check_question(model, exit, rule, threshold)
    clips.check(model.backbone.frame_lengths)
    rows: list[tuple] = []
    if rule is None:
        for group, outputs, _ in forward(model, clips, [exit or model.exits[-1]], size):
            for depth, logits in outputs.items():
                rows += [(at, *said, depth) for at, said in zip(group, _said(model, logits), strict=True)]
    else:
        for at in range(len(clips)):  # one by one, so that the layers above its exit are not run
            depth, logits = run_checked(model, clips[at][0], rule, threshold)
            rows += [(at, *said, depth) for said in _said(model, logits)]
    answer = "labels" if model.targets == "multi-label" else model.targets
    rows.sort(key=lambda row: row[0])
    return pd.DataFrame(rows, columns=["clip", answer, "confidence", "exit"]).assign(clip=clips.names)


def _check_question(
    model: MultiExitModel, exit: int | None, rule: str | Callable | None, threshold: float | None
) -> float:
    """Return the threshold of a rule; NaN without a rule.

    Raise FedexitError for an unknown exit or rule, both of them, and a rule or threshold without the other.
    """
    if rule is None and threshold is not None:
        raise FedexitError(f"threshold={threshold} needs a rule: entropy, probability or agreement")
    if rule is not None and exit is not None:
        raise FedexitError(f"exit={exit} and rule={rule!r} exclude each other; give one of them")
    if exit is not None:
        check_exit(whole_number(exit, "exit"), model.exits, model.backbone.name)
    return math.nan if rule is None else check_rule(model, rule, threshold)


def _said(model: MultiExitModel, logits: Tensor) -> list[tuple]:
    """Return the answer and its confidence for each clip; an empty text has confidence 0."""
    if model.targets == "number":
        return [(number, math.nan) for number in logits[:, 0].tolist()]
    if model.targets == "multi-label":
        chosen = [[label for label, own in zip(model.labels, row, strict=True) if own > 0] for row in logits.tolist()]
        return list(zip(chosen, logits.abs().sigmoid().amin(1).tolist(), strict=True))
    sure = probability([logits]).clamp(min=0).tolist()
    if model.targets == "text":
        return list(zip(greedy(logits, model.labels), sure, strict=True))
    return [(model.labels[best], own) for best, own in zip(logits.argmax(1).tolist(), sure, strict=True)]
