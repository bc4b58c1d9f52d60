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
    """A zero-padded batch of clips, each of zero mean and unit variance (as wav2vec 2.0 expects).

    Returns waveforms (B, T) float32, lengths (B,) samples, labels (B,), of texts (B, L) with zeros behind. Clips that
    are frozen features already, (C, F), come back as (B, C, F) with lengths in frames. Raises FedexitError for an empty
    clip.
    """
    clips = [clip if clip.dim() == 2 else normalised(clip) for clip, _ in examples]
    lengths = torch.tensor([clip.shape[-1] for clip in clips])
    batch = torch.stack([torch.nn.functional.pad(clip, (0, int(lengths.max()) - clip.shape[-1])) for clip in clips])
    targets = [torch.tensor(target, dtype=torch.long) for _, target in examples]
    return batch, lengths, torch.nn.utils.rnn.pad_sequence(targets, True) if targets[0].dim() else torch.stack(targets)


def normalised(clip: Tensor) -> Tensor:
    """`clip` (T,) with zero mean and unit variance. Raises FedexitError when it is empty."""
    if clip.numel() == 0:
        raise FedexitError("a clip holds no samples; drop it from the manifest")
    return (clip - clip.mean()) / (clip.std(correction=0) + 1e-7)


def by_length(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Positions of the examples in batches of `size`, clips of like length together: little of a batch is padding.

    Like is what differs by less than a factor of about 1.4; among these the order stays as it is, drawn or listed.
    """
    order = sorted(
        range(len(examples)), key=lambda position: round(2 * math.log2(examples[position][0].shape[-1] or 1))
    )
    return [order[start : start + size] for start in range(0, len(order), size)]


def batches(data: Sequence[Example], size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch of collated batches in an order drawn from `rng`.

    Clips are sorted by length (`by_length`) within stretches of `WINDOW` batches only, so that few are held at once.
    """
    order = rng.permutation(len(data))
    for start in range(0, len(order), WINDOW * size):
        window = [data[int(i)] for i in order[start : start + WINDOW * size]]
        groups = by_length(window, size)
        for group in rng.permutation(len(groups)):
            yield collate([window[position] for position in groups[group]])
