"""Batches of clips: normalised waveforms, padding, and batches of clips of similar length."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedexit.data.checks import as_target, check_example, check_finite
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
    for position, example in enumerate(examples):
        check_example(example, position)
        check_finite(example[0], position)
    clips = [clip if clip.dim() == 2 else normalised(clip) for clip, _ in examples]
    lengths = torch.tensor([clip.shape[-1] for clip in clips])
    batch = torch.stack([torch.nn.functional.pad(clip, (0, int(lengths.max()) - clip.shape[-1])) for clip in clips])
    targets = [as_target(target) for _, target in examples]
    if len({target.dim() for target in targets}) > 1:
        raise FedexitError("a batch holds labels and texts; give every clip the same kind of target")
    return batch, lengths, torch.nn.utils.rnn.pad_sequence(targets, True) if targets[0].dim() else torch.stack(targets)


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
    for position, example in enumerate(examples):
        check_example(example, position)
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
