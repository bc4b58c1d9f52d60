"""Prepare a backbone for training: attention in bfloat16, and recomputed layers."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedexit.model.backbone import Backbone


@contextmanager
def for_training(backbone: Backbone, bfloat16: bool, recompute: bool = False) -> Iterator[None]:
    """Prepare `backbone` for training in `bfloat16`, which `torch.autocast` does, or with recomputed layers.

    On a CPU attention is then computed by plain products, because the backward pass of torch's fused attention is
    several times slower there in bfloat16 than in single precision. A GPU always uses the fused one.
    """
    model, usual = backbone.model, backbone.model.config._attn_implementation
    plain = bfloat16 and model.device.type == "cpu"
    if plain:
        model.set_attn_implementation("eager")
    backbone.recompute = recompute
    try:
        yield
    finally:
        backbone.recompute = False
        if plain:
            model.set_attn_implementation(usual)
