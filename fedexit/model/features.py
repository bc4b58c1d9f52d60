"""Compute the frozen convolutions' output once per clip and store it on disk; fine-tuning never changes it.

Processes share the memory-mapped file, and the next run reuses it. All files together stay below
`FEDEXIT_CACHE_GB` (default 8); the least recently used ones are deleted first.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor

from fedexit.data.batches import Example, normalised
from fedexit.data.tasks.contract import Clips
from fedexit.model.backbone import Backbone
from fedexit.model.exits import MultiExitModel
from fedexit.support.arrays import read_record, write_record
from fedexit.support.cache import limit, lock, make_room
from fedexit.support.errors import FedexitError
from fedexit.support.files import replacing
from fedexit.support.paths import data_dir
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress


@dataclass(frozen=True)
class FeatureStore:
    """A file of features (C, F) of many clips.

    file: all clips' float32 numbers, one clip after the other.
    places: first number and frames F of each clip, by id.
    channels: C.
    """

    file: Path
    places: dict[str, tuple[int, int]]
    channels: int

    def __getitem__(self, clip: str) -> Tensor:
        """Return the features (C, F) of the clip with id `clip`, memory-mapped."""
        start, frames = self.places[clip]
        size = self.channels * frames
        return _mapped(self.file)[start : start + size].view(self.channels, frames)


class FrozenFeatures(Sequence[Example]):
    """The examples of `clips` with stored features instead of waveforms."""

    def __init__(self, clips: Clips, store: FeatureStore):
        self.clips, self.store, self.targets = clips, store, clips.targets

    @property
    def channels(self) -> int:
        """Return the number of channels C."""
        return self.store.channels

    @property
    def lengths(self) -> list[int]:
        """Return the frames of each clip."""
        return [self.store.places[clip][1] for clip in self.clips.ids]

    @property
    def content_hash(self) -> str:
        """Return a hash of the clips and of the name of the features' file, which depends on the frozen weights."""
        return hashlib.sha256(f"{self.clips.content_hash} {self.store.file.name}".encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.clips)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        """Return the features (C, F) of clip `index` and its target."""
        return self.store[self.clips.ids[index]], self.targets[index]


def freezer(clips: Clips, backbone: Backbone) -> Callable[[Clips], Sequence[Example]]:
    """Return a function that turns any part of `clips` into features; they are computed here unless the cache has them.

    The cache knows clips by their content. Each clip is convolved alone, so its features do not depend on a batch. If
    they do not all fit into the cache, the function returns waveforms, with a warning, and every round convolves them
    again. Raises FedexitError if the disk is full.
    """
    if (size := stored_bytes(clips, backbone)) > limit():
        warnings.warn(
            f"features of {len(clips)} clips need {size / 1e9:.1f} GB and are not stored: FEDEXIT_CACHE_GB allows "
            f"{limit() / 1e9:g}",
            stacklevel=2,
        )
        return lambda part: part
    store = _stored(clips, backbone, size)
    return lambda part: FrozenFeatures(part, store)


def stored_bytes(clips: Clips, backbone: Backbone) -> int:
    """Return the size of the features of `clips` on disk, by the manifest's durations."""
    return 4 * backbone.channels * int(backbone.frame_lengths(torch.tensor(clips.lengths)).sum())


def _stored(clips: Clips, backbone: Backbone, size: int) -> FeatureStore:
    audio = list(map(clips.corpus.clip_hash, clips.ids))
    digest = hashlib.sha256(repr([audio, clips.max_samples, clips.speed, clips.ids]).encode())
    if (device := backbone.model.device.type) != "cpu":  # whose last digits differ
        digest.update(device.encode())
    for name, tensor in backbone.model.feature_extractor.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    file = data_dir() / "cache" / f"frozen-{digest.hexdigest()[:16]}.f32"
    with lock(file):
        if (layout := read_record(file)) is None:
            if file.is_file():  # damaged, and perhaps mapped
                _mapped.cache_clear()
            make_room(size)
            layout = _compute(clips, backbone, file)
        os.utime(file)
        _mapped(file)  # now, because another process may delete it later to make room
    frames = layout["frames"].numpy()
    starts = np.concatenate([[0], np.cumsum(frames)[:-1]]) * backbone.channels
    places = dict(zip(clips.ids, zip(starts.tolist(), frames.tolist(), strict=True), strict=True))
    return FeatureStore(file, places, backbone.channels)


def _compute(clips: Clips, backbone: Backbone, file: Path) -> dict[str, Tensor]:
    """Write the features as `file`, then its record with the frames of each clip; return the layout."""
    frames = []
    try:
        with replacing(file) as part, one_thread(), part.open("wb") as out:
            for index in progress(range(len(clips)), "convolving clips, once"):
                waveform = normalised(clips[index][0])
                features = backbone.convolve(waveform[None], torch.tensor([len(waveform)]))[0]
                out.write(features.cpu().numpy().tobytes())
                frames.append(features.shape[1])
        layout = {"frames": torch.tensor(frames)}
        write_record(file, layout)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise FedexitError(f"the features cannot be stored ({error.strerror}); make room in {file.parent}") from error
    return layout


@cache
def _mapped(file: Path) -> Tensor:
    """Return all numbers of `file`, mapped once per process; they stay readable there after it is deleted."""
    return torch.from_file(str(file), shared=False, size=file.stat().st_size // 4)


def spec_augment(features: Tensor, masks: int = 2, time: int = 20, channels: float = 0.08) -> Tensor:
    """Return `features` (B, C, F) with random stretches set to zero (SpecAugment, Park et al. 2019, without warping).

    Torch draws them anew for each clip.

    Args:
        features: output of the frozen convolutions.
        masks: stretches per clip and axis.
        time: most frames per stretch; all together cover at most a fifth of the batch's frames.
        channels: largest share of the channels per stretch.
    """
    spread = features[:, None]  # torchaudio masks (B, channel, frequency, time)
    for _ in range(masks):
        spread = torchaudio.functional.mask_along_axis_iid(spread, time, 0.0, axis=3, p=0.2 / masks)
        spread = torchaudio.functional.mask_along_axis_iid(spread, int(channels * features.shape[1]), 0.0, axis=2)
    return spread[:, 0]


def masked_features(model: MultiExitModel, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return `spec_augment` of a batch of `collate` and its lengths in frames; waveforms are convolved first."""
    if clips.dim() == 2:
        clips, lengths = model.backbone.convolve(clips, lengths), model.backbone.frame_lengths(lengths)
    return spec_augment(clips), lengths
