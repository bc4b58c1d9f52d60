"""Keep heads with their clients (FedPer, Arivazhagan et al. 2019): all clients share the layers, but not the heads.

Unlike in FedPer, clients also send their heads. People who are not clients get the average of the heads, and so do
clients at an exit that they did not train.
"""

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

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
