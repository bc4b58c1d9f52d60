"""Answer for recordings: the label or text of each, the confidence, and the exit that gave it."""

import pandas as pd
from torch import Tensor

from fedexit.data.recordings import Recordings
from fedexit.model.ctc import greedy
from fedexit.model.early_exit import check_rule, probability, run
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import forward
from fedexit.support.checks import check_exit, whole_number
from fedexit.support.errors import FedexitError


def answered(
    model: MultiExitModel, clips: Recordings, exit: int | None, rule: str | None, threshold: float | None, size: int
) -> pd.DataFrame:
    """Return `MultiExitModel.predict`, which states the arguments and errors; `size` is its `batch_size`."""
    _check_question(model, exit, rule, threshold)
    clips.check(model.backbone.frame_lengths)
    rows: list[tuple] = []
    if rule is None:
        for group, outputs, _ in forward(model, clips, [exit or model.exits[-1]], size):
            for depth, logits in outputs.items():
                rows += [(at, *said, depth) for at, said in zip(group, _said(model, logits), strict=True)]
    else:
        for at in range(len(clips)):  # one by one, so that the layers above its exit are not run
            depth, logits = run(model, clips[at][0], rule, threshold)  # type: ignore[arg-type]  # checked
            rows += [(at, *said, depth) for said in _said(model, logits)]
    answer = "label" if model.head == "pooled" else "text"
    return pd.DataFrame(sorted(rows), columns=["clip", answer, "confidence", "exit"]).assign(clip=clips.names)


def _check_question(model: MultiExitModel, exit: int | None, rule: str | None, threshold: float | None) -> None:
    """Raise FedexitError for an unknown exit or rule, both of them, and a rule or threshold without the other."""
    if rule is None and threshold is not None:
        raise FedexitError(f"threshold={threshold} needs a rule: entropy, probability or agreement")
    if rule is not None and exit is not None:
        raise FedexitError(f"exit={exit} and rule={rule!r} exclude each other; give one of them")
    if rule is not None:
        check_rule(rule, threshold)
    if exit is not None:
        check_exit(whole_number(exit, "exit"), model.exits, model.backbone.name)


def _said(model: MultiExitModel, logits: Tensor) -> list[tuple]:
    """Return the answer and its confidence for each clip; an empty text has confidence 0."""
    sure = probability([logits]).clamp(min=0).tolist()
    if logits.dim() == 3:
        return list(zip(greedy(logits, model.labels), sure, strict=True))
    return [(model.labels[best], own) for best, own in zip(logits.argmax(1).tolist(), sure, strict=True)]
