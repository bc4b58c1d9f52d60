"""What a training step costs by depth, beside the multiply-accumulates that it should cost."""

import torch

from fedexit.devices.probe import step_seconds
from fedexit.model.backbone import load_backbone
from fedexit.model.costs import costs_by_depth
from fedexit.model.exits import MultiExitModel

_BATCH = 4  # clips


def steps(preset: str, samples: int, started: float) -> list[dict]:
    """Seconds of one local training step (Adam, four clips of `samples`) at each exit of the geometry `preset`.

    A row per exit, with the frozen convolutions run in the step and with their output `cached`: `seconds`, and the
    `macs` of the step. `started` is not needed.
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
