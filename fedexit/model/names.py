"""Read the layer of a parameter from its name."""

import re
from functools import cache

_LAYER = re.compile(r"(?:^|\.)(?<!adapter\.)(?<!pos_conv_embed\.)layers\.(\d+)\.")


@cache  # a round asks for every name of every client
def layer_of(name: str) -> int | None:
    """Return the Transformer layer (from 1) of the parameter `name`; None outside the layers.

    Only this function reads layers from names. Convolutions, projection, positional convolution and heads are outside.

    Example:
        >>> layer_of("encoder.layers.0.attention.k_proj.weight"), layer_of("heads.3.linear.bias")
        (1, None)
    """
    match = _LAYER.search(name)
    return int(match.group(1)) + 1 if match else None


def in_layer(name: str, layer: int) -> str:
    """Return the name of the same parameter in layer `layer` (from 1)."""
    start, end = _LAYER.search(name).span(1)  # type: ignore[union-attr]  # callers ask `layer_of` first
    return f"{name[:start]}{layer - 1}{name[end:]}"
