"""Batches of clips: normalised waveforms, padding, and batches of clips of similar length."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedexit.support.errors import FedexitError

Example = tuple[Tensor, int | list[int]]
WINDOW = 8  # batches whose clips are sorted by length together


def collate(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a zero-padded batch of clips, each with mean 0 and variance 1 (as wav2vec 2.0 expects).

    Args:
        examples: pairs (clip, target). A clip is a float tensor (T,) at 16 kHz, or its features (C, F). A target is the
            index of a label, or a list of characters from 1.

    Returns:
        Waveforms (B, T) and lengths (B,) in samples, or features (B, C, F) and lengths in frames; labels (B,), or
        texts (B, L), zero-padded.

    Raises:
        FedexitError: for an empty clip, NaN or infinite samples, other shapes or types, and other targets.
    """
    for position, (clip, _) in enumerate(examples):
        _check_clip(clip, position)
    clips = [clip if clip.dim() == 2 else normalised(clip) for clip, _ in examples]
    lengths = torch.tensor([clip.shape[-1] for clip in clips])
    batch = torch.stack([torch.nn.functional.pad(clip, (0, int(lengths.max()) - clip.shape[-1])) for clip in clips])
    targets = [_target(target) for _, target in examples]
    if len({target.dim() for target in targets}) > 1:
        raise FedexitError("a batch holds labels and texts; give every clip the same kind of target")
    return batch, lengths, torch.nn.utils.rnn.pad_sequence(targets, True) if targets[0].dim() else torch.stack(targets)


def _check_clip(clip: object, position: int) -> None:
    """Raise FedexitError unless `clip` is a finite float tensor (T,) or (C, F)."""
    about = f"clip {position} of the batch (from 0)"
    if not isinstance(clip, Tensor):
        raise FedexitError(f"{about} is a {type(clip).__name__}; give a float tensor (T,), e.g. torch.from_numpy(clip)")
    if not clip.is_floating_point():
        raise FedexitError(f"{about} holds {clip.dtype}; give floats in [-1, 1], e.g. 16-bit samples / 32768")
    if clip.dim() not in (1, 2) or (clip.dim() == 2 and len(clip) < 3):
        raise FedexitError(f"{about} has the shape {tuple(clip.shape)}; a clip is (T,): mix channels with clip.mean(0)")
    if not torch.isfinite(clip).all():
        raise FedexitError(f"{about} holds NaN or infinite samples; fix it or drop it")


def _target(target: object) -> Tensor:
    """Return a label (an index) or a text (a list of characters) as a tensor of integers."""
    try:
        found = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.dim() > 1 or (found.numel() and (found.is_floating_point() or found.is_complex())):
        raise FedexitError(f"target {target!r} is neither the index of a label nor a list of characters from 1")
    return found.long()


def normalised(clip: Tensor) -> Tensor:
    """Return `clip` (T,) with mean 0 and variance 1. Raises FedexitError if it is empty."""
    if clip.numel() == 0:
        raise FedexitError("a clip holds no samples; drop it from the manifest")
    return (clip - clip.mean()) / (clip.std(correction=0) + 1e-7)


def by_length(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Return the positions of the examples in batches of `size`, clips of similar length together.

    Lengths are similar if they differ by less than a factor of about 1.4; similar ones keep their order. So little of
    a batch is padding. Raises FedexitError for an example that is not a pair.
    """
    for example in examples:
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise FedexitError(f"an example is a pair (clip, target), not a {type(example).__name__}")
    order = sorted(
        range(len(examples)), key=lambda position: round(2 * math.log2(examples[position][0].shape[-1] or 1))
    )
    return [order[start : start + size] for start in range(0, len(order), size)]


def batches(data: Sequence[Example], size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield one epoch of collated batches in an order drawn from `rng`.

    Clips are sorted by length (`by_length`) within stretches of `WINDOW` batches, so that few are held at once.
    """
    order = rng.permutation(len(data))
    for start in range(0, len(order), WINDOW * size):
        window = [data[int(i)] for i in order[start : start + WINDOW * size]]
        groups = by_length(window, size)
        for group in rng.permutation(len(groups)):
            yield collate([window[position] for position in groups[group]])
