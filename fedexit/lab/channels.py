"""Choose the channels, attention heads and units that a narrow model keeps: those of the largest norm."""

import torch
from torch import Tensor

from fedexit.model.backbone import Backbone, config_of
from fedexit.model.names import layer_of

Kept = dict[tuple[int, str], Tensor]  # kept positions, by layer and kind


def layer_with(name: str, kind: str) -> int:
    """Return the layer of a weight's heads or units; 0 for channels, which all layers share."""
    return 0 if kind == "channels" else layer_of(name) or 0


def kinds_of_axes(name: str, axes: int) -> list[str]:
    """Return what each axis of a weight counts: `channels` of hidden states, or `heads` or `units` of a layer."""
    if ".attention." in name and "out_proj" not in name:
        return ["heads", "channels"][:axes]
    if "intermediate_dense" in name:
        return ["units", "channels"][:axes]
    inner = "heads" if "out_proj" in name else "units" if "output_dense" in name else "channels"
    return ["channels", inner, "channels"][:axes]


def strongest(backbone: Backbone, narrow: Backbone) -> Kept:
    """Return the channels, and for each layer the heads and units, that `narrow` keeps by their norm.

    The norm is over all matrices of the layers that read or write them (after Li et al. 2017, "Pruning filters for
    efficient ConvNets"). Heads are kept whole. Each group of the positional convolution keeps an equal share of its
    channels, because they read only each other.

    Returns:
        Sorted positions by layer (0 for the channels, which all layers share) and kind.
    """
    squares: dict[tuple[int, str], Tensor] = {}
    for name, tensor in backbone.state_dict().items():
        if tensor.dim() != 2 or not layer_of(name):
            continue
        for axis, kind in enumerate(kinds_of_axes(name, 2)):
            place = layer_with(name, kind), kind
            squares[place] = squares.get(place, 0) + tensor.square().sum(1 - axis)
    config, wanted = config_of(backbone), config_of(narrow)
    groups, heads = config["num_conv_pos_embedding_groups"], config["num_attention_heads"]
    kept = {}
    for (layer, kind), found in squares.items():
        if kind == "channels":
            share, blocks = wanted["hidden_size"] // groups, found.view(groups, -1)
            best = blocks.topk(share).indices + torch.arange(groups)[:, None] * blocks.shape[1]
        elif kind == "heads":
            blocks = torch.arange(len(found)).view(heads, -1)
            best = blocks[found.view(heads, -1).sum(1).topk(wanted["num_attention_heads"]).indices]
        else:
            best = found.topk(wanted["intermediate_size"]).indices
        kept[layer, kind] = best.flatten().sort().values
    return kept
