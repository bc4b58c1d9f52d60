"""Read the recordings that a user asks about: files of any format and rate, or waveforms in memory."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedexit.data.audio import RATES, as_clip, read_clip
from fedexit.data.batches import Example
from fedexit.support.checks import few, listed, whole_number
from fedexit.support.errors import FedexitError


class Recordings(Sequence[Example]):
    """Recordings, read on access: item i is (waveform (T,) at 16 kHz, `target`).

    Attributes:
        names: of each recording, the path of its file, or its position if it is a waveform.

    Args:
        given: one recording or several: paths of audio files, or waveforms (T,), tensors or arrays of any number type.
        rate: rate of the waveforms in Hz; None if all recordings are files.
        target: the target of every item.

    Raises:
        FedexitError: for no recordings, waveforms without a rate, and a rate without waveforms.
    """

    def __init__(self, given: Any, rate: int | None, target: int | list[int]):
        if isinstance(given, np.ndarray) and given.dtype.kind in "OUS":  # a column of paths, or of waveforms
            given = given.tolist()
        alone = isinstance(given, str | os.PathLike) or _is_waveform(given)
        self.given = [given] if alone else listed(given, "recordings", "files or waveforms")
        self.rate, self.target = rate, target
        if not len(self.given):
            raise FedexitError("the list of recordings is empty; give at least one file or waveform")
        waveforms = [_is_waveform(one) for one in self.given]
        if any(waveforms) and rate is None:
            raise FedexitError("a waveform does not state its rate; give it in Hz, e.g. rate=16000")
        if rate is not None and not RATES[0] <= whole_number(rate, "rate") <= RATES[1]:
            raise FedexitError(f"rate is {rate} Hz; give {RATES[0]} to {RATES[1]}")
        if rate is not None and not any(waveforms):
            raise FedexitError(f"rate={rate} is for waveforms, and files state their own rate; leave it out")
        self.names = [at if own else str(one) for at, (one, own) in enumerate(zip(self.given, waveforms, strict=True))]

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.given)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        """Return recording `index` and the target. Raises FedexitError for one that cannot be read."""
        one = self.given[index]
        if _is_waveform(one):
            return as_clip(_mono(one, f"waveform {index}")[None], int(self.rate or 0), f"waveform {index}"), self.target
        if not isinstance(one, str | os.PathLike):
            kind = type(one).__name__
            raise FedexitError(f"recording {index} is a {kind}; give the path of a file, or a tensor or array (T,)")
        return read_clip(one), self.target  # type: ignore[arg-type]  # any path

    def check(self, frames: Callable[[int], int]) -> None:
        """Read every recording once, and raise FedexitError that names all bad ones.

        `frames` gives the frames of a clip from its samples; a clip needs at least one.
        """
        bad = {}
        for index, name in enumerate(self.names):
            try:
                if frames(len(self[index][0])) < 1:
                    raise FedexitError(f"{name}: shorter than one frame of the model; leave it out")
            except FedexitError as error:
                bad[str(name)] = str(error)
        if bad:
            first, *others = bad
            more = f" ({len(others)} more cannot be read: {few(others)})" if others else ""
            raise FedexitError(bad[first] + more)


def _is_waveform(one: object) -> bool:
    return isinstance(one, Tensor | np.ndarray)


def _mono(samples: Any, name: str) -> Tensor:
    """Return a waveform (T,) or (1, T) as float32 (T,); its scale does not matter, because models normalise it."""
    array = samples.detach().cpu().to(_wide(samples)).numpy() if isinstance(samples, Tensor) else samples
    if array.dtype.kind not in "iuf":
        raise FedexitError(f"{name} holds values of type {array.dtype}; give real numbers")
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise FedexitError(
            f"{name} has shape {tuple(array.shape)}; give (T,): mix channels by their mean, and give clips as a list"
        )
    clip = torch.from_numpy(array.astype(np.float32))
    if not len(clip) or not torch.isfinite(clip).all():
        raise FedexitError(f"{name} holds no samples, NaN or infinity; repair it or leave it out")
    return clip


def _wide(samples: Tensor) -> torch.dtype:
    """Return the type of a tensor, or float32 for a type that NumPy lacks."""
    return torch.float32 if samples.dtype == torch.bfloat16 else samples.dtype
