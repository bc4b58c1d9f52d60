"""Inspect all clips and targets of a data set before training, so that no clip stops it hours later."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from fedexit.data.batches import Example, check_example
from fedexit.data.text import frames_needed
from fedexit.support.errors import FedexitError, first_line

KINDS = {  # kinds of targets: what each clip has
    "label": "the index of a label, 0 to {last}",
    "text": "a text's character ids, each from 1 to {labels}",
    "number": "one finite number",
    "multi-label": "a list of 0 or 1 for each of the labels, {labels} in all",
}


def check_clips(
    data: Sequence[Example],
    owner: str,
    channels: int,
    frames: Callable[[Tensor], Tensor],
    labels: int,
    kind: str,
    spells: bool = False,
    start: int = 0,
) -> tuple[list[int], bool]:
    """Check all clips of `data`; return their lengths, and whether they are features (lengths in frames).

    Data sets with `lengths`, `targets` and `channels`, such as `Clips`, are checked by these attributes alone.
    The clips of other data sets are read.

    Args:
        data: The clips and targets.
        owner: The words before a clip's position in a message, e.g. "client ann".
        channels: Channels C of the model's features.
        frames: The function from lengths in samples (N,) to numbers of frames (N,).
        labels: Number of labels, or of characters.
        kind: The kind of the targets, a key of `KINDS`.
        spells: Whether CTC must be able to spell each text in its clip's frames; other targets ignore it.
        start: Number of the first clip, for messages.

    Raises FedexitError for a clip that `check_example` refuses, a clip of another kind or shorter than one frame, a
    target out of range and a text that is too long.
    """
    check_sized(data, owner)
    found = list(_measured(data, owner, start))
    lengths, cached = [length for length, _, _ in found], bool(found) and found[0][1] > 0
    counts = lengths if cached else frames(torch.tensor(lengths, dtype=torch.long)).tolist()
    for position, (length, width, target) in enumerate(found):
        name = f"{owner}, clip {start + position}"
        if width not in (0, channels):
            raise FedexitError(f"{name} has {width} channels; give a mono waveform, or features of {channels}")
        if (width > 0) != cached:
            raise FedexitError(f"{name} is not of the same kind as clip 0; give only waveforms, or only features")
        if counts[position] < 1:
            raise FedexitError(f"{name} is shorter than one frame ({length} samples); leave it out")
        codes = _codes(target, labels, kind, name)
        if not spells or kind != "text":
            continue
        if not codes:
            raise FedexitError(f"{name} has an empty text; give at least one character, or leave the clip out")
        if (need := frames_needed(codes)) > counts[position]:
            raise FedexitError(
                f"{name} has {counts[position]} frames, and its text of {len(codes)} characters needs {need} (CTC); "
                "shorten the text or leave the clip out"
            )
    return lengths, cached


def check_sized(data: object, owner: str) -> None:
    """Raise FedexitError unless `data` has a length and gives its clips by number."""
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise FedexitError(f"data of {owner} are a {type(data).__name__}; give a list of pairs (waveform, target)")


def example_at(data: Sequence[Example], position: int, name: str) -> Example:
    """Return the clip and the target at `position` of `data`. Raise FedexitError, with `name`, if there is none."""
    try:
        return data[position]
    except (KeyError, IndexError) as error:
        raise FedexitError(
            f"{name} cannot be read ({type(error).__name__}: {first_line(error)}); a {type(data).__name__} must give "
            "pairs (waveform, target) for the numbers 0, 1, 2 ..."
        ) from error


def _codes(target: object, labels: int, kind: str, name: str) -> list[int]:
    """Return a target as a list of codes or numbers. Raise FedexitError when it is not one of its `kind`."""
    codes = np.asarray(target)
    whole, real = codes.dtype.kind in "biu" or not codes.size, codes.dtype.kind in "biuf"
    fits = {
        "label": lambda: codes.ndim == 0 and whole and 0 <= codes < labels,
        "text": lambda: codes.ndim == 1 and whole and ((codes > 0) & (codes <= labels)).all(),
        "number": lambda: codes.ndim == 0 and real and np.isfinite(codes),
        "multi-label": lambda: codes.shape == (labels,) and real and np.isin(codes, (0, 1)).all(),
    }
    if not fits[kind]():
        wanted = KINDS[kind].format(labels=labels, last=labels - 1)
        raise FedexitError(f"{name} has target {target!r}; give {wanted}")
    return codes.reshape(-1).tolist()


def _measured(data: Any, owner: str, start: int = 0) -> Iterator[tuple[int, int, object]]:
    """Yield length, channels (0 for a waveform) and target of each clip. The first clip is number `start`."""
    if isinstance(data, ConcatDataset):
        for part, before in zip(data.datasets, [0, *data.cumulative_sizes], strict=False):
            yield from _measured(part, owner, start + before)
    elif all(hasattr(data, name) for name in ("lengths", "targets", "channels")):
        for length, target in zip(data.lengths, data.targets, strict=True):
            yield length, data.channels, target
    else:
        for position in range(len(data)):
            example = example_at(data, position, f"{owner}, clip {start + position}")
            check_example(example, f"{owner}, clip {start + position}")
            clip, target = example
            yield clip.shape[-1], len(clip) if clip.dim() == 2 else 0, target
