"""Check, hash, normalise, pad and batch examples, which are pairs (clip, target)."""

import hashlib
import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from fedexit.support.errors import FedexitError

Example = tuple[Tensor, int | float | list[int]]
WINDOW = 8  # number of batches whose clips are sorted by length together
_NORMALISED = 1e-3  # largest error of the mean and standard deviation of a normalised clip


def check_example(example: object, name: str) -> None:
    """Raise FedexitError unless `example` is a pair of a clip and a target that a model can be trained on.

    Args:
        example: A waveform (T,) or frozen features (C, F), a float32 tensor without NaN or infinity; and a label's
            index (any integer type), the character ids of a text, a number, or 0 and 1 for each label.
        name: The words that name the clip in the message, e.g. "client ann, clip 3".
    """
    clip, target = _pair(example, name)
    if not isinstance(clip, Tensor):
        raise FedexitError(f"{name} is of type {type(clip).__name__}; give a float32 tensor: torch.as_tensor(clip)")
    if clip.dim() not in (1, 2) or (clip.dim() == 2 and len(clip) <= 2):
        raise FedexitError(f"{name} has shape {tuple(clip.shape)}; give a mono waveform of shape (T,): clip.mean(0)")
    if clip.dtype != torch.float32:
        raise FedexitError(f"{name} is {str(clip.dtype)[6:]}; give float32 in [-1, 1] (16-bit: clip.float() / 32768)")
    if clip.numel() == 0:
        raise FedexitError(f"{name} holds no samples; leave it out")
    if not torch.isfinite(clip).all():
        found = "NaN" if clip.isnan().any() else "an infinite value"
        raise FedexitError(f"{name} holds {found}; repair the recording or leave it out")
    if not _is_target(target):
        raise FedexitError(f"{name} has target {target!r}; give a number, or a list of numbers: see MultiExitModel")


def _pair(example: object, name: str) -> tuple[object, object]:
    if isinstance(example, tuple | list) and len(example) == 2:
        return tuple(example)
    fields = f" with the keys {', '.join(map(str, example))}" if isinstance(example, dict) else ""
    raise FedexitError(f"{name} is a {type(example).__name__}{fields}; give a pair (waveform, target)")


def _is_target(target: object) -> bool:
    if isinstance(target, Tensor | np.ndarray):
        return np.asarray(target).dtype.kind in "biuf" and np.ndim(target) <= 1
    if isinstance(target, list | tuple):
        return all(isinstance(code, numbers.Real | np.bool_) for code in target)
    return isinstance(target, numbers.Real | np.bool_)


