"""The frozen convolutions' output, computed once per clip and kept on disk: fine-tuning never changes it.

Processes share the memory-mapped file, and the next run finds it again. All files together stay below
`FEDEXIT_CACHE_GB` (default 8); the ones that were used longest ago make room.
"""

import fcntl
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from fedexit.support.errors import FedexitError
from fedexit.support.paths import data_dir
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress


@dataclass(frozen=True)
class FeatureStore:
    """A file of features (C, F) of many clips: `places` says at which number a clip's begin, and its frames F."""

    file: Path
    places: dict[str, tuple[int, int]]
    channels: int

    def __getitem__(self, clip: str) -> Tensor:
        """Features (C, F) of the clip with id `clip`, in the file's memory."""
        start, frames = self.places[clip]
        size = self.channels * frames
        return _mapped(self.file)[start : start + size].view(self.channels, frames)


class FrozenFeatures(Sequence[Example]):
    """The same examples as `clips`, with the stored features in the waveform's place."""

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
        """Return a hash of the clips and of the file of their features, whose name holds what it was made from."""
        return hashlib.sha256(f"{self.clips.content_hash} {self.store.file.name}".encode()).hexdigest()

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def __getitem__(self, index: int) -> Example:
        """Features (C, F) of clip `index`, and its label."""
        return self.store[self.clips.ids[index]], self.targets[index]


def freezer(clips: Clips, backbone: Backbone) -> Callable[[Clips], Sequence[Example]]:
    """What turns any part of `clips` into its features, which are computed here unless the cache has them.

    Each clip is convolved alone, so what it gives does not depend on a batch. If all do not fit into the cache, the
    parts stay waveforms, a warning says so, and every round convolves them again.
    Raises FedexitError when the disk is full.
    """
    if (size := _bytes(clips, backbone)) > limit():
        warnings.warn(
            f"features of {len(clips)} clips need {size / 1e9:.1f} GB and are not kept: FEDEXIT_CACHE_GB allows "
            f"{limit() / 1e9:g}",
            stacklevel=2,
        )
        return lambda part: part
    store = _stored(clips, backbone, size)
    return lambda part: FrozenFeatures(part, store)


def limit() -> int:
    """Bytes that all feature files may take together. Raises FedexitError when FEDEXIT_CACHE_GB is no number."""
    wish = os.environ.get("FEDEXIT_CACHE_GB", "8")
    try:
        return int(float(wish) * 1e9)
    except ValueError:
        raise FedexitError(f"FEDEXIT_CACHE_GB is {wish!r}; give a number of gigabytes") from None


def feature_files() -> dict[Path, int]:
    """Bytes of the feature files in the cache, the one used longest ago first."""
    found = []
    for file in (data_dir() / "cache").glob("frozen-*.f32"):
        with suppress(FileNotFoundError):  # another process made room just now
            found.append((file.stat().st_mtime, file, file.stat().st_size))
    return {file: size for _, file, size in sorted(found)}


def _bytes(clips: Clips, backbone: Backbone) -> int:
    """What the features of `clips` take on disk, by the manifest's durations."""
    return 4 * backbone.channels * int(backbone.frame_lengths(torch.tensor(clips.lengths)).sum())


def _stored(clips: Clips, backbone: Backbone, size: int) -> FeatureStore:
    digest = hashlib.sha256(repr([clips.corpus.checksum, clips.max_samples, clips.speed, clips.ids]).encode())
    for name, tensor in backbone.model.feature_extractor.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    file = data_dir() / "cache" / f"frozen-{digest.hexdigest()[:16]}.f32"
    with _alone(file.with_suffix(".lock")):
        if file.is_file():
            os.utime(file)
        else:
            _make_room(size)
            _compute(clips, backbone, file)
        frames = np.load(file.with_suffix(".npy"))
        _mapped(file)  # here, as others may delete it later to make room
    starts = np.concatenate([[0], np.cumsum(frames)[:-1]]) * backbone.channels
    places = dict(zip(clips.ids, zip(starts.tolist(), frames.tolist(), strict=True), strict=True))
    return FeatureStore(file, places, backbone.channels)


def _compute(clips: Clips, backbone: Backbone, file: Path) -> None:
    """Write the frames of each clip beside `file`, then the features as `file`: it is there when all is."""
    frames, part = [], file.with_suffix(".part")
    try:
        with part.open("wb") as out, one_thread():
            for index in progress(range(len(clips)), "convolving clips, once"):
                waveform = normalised(clips[index][0])
                features = backbone.convolve(waveform[None], torch.tensor([len(waveform)]))[0]
                out.write(features.numpy().tobytes())
                frames.append(features.shape[1])
        np.save(file.with_suffix(".npy"), np.array(frames))
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FedexitError(f"the features could not be kept ({error.strerror}); make room in {file.parent}") from error


def _make_room(size: int) -> None:
    """Delete the feature files used longest ago until `size` bytes more are within the limit."""
    files = feature_files()
    total = sum(files.values())
    for file, held in files.items():
        if total + size <= limit():
            break
        # one that another process is about to open is not the one to go; those that are open stay readable
        with suppress(BlockingIOError), _alone(file.with_suffix(".lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
            file.unlink(missing_ok=True)
            file.with_suffix(".npy").unlink(missing_ok=True)
            total -= held


@contextmanager
def _alone(lock: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Wait until no other process is in here, or raise as `how` says; however it ends, the system opens the lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, how)
        yield


@cache
def _mapped(file: Path) -> Tensor:
    """All numbers of `file`: mapped once in a process, they stay readable there when it is deleted."""
    return torch.from_file(str(file), shared=False, size=file.stat().st_size // 4)


def spec_augment(features: Tensor, masks: int = 2, time: int = 20, channels: float = 0.08) -> Tensor:
    """`features` (B, C, F) with random stretches set to zero (SpecAugment, Park et al. 2019, without warping).

    Each clip has `masks` of up to `time` frames, but no more than a fifth of the batch's frames in all, and as many of
    up to a share `channels` of the channels. Randomness is torch's.
    """
    spread = features[:, None]  # torchaudio masks (B, channel, frequency, time)
    for _ in range(masks):
        spread = torchaudio.functional.mask_along_axis_iid(spread, time, 0.0, axis=3, p=0.2 / masks)
        spread = torchaudio.functional.mask_along_axis_iid(spread, int(channels * features.shape[1]), 0.0, axis=2)
    return spread[:, 0]


def masked_features(model: MultiExitModel, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """`spec_augment` of a batch of `collate`, and its lengths in frames; waveforms are convolved first."""
    if clips.dim() == 2:
        clips, lengths = model.backbone.convolve(clips, lengths), model.backbone.frame_lengths(lengths)
    return spec_augment(clips), lengths
