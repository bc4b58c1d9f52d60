"""Checks of the clips and targets that central training reads, made before training starts."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from fedexit.data.batches import Example, check_example
from fedexit.data.text import frames_needed
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError


def check_examples(model: MultiExitModel, data: Sequence[Example], crop: int | None = None) -> None:
    """Check that `model` can train on every clip of `data` and its target.

    Args:
        model: the model that will be trained.
        data: (clip, target) pairs as for `fine_tune`.
        crop: largest length of a clip in training, None for whole clips.

    Raises:
        FedexitError: for no clips, and for the first clip (named by its position) that `check_example` refuses, that
            has no frame, or whose target is not a label of the model or needs more frames than the clip has.
    """
    if not len(data):
        raise FedexitError("there are no clips to train on; give at least one")
    for position in range(len(data)):
        example, name = data[position], f"clip {position}"
        check_example(example, name)
        clip, target = example
        frames = _frames(model, clip, name, crop)
        if model.head == "pooled":
            _check_label(model, target, name)
        else:
            _check_text(model, target, name, frames)


def _frames(model: MultiExitModel, clip: Tensor, name: str, crop: int | None) -> int:
    """Return the number of frames of a clip in training."""
    if clip.dim() == 2 and len(clip) != model.backbone.channels:
        raise FedexitError(f"{name} holds features of {len(clip)} channels; the model has {model.backbone.channels}")
    length = clip.shape[-1] if crop is None else min(crop, clip.shape[-1])
    frames = length if clip.dim() == 2 else int(model.backbone.frame_lengths(torch.tensor([length])))
    if frames < 1 and length < clip.shape[-1]:
        raise FedexitError(f"crop={crop} samples are shorter than one frame of {model.backbone.name}; enlarge crop")
    if frames < 1:
        raise FedexitError(f"{name}: {length} samples are shorter than one frame; leave it out")
    return frames


def _check_label(model: MultiExitModel, target: object, name: str) -> None:
    try:
        known = 0 <= operator.index(target) < len(model.labels)
    except TypeError:
        known = False
    if not known:
        raise FedexitError(f"{name} has target {target!r}; give the index of a label, 0 to {len(model.labels) - 1}")


def _check_text(model: MultiExitModel, target: object, name: str, frames: int) -> None:
    try:
        codes = [operator.index(code) for code in target]
    except TypeError:
        raise FedexitError(
            f"{name} has target {target!r}; give the character ids of its text (`fedexit.data.text.characters`)"
        ) from None
    if not codes or not 1 <= min(codes) <= max(codes) <= len(model.labels):
        raise FedexitError(f"{name} has character ids {codes}; give at least one, each of 1 to {len(model.labels)}")
    if frames_needed(codes) > frames:
        raise FedexitError(
            f"{name}: {frames} frames cannot spell its {len(codes)} characters; leave it out or correct its text"
        )
