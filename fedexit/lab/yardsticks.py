"""Predict without a backbone: by guessing, and from log-mel features. Every experiment shows both beside its arms."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fedexit.central.probes import fitted_probe, pooled_log_mel
from fedexit.data.tasks.contract import Clips
from fedexit.lab.setting import GUESSING


def predicted_without_backbone(method: str, parts: Mapping[str, Clips]) -> dict[str, pd.DataFrame]:
    """Return the predictions of a yardstick for the dev and the test clips.

    Args:
        method: `guessing`, the most frequent label of the training clips; or `log-mel`, a ridge classifier on mean and
            standard deviation over time of 80 log-mel bands, whose strength dev decides.
        parts: the clips of `train`, `dev` and `test` of a task with labels.

    Returns:
        By split: the columns of `fedexit.model.metrics.predict`, with 0 as the exit.
    """
    targets = {split: np.asarray(clips.targets) for split, clips in parts.items()}
    if method == GUESSING:
        found = {split: np.full(len(own), np.bincount(targets["train"]).argmax()) for split, own in targets.items()}
    else:
        features = {s: pooled_log_mel([clip for clip, _ in clips])[:, 0] for s, clips in parts.items()}
        probe = fitted_probe(features["train"], targets["train"], (features["dev"], targets["dev"]))
        found = {split: probe.predict(own) for split, own in features.items()}
    return {
        split: pd.DataFrame({"item": range(len(own)), "exit": 0, "predicted": found[split], "label": own})
        for split, own in targets.items()
        if split != "train"
    }
