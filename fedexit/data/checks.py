"""Check clips and batches before a model reads them, so that an error is one sentence and no traceback of torch."""

from collections.abc import Callable, Iterable, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from fedexit.support.errors import FedexitError

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


def check_finite(clip: Tensor, position: int) -> None:
    """Raise FedexitError if the clip at `position` of a batch holds NaN or infinite samples."""
    if not torch.isfinite(clip).all():
        raise FedexitError(f"clip {position} of the batch (from 0) holds NaN or infinite samples; fix it or drop it")


def checked_batch(
    clips: Tensor, lengths: Tensor | None, channels: int, frames: Callable[[int], int], name: str
) -> Tensor:
    """Return the lengths (B,) of a batch that enters a model: those that were given, or all of T or F, on the CPU.

    Args:
        clips: waveforms (B, T) or features (B, C, F).
        lengths: samples or frames of each clip; None for all of T or F.
        channels: C of the model's features.
        frames: number of frames of a clip, from its samples.
        name: the model's name, for messages.

    Raises:
        FedexitError: a shape, type or length is invalid, a clip is shorter than one frame, or there is NaN.
    """
    if not isinstance(clips, Tensor) or not clips.is_floating_point():
        kind = clips.dtype if isinstance(clips, Tensor) else type(clips).__name__
        raise FedexitError(f"waveforms are {kind}; give a tensor of floats in [-1, 1], e.g. integers / 32768")
    shape = tuple(clips.shape)
    if clips.dim() not in (2, 3) or 0 in shape or (clips.dim() == 3 and shape[1] != channels):
        raise FedexitError(
            f"a batch of shape {shape} is neither waveforms (B, T) nor features (B, {channels}, F) of {name}; a clip "
            "is (T,): mix its channels with clip.mean(0), add the batch axis with clip[None]"
        )
    if lengths is None:  # without lengths there is nothing to check, and a GPU need not wait
        shortest, lengths = shape[-1], torch.full((shape[0],), shape[-1], device="cpu")
    else:
        shortest = _shortest(lengths, shape[0], shape[-1])
    if clips.dim() == 2 and frames(shortest) < 1:
        raise FedexitError(f"a clip of {shortest} samples is shorter than one frame of {name}; drop it")
    if clips.device.type == "cpu":  # on a GPU this check would force a wait; `collate` has checked already
        for position, clip in enumerate(clips):
            check_finite(clip, position)
    return lengths.to(torch.long)


def _shortest(lengths: Tensor, clips: int, longest: int) -> int:
    """Return the least of `lengths`. Raises FedexitError unless there is one integer per clip, 1 to `longest`."""
    if not isinstance(lengths, Tensor) or lengths.dtype not in _WHOLE or lengths.shape != (clips,):
        raise FedexitError(f"lengths must be a tensor of {clips} integers, one per clip, not {str(lengths)[:80]}")
    least, most = int(lengths.min()), int(lengths.max())
    if least < 1 or most > longest:
        raise FedexitError(f"lengths are {least} to {most}, but the batch allows 1 to {longest}")
    return least


def checked_labels(labels: Iterable[object]) -> list:
    """Return the labels as Python objects. Raises FedexitError for none, no list, and what JSON cannot keep."""
    if isinstance(labels, bytes | Set) or not isinstance(labels, Iterable):  # a set has no fixed order
        raise FedexitError(f"labels must be a list of names in the order of the logits, not {labels!r}")
    found = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if not found:
        raise FedexitError("labels is empty; name at least one class")
    for label in found:
        if not isinstance(label, str | int | float | None):
            raise FedexitError(f"label {label!r} is a {type(label).__name__}; give strings or numbers")
    return found


def check_spelling_labels(labels: Sequence[object]) -> None:
    """Raise FedexitError for labels of texts that are not strings or are listed twice."""
    for label in labels:
        if not isinstance(label, str) or not label or labels.count(label) > 1:
            raise FedexitError(f"label {label!r} cannot spell texts; give each character once, as a string")
