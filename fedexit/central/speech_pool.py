"""Store unlabelled speech for pre-training in one memory-mapped array, and cut batches from it.

Every batch is a function of the seed and its number, so an interrupted run needs no stored position to resume.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import resample

from fedexit.data.batches import normalised
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus, open_corpus
from fedexit.support.arrays import read_record, write_record
from fedexit.support.errors import FedexitError
from fedexit.support.files import replacing
from fedexit.support.locks import owned
from fedexit.support.paths import data_dir
from fedexit.support.progress import progress
from fedexit.support.streams import numpy_stream

CROPS = {1.0: 0.25, 2.0: 0.5, 4.0: 0.25}  # seconds: probability
SPEEDS = (0.9, 1.0, 1.1)


class Rows(NamedTuple):
    """The rows of a batch, and where each was cut.

    Attributes:
        waveforms: (B, T) float32, each row of zero mean and unit variance.
        clips: (B,) number of each row's clip in the pool.
        offsets: (B,) sample of the clip where the row starts; negative if the row starts with zeros.
        speed: samples of the clip per sample of the row.
    """

    waveforms: Tensor
    clips: np.ndarray
    offsets: np.ndarray
    speed: float


class SpeechPool:
    """Clips stored end to end.

    Attributes:
        samples: int16 samples of all clips at 16 kHz.
        lengths: number of samples of each clip.
        starts: position of each clip's first sample.
        file: file of the samples in the cache, whose name holds a checksum of the audio; None for a pool in memory.
    """

    def __init__(self, samples: np.ndarray, lengths: np.ndarray, file: Path | None = None):
        self.samples, self.lengths, self.file = samples, lengths, file
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    @classmethod
    def open(cls, file: Path) -> "SpeechPool":
        """Return the pool whose samples are in `file`. Raises FedexitError if it is damaged."""
        if (layout := read_record(file)) is None:
            raise FedexitError(f"{file} is damaged; run again to decode the speech anew")
        return cls(np.memmap(file, np.int16, mode="r"), layout["lengths"].numpy(), file)

    def clip(self, number: int) -> np.ndarray:
        """Return the samples (T,) of a clip."""
        return self.samples[self.starts[number] : self.starts[number] + self.lengths[number]]

    @property
    def hours(self) -> float:
        """Return the hours of audio."""
        return float(self.lengths.sum()) / SAMPLE_RATE / 3600

    def batch(self, seconds: float, *name: str | int, speeds: Sequence[float] = SPEEDS) -> Rows:
        """Return a batch.

        All rows share one length, drawn from those of CROPS that some clip fills, and one speed (Ko et al. 2015). Every
        second of speech is equally likely. A clip shorter than the shortest row is placed at a random position in its
        row and padded with zeros.

        Args:
            seconds: speech in the batch; it has at least one row.
            name: the name of the random stream.
            speeds: speeds to draw from, multiples of 0.1.
        """
        random = numpy_stream(*name)
        filled = {crop: share for crop, share in CROPS.items() if self._filling(crop * max(speeds)).any()}
        crops, shares = list(filled or {min(CROPS): 1}), np.array(list(filled.values() or [1]))
        crop, speed = random.choice(crops, p=shares / shares.sum()), float(random.choice(speeds))
        size, length = max(1, int(seconds / crop)), int(crop * speed * SAMPLE_RATE)
        weights = self.lengths * self._filling(crop * speed) if crop > min(CROPS) else self.lengths
        clips = random.choice(len(weights), size, p=weights / weights.sum())
        cuts = [self._cut(clip, length, random) for clip in clips]
        rows, offsets = torch.stack([torch.from_numpy(row) for row, _ in cuts]), np.array([place for _, place in cuts])
        if speed != 1:
            rows = resample(rows, round(10 * speed), 10)[:, : int(crop * SAMPLE_RATE)]
        return Rows(torch.stack([normalised(row) for row in rows]), clips, offsets, speed)

    def _filling(self, seconds: float) -> np.ndarray:
        """Return which clips last at least `seconds`."""
        return self.lengths >= int(seconds * SAMPLE_RATE)

    def _cut(self, clip: int, length: int, random: np.random.Generator) -> tuple[np.ndarray, int]:
        """Return a row (length,) of a clip, and the sample of the clip where it starts."""
        samples = self.clip(clip)
        room = len(samples) - length
        offset = int(random.integers(abs(room) + 1))
        if room >= 0:
            return samples[offset : offset + length].astype(np.float32), offset
        row = np.zeros(length, np.float32)
        row[offset : offset + len(samples)] = samples
        return row, -offset


def open_speech(corpora: Sequence[str]) -> list[Corpus]:
    """Open `corpora` (names or folders) and check that they can make a training and a development pool.

    Raises:
        FedexitError: for a corpus that `open_corpus` refuses, one that is listed twice, and a split without clips.
    """
    opened = [open_corpus(name) for name in corpora]
    folders = [corpus.folder.resolve() for corpus in opened]
    if len(set(folders)) < len(folders):
        raise FedexitError(f"corpora {', '.join(corpora)} name one folder twice; list each corpus once")
    for split in ("train", "dev"):
        if not any(len(corpus.select(split)) for corpus in opened):
            raise FedexitError(f"no clips with the split {split!r} in {', '.join(corpora)}; add some to a manifest")
    return opened


def open_pool(corpora: Sequence[Corpus], split: str) -> SpeechPool:
    """Return the pool of the clips in `split` of `corpora`, decoded once into the cache.

    The cache key is the content of the corpora (`Corpus.checksum`), so changed audio gets a new pool.
    """
    key = hashlib.sha256(" ".join(corpus.checksum for corpus in corpora).encode()).hexdigest()[:12]
    file = data_dir() / "cache" / f"pool-{key}-{split}.i16"
    with owned(file, wait=True):
        if read_record(file) is None:
            _decode(corpora, split, file)
        return SpeechPool.open(file)


def augmented(batch: Tensor, *name: str | int) -> Tensor:
    """Return `batch` (B, T) with another row or noise mixed into some rows, normalised again.

    A quarter of the rows gets a stretch of another row, a quarter a stretch of noise, each up to half of the row, as in
    WavLM (Chen et al. 2022, sec. III-B). The other row is 5 dB louder to 5 dB quieter; noise is 5 dB louder to 20 dB
    quieter, white to red. The codes to predict stay those of the clean row. A gain of whole rows would have no effect,
    because rows are normalised.

    Args:
        batch: waveforms (B, T).
        name: the name of the random stream.
    """
    random, mixed = numpy_stream(*name), batch.clone()
    size, length = batch.shape
    for row in range(size):
        kind = random.choice(["other", "noise", "clean"], p=[0.25, 0.25, 0.5])
        if kind == "clean":
            continue
        span = int(random.integers(1, length // 2 + 1))
        start, source = int(random.integers(length - span + 1)), int(random.integers(length - span + 1))
        if kind == "other":
            added = batch[(row + 1 + int(random.integers(max(1, size - 1)))) % size, source : source + span]
            decibels = random.uniform(-5, 5)
        else:
            added, decibels = _noise(span, random), random.uniform(-5, 20)
        mixed[row, start : start + span] += added * 10 ** (-decibels / 20)
    return torch.stack([normalised(row) for row in mixed])


def _noise(length: int, random: np.random.Generator) -> Tensor:
    """Return noise (length,) of unit variance with power spectrum 1 / f^s, s drawn between 0 (white) and 2 (red)."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum /= np.maximum(1, np.arange(len(spectrum))) ** (random.uniform(0, 2) / 2)
    noise = np.fft.irfft(spectrum, length)
    return torch.from_numpy((noise / (noise.std() + 1e-9)).astype(np.float32))


def _decode(corpora: Sequence[Corpus], split: str, file: Path) -> None:
    """Write the samples as `file`, then its record with the lengths."""
    lengths = []
    with replacing(file) as part, part.open("wb") as out:
        for corpus in corpora:
            for clip in progress(corpus.select(split)["id"], f"decoding {corpus.name}"):
                wave = (corpus.waveform(clip) * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
                wave.tofile(out)
                lengths.append(len(wave))
        if not np.memmap(part, np.int16, mode="r").any():
            raise FedexitError(f"all clips with the split {split!r} are silent; give recordings of speech")
    write_record(file, {"lengths": torch.tensor(lengths)})
