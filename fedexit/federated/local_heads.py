"""Heads that stay with their clients (FedPer, Arivazhagan et al. 2019): the layers are everybody's, the heads are not.

Unlike there, clients send their heads as well: who is no client, or asks at another client's exit, gets their average.
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
    """Copies of the heads among a client's `weights`."""
    return {name: tensor.clone() for name, tensor in weights.items() if name.startswith("heads.")}


def packed(heads: Heads) -> dict[str, Tensor]:
    """All `heads` side by side, for a checkpoint."""
    return {f"{_MARK}:{name}:{client}": tensor for client, own in heads.items() for name, tensor in own.items()}


def unpacked(tensors: Mapping[str, Tensor]) -> Heads:
    """The heads that `packed` put among a checkpoint's `tensors`."""
    heads: Heads = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith(f"{_MARK}:"):
            _, name, client = key.split(":", 2)
            heads[client][name] = tensor
    return dict(heads)


def with_own_heads(
    model: MultiExitModel, predictions: pd.DataFrame, data: Sequence[Example], devices: Sequence[str], heads: Heads
) -> pd.DataFrame:
    """`predictions` of `model` on `data` (`metrics.predict`), clients' people answered by the heads that they kept.

    devices: whose clip each is. At an exit that its clients trained, a device has the mean of their heads there; at
    all others, as all who are no client, what `model` has.
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
    told = pd.concat(parts).drop_duplicates(["item", "exit"], keep="last")
    return told.sort_values(["item", "exit"], ignore_index=True)
