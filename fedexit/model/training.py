"""Parts that every training loop shares: the learning-rate schedule, bfloat16, recomputed layers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedexit.model.backbone import Backbone


def lacks_bfloat16() -> bool:
    """Return whether the processor lacks bfloat16.

    Matrix products in bfloat16 then take about fifty times as long as in single precision (AMD Zen 3, torch 2.14), and
    an LSTM does not run at all.
    """
    return torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")


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


_WARM_UP = 0.05  # share of all updates in which a learning rate rises


def schedule(step: int, steps: int) -> float:
    """Return the share of the full learning rate at update `step` (from 0) of `steps`.

    The share rises linearly over the first 5 % of the updates, then falls along half a cosine. No update has rate 0.
    """
    return min((step + 1) / (_WARM_UP * steps), 1.0) * (1 + math.cos(math.pi * step / steps)) / 2
