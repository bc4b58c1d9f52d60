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
    """Return a zero-padded batch of clips, each with zero mean and unit variance (as wav2vec 2.0 expects).

    Args:
        examples: pairs of a waveform (T,) or frozen features (C, F), and a label or the character ids of a text.

    Returns:
        Waveforms (B, T) float32 or features (B, C, F); lengths (B,) in samples or frames; labels (B,) or character ids
        (B, L), zero-padded.

    Raises:
        FedexitError: a clip is empty.
    """
    clips = [clip if clip.dim() == 2 else normalised(clip) for clip, _ in examples]
    lengths = torch.tensor([clip.shape[-1] for clip in clips])
    batch = torch.stack([torch.nn.functional.pad(clip, (0, int(lengths.max()) - clip.shape[-1])) for clip in clips])
    targets = [torch.tensor(target, dtype=torch.long) for _, target in examples]
    return batch, lengths, torch.nn.utils.rnn.pad_sequence(targets, True) if targets[0].dim() else torch.stack(targets)


def normalised(clip: Tensor) -> Tensor:
    """Return `clip` (T,) with zero mean and unit variance; raise FedexitError if it is empty."""
    if clip.numel() == 0:
        raise FedexitError("a clip holds no samples; remove it from the manifest")
    return (clip - clip.mean()) / (clip.std(correction=0) + 1e-7)


def by_length(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Return positions of the examples in batches of `size`; clips of similar length share a batch to save padding.

    Lengths are similar if they differ by less than a factor of about 1.4. Among these clips the order is kept.
    """
    order = sorted(
        range(len(examples)), key=lambda position: round(2 * math.log2(examples[position][0].shape[-1] or 1))
    )
    return [order[start : start + size] for start in range(0, len(order), size)]


def batches(data: Sequence[Example], size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield one epoch of collated batches in an order drawn from `rng`.

    Clips are sorted by length (`by_length`) within stretches of `WINDOW` batches, so that few are in memory at once.
    """
    order = rng.permutation(len(data))
    for start in range(0, len(order), WINDOW * size):
        window = [data[int(i)] for i in order[start : start + WINDOW * size]]
        groups = by_length(window, size)
        for group in rng.permutation(len(groups)):
            yield collate([window[position] for position in groups[group]])
