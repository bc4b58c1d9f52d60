"""Measure the time of a training step by depth and compare it with its multiply-accumulates."""

import torch

from fedexit.devices.fleet import costs_by_depth
from fedexit.devices.probe import step_seconds
from fedexit.model.backbone import load_backbone
from fedexit.model.exits import MultiExitModel

_BATCH = 4  # clips


def steps(preset: str, samples: int, started: float) -> list[dict]:
    """Return `seconds` and `macs` of one local training step (Adam, four clips) at each exit.

    There are two rows per exit: the frozen convolutions run in the step, or their output is `cached`.

    Args:
        preset: a backbone name; the model has its shape and random weights.
        samples: length of a clip at 16 kHz.
        started: unused; every target has it.
    """
    model = MultiExitModel(load_backbone(preset), ["a", "b"])
    waveforms, lengths = torch.randn(_BATCH, samples), torch.full((_BATCH,), samples)
    batches = {False: waveforms, True: model.backbone.convolve(waveforms, lengths)}
    rows = []
    for costs in costs_by_depth(model, samples, _BATCH).itertuples():
        for cached, clips in batches.items():
            seconds = step_seconds(model, costs.depth, [(clip, place % 2) for place, clip in enumerate(clips)])
            macs = costs.macs_forward + costs.macs_backward + (0 if cached else costs.macs_frozen)
            rows.append({"depth": costs.depth, "cached": cached, "seconds": seconds, "macs": macs})
    return rows
