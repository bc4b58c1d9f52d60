"""Parameter names: which layer a parameter belongs to."""

import re
from functools import cache

_LAYER = re.compile(r"(?:^|\.)(?<!adapter\.)layers\.(\d+)\.")


@cache  # a round asks for every name of every client
def layer_of(name: str) -> int | None:
    """Transformer layer (1-based) that the parameter `name` belongs to; None for all that lies outside the layers.

    The one place that reads layers from names: `encoder.layers.0.attention.k_proj.weight` is layer 1; the convolutions,
    the projection, the positional convolution and the heads are None.
    """
    match = _LAYER.search(name)
    return int(match.group(1)) + 1 if match else None


def in_layer(name: str, layer: int) -> str:
    """The parameter of layer `layer` (1-based) that is what `name` is in its own."""
    start, end = _LAYER.search(name).span(1)
    return f"{name[:start]}{layer - 1}{name[end:]}"
