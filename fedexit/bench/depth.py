"""What a training step costs by depth, beside the multiply-accumulates that it should cost."""

import time

import torch
from torch import Tensor

from fedexit.backbone import load_backbone
from fedexit.bench.workload import LEARNING_RATE, loss
from fedexit.costs import clip_macs
from fedexit.exits import MultiExitModel

_BATCH = 4  # clips


def steps(preset: str, samples: int, started: float) -> list[dict]:
    """Seconds of one local training step (plain SGD, four clips of `samples`) at each exit of the geometry `preset`.

    A row per exit, with the frozen convolutions run in the step and with their output `cached`: `seconds`, and the
    `macs` of the step. The step before the timed one, which allocates, does not count. `started` is not needed.
    """
    whole = MultiExitModel(load_backbone(preset), ["a", "b"])
    waveforms, labels = torch.randn(_BATCH, samples), torch.arange(_BATCH) % 2
    lengths = torch.full((_BATCH,), samples)
    features = whole.backbone.convolve(waveforms, lengths), whole.backbone.frame_lengths(lengths)
    rows = []
    for depth in whole.exits:
        model = whole.client_model(depth).train()
        macs = clip_macs(whole.backbone, samples, depth, len(whole.labels))
        for cached, batch in ((False, (waveforms, lengths)), (True, features)):
            _step(model, *batch, labels, depth)
            since = time.perf_counter()
            _step(model, *batch, labels, depth)
            seconds = time.perf_counter() - since
            total = _BATCH * (macs.trained + macs.backward + (0 if cached else macs.frozen))
            rows.append({"depth": depth, "cached": cached, "seconds": seconds, "macs": total})
        del model
    return rows


def _step(model: MultiExitModel, clips: Tensor, lengths: Tensor, labels: Tensor, depth: int) -> None:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    loss(model, clips, lengths, labels, depth).backward()
    optimiser.step()
    optimiser.zero_grad()
