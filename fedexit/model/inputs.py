"""Check a batch where it enters a model."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedexit.support.errors import FedexitError

if TYPE_CHECKING:
    from fedexit.model.backbone import Backbone

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


def checked_batch(backbone: "Backbone", clips: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the batch in the weights' precision, and its lengths (B,) on its device.

    Args:
        backbone: the reader; its name, channels and frame lengths decide.
        clips: waveforms (B, T) or features (B, C, F).
        lengths: (B,) samples or frames of each clip; None for all of T or F.

    Raises:
        FedexitError: for shapes, types, lengths and samples that cannot be right.
    """
    if not isinstance(clips, Tensor) or not clips.is_floating_point():
        kind = clips.dtype if isinstance(clips, Tensor) else type(clips).__name__
        raise FedexitError(f"waveforms are {kind}; give a tensor of floats in [-1, 1], e.g. integers / 32768")
    shape = tuple(clips.shape)
    if clips.dim() not in (2, 3) or 0 in shape or (clips.dim() == 3 and shape[1] != backbone.channels):
        raise FedexitError(
            f"a batch of shape {shape} is neither waveforms (B, T) nor features (B, {backbone.channels}, F) of "
            f"{backbone.name}; a clip is (T,): drop its channel axis with clip.mean(0), add the batch axis with [None]"
        )
    if lengths is None:  # nothing to check, so that a GPU need not wait
        shortest, lengths = shape[-1], clips.new_full((shape[0],), shape[-1], dtype=torch.long)
    else:
        shortest = _shortest(lengths, shape[0], shape[-1])
    if clips.dim() == 2 and backbone.frame_lengths(shortest) < 1:
        raise FedexitError(f"a clip of {shortest} samples is shorter than one frame of {backbone.name}; drop it")
    if clips.device.type == "cpu":  # a GPU would have to wait for the answer; `collate` has looked already
        finite = torch.isfinite(clips).flatten(1).all(1)
        if not finite.all():
            number = int(finite.int().argmin())
            raise FedexitError(f"clip {number} of the batch (from 0) holds NaN or infinite samples; drop it or fix it")
    return clips.to(backbone.model.dtype), lengths.to(clips.device, torch.long)


def _shortest(lengths: Tensor, clips: int, longest: int) -> int:
    """Return the least of `lengths`. Raises FedexitError unless they are one whole number per clip, 1 to `longest`."""
    if not isinstance(lengths, Tensor) or lengths.dtype not in _WHOLE or lengths.shape != (clips,):
        raise FedexitError(f"lengths must be a tensor of {clips} integers, one per clip, not {lengths!r:.80}")
    least, most = int(lengths.min()), int(lengths.max())
    if least < 1 or most > longest:
        raise FedexitError(f"lengths are {least} to {most}, but the batch allows 1 to {longest}")
    return least
