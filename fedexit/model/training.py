"""What every training loop shares: checks, the learning-rate schedule, bfloat16."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedexit.model.backbone import Backbone
from fedexit.support.errors import FedexitError


def lacks_bfloat16() -> bool:
    """Whether the processor is without bfloat16.

    Products in it take some fifty times as long as in single precision then (AMD Zen 3, torch 2.14); no LSTM runs.
    """
    return torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")


@contextmanager
def for_bfloat16(backbone: Backbone, wanted: bool = True) -> Iterator[None]:
    """Attention by plain products in here, if `wanted`: the rest of bfloat16 is `torch.autocast`'s.

    torch's fused attention for the CPU takes several times as long backward in bfloat16 as in single precision.
    """
    model, usual = backbone.model, backbone.model.config._attn_implementation
    if wanted:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if wanted:
            model.set_attn_implementation(usual)


_WARM_UP = 0.05  # share of all updates in which a learning rate rises


def check_numbers(training: object) -> None:
    """Raise FedexitError for numbers by which nothing trains, here or centrally: NaN is one."""
    above = training.learning_rate, training.head_learning_rate, training.clip_norm
    if min(training.epochs, training.batch_size) < 1 or not all(number > 0 for number in above):
        raise FedexitError(
            f"epochs and batch_size must be >= 1, learning rates and clip_norm (math.inf: none) > 0, not {training}"
        )


def schedule(step: int, steps: int) -> float:
    """Return the share of the full learning rate at update `step` (from 0) of `steps`.

    The share rises linearly over the first 5 % of the updates, then falls along half a cosine. No update has rate 0.
    """
    return min((step + 1) / (_WARM_UP * steps), 1.0) * (1 + math.cos(math.pi * step / steps)) / 2
