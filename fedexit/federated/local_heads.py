"""Keep heads with their clients (FedPer, Arivazhagan et al. 2019): all clients share the layers, but not the heads.

Unlike in FedPer, clients also send their heads. People who are not clients get the average of the heads, and so do
clients at an exit that they did not train.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedexit.data.batches import Example
from fedexit.federated.partition import device_of
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import predict

Heads = dict[str, dict[str, Tensor]]  # by client: its heads' weights, by name
_MARK = "head"


def heads_in(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the heads among a client's `weights`."""
    return {name: tensor.clone() for name, tensor in weights.items() if name.startswith("heads.")}


def packed(heads: Heads) -> dict[str, Tensor]:
    """Return all `heads` as named tensors for a checkpoint."""
    return {f"{_MARK}:{name}:{client}": tensor for client, own in heads.items() for name, tensor in own.items()}


def unpacked(tensors: Mapping[str, Tensor]) -> Heads:
    """Return the heads that `packed` put among a checkpoint's `tensors`."""
    heads: Heads = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith(f"{_MARK}:"):
            _, name, client = key.split(":", 2)
            heads[client][name] = tensor
    return dict(heads)


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
