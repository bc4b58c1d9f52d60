"""Predict the clips of clients with the heads that these kept (`fedexit.federated.local_heads`)."""

import copy
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from fedexit.data.batches import Example
from fedexit.federated.local_heads import Heads
from fedexit.federated.partition import device_of
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import predict


def with_own_heads(
    model: MultiExitModel, predictions: pd.DataFrame, data: Sequence[Example], devices: Sequence[str], heads: Heads
) -> pd.DataFrame:
    """Return `predictions` in which clips of clients are predicted with the heads that these clients kept.

    At an exit that its clients trained, a device uses the mean of their heads. At all other exits, and for clips of
    people who are not clients, the prediction of `model` stays.

    `predictions` are those of `model` on `data` (`metrics.predict`); `devices` names the device of each clip.
    """
    own, parts = defaultdict(list), [predictions]
    for client, weights in heads.items():
        own[device_of(client)].append(weights)
    personal, average = copy.deepcopy(model), model.trainable_weights()
    for device, several in sorted(own.items()):
        items = np.flatnonzero(np.asarray(devices) == device)
        if not len(items):
            continue
        names = sorted({name for weights in several for name in weights})
        means = {name: torch.stack([weights[name] for weights in several if name in weights]).mean(0) for name in names}
        personal.load_weights({**average, **means})
        exits = {int(name.split(".")[1]) for name in names}  # heads.3.linear.weight
        found = predict(personal, [data[int(item)] for item in items], exits)
        parts.append(found.assign(item=items[found["item"]]))
    latest = pd.concat(parts).drop_duplicates(["item", "exit"], keep="last")
    return latest.sort_values(["item", "exit"], ignore_index=True)