def data_digest(data: Sequence[Example]) -> str:
    """Return a hash of all clips and targets in their order. Equal data give equal hashes.

    If the data set has an attribute `content_hash` (str), the hash is made from it and no clip is read. The type of an
    target does not matter (other numbers than integers count in single precision), nor whether a clip is a tensor or an
    array.
    """
    if isinstance(data, ConcatDataset):
        parts: list[Any] = data.datasets
        return hashlib.sha256(repr([data_digest(part) for part in parts]).encode()).hexdigest()
    if hasattr(data, "content_hash"):
        return str(data.content_hash)
    digest = hashlib.sha256()
    for position in range(len(data)):
        clip, target = _pair(data[position], f"clip {position}")
        tensor, codes = torch.as_tensor(clip).detach().cpu().contiguous(), np.asarray(target)
        codes = codes.astype(np.int64 if codes.dtype.kind in "biu" else np.float32)
        digest.update(repr((str(tensor.dtype), tuple(tensor.shape), codes.tolist())).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def collate(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a zero-padded batch of clips, each with zero mean and unit variance (as wav2vec 2.0 expects).

    Args:
        examples: Pairs of a waveform (T,) or frozen features (C, F), float32, and a target.

    Returns:
        Waveforms (B, T) with lengths (B,) in samples, or features (B, C, F) with lengths in frames; then labels or
        numbers (B,), texts (B, L) as character ids, zero-padded, or 0 and 1 for each label (B, labels). Targets are
        integers, or float32 if any target of the batch is not.

    Raises:
        FedexitError: for an example that `check_example` refuses, and for waveforms and features in one batch.
    """
    for position, example in enumerate(examples):
        check_example(example, f"clip {position} of the batch")
    return padded(examples)


def padded(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return `collate(examples)` of examples that are checked already."""
    if not examples:
        raise FedexitError("there are no clips; a split of the corpus may be empty")
    if len({clip.dim() for clip, _ in examples}) > 1:
        raise FedexitError("a batch holds waveforms and features; give clips of one kind")
    clips = [clip if clip.dim() == 2 else normalised(clip) for clip, _ in examples]
    lengths = torch.tensor([clip.shape[-1] for clip in clips])
    batch = torch.stack([torch.nn.functional.pad(clip, (0, int(lengths.max()) - clip.shape[-1])) for clip in clips])
    found = [np.asarray(target) for _, target in examples]
    dtype = torch.float32 if any(one.dtype.kind == "f" and one.size for one in found) else torch.long
    targets = [torch.as_tensor(target, dtype=dtype) for _, target in examples]
    return batch, lengths, torch.nn.utils.rnn.pad_sequence(targets, True) if targets[0].dim() else torch.stack(targets)


def normalised(clip: Tensor) -> Tensor:
    """Return `clip` (T,) with zero mean and unit variance. Raise FedexitError when it is empty."""
    if clip.numel() == 0:
        raise FedexitError("a clip holds no samples; leave it out")
    clip = clip.contiguous()  # torch sums a view in another order, and a worker gets a copy
    return (clip - clip.mean()) / (clip.std(correction=0) + 1e-7)


def standardised(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Return `normalised` clips (B, T) of `lengths` (B,) samples, zero-padded; normalised ones stay bit-identical."""
    inside = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    wide = waveforms.to(torch.promote_types(waveforms.dtype, torch.float32))  # sums overflow in float16
    mean = torch.where(inside, wide, 0).sum(1, keepdim=True) / lengths[:, None]
    centred = torch.where(inside, wide - mean, 0)
    spread = (centred.square().sum(1, keepdim=True) / lengths[:, None]).sqrt()
    ready = (mean.abs() < _NORMALISED) & ((spread - 1).abs() < _NORMALISED)
    return torch.where(ready, waveforms, (centred / (spread + 1e-7)).to(waveforms.dtype))


def checked(data: Sequence[Example], positions: Iterable[int], owner: str = "") -> list[Example]:
    """Return the examples at `positions` of `data`. Raise FedexitError for one that `check_example` refuses."""
    examples = []
    for position in positions:
        examples.append(data[position])
        check_example(examples[-1], f"{owner}clip {position}")
    return examples


def by_length(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Return positions of the examples in batches of `size`, grouped by similar length to save padding.

    Lengths are similar when they differ by less than a factor of about 1.4; the order among these does not change.
    """
    order = sorted(
        range(len(examples)), key=lambda position: round(2 * math.log2(examples[position][0].shape[-1] or 1))
    )
    return [order[start : start + size] for start in range(0, len(order), size)]


def batches(
    data: Sequence[Example], size: int, rng: np.random.Generator, owner: str = ""
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield one epoch of collated batches in an order drawn from `rng`.

    Clips are sorted by length (`by_length`) within windows of `WINDOW` batches, so that few are in memory at once.

    Args:
        data: The examples.
        size: Clips per batch.
        rng: The random stream of the order.
        owner: The words before a clip's position in an error message, e.g. "client ann, ".
    """
    order = rng.permutation(len(data))
    for start in range(0, len(order), WINDOW * size):
        positions = [int(i) for i in order[start : start + WINDOW * size]]
        window = checked(data, positions, owner)
        groups = by_length(window, size)
        for group in rng.permutation(len(groups)):
            yield padded([window[place] for place in groups[group]])
