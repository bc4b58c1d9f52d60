"""Unlabelled speech for pre-training: one memory-mapped array, and the batches that are cut from it.

Every batch is a function of the seed and its number: nothing has to be remembered to go on after an interruption.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import resample

from fedexit.data.audio import SAMPLE_RATE
from fedexit.data.batches import normalised
from fedexit.data.corpora import Corpus, open_corpus
from fedexit.support.errors import FedexitError
from fedexit.support.paths import data_dir
from fedexit.support.progress import progress
from fedexit.support.streams import numpy_stream

CROPS = {1.0: 0.25, 2.0: 0.5, 4.0: 0.25}  # seconds: probability
_SPEEDS = (0.9, 1.0, 1.1)


class SpeechPool:
    """Clips end to end: `samples` int16 at 16 kHz, and the `lengths` of the clips in it."""

    def __init__(self, samples: np.ndarray, lengths: np.ndarray):
        self.samples, self.lengths = samples, lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return float(self.lengths.sum()) / SAMPLE_RATE / 3600

    def batch(self, seconds: float, *name: str | int) -> Tensor:
        """A batch of `seconds` of speech in all, (B, T) float32, each row of zero mean and unit variance.

        All rows have one length, drawn from those CROPS that some clip fills, and one speed, drawn from 0.9, 1.0 and
        1.1 (Ko et al. 2015); `name` is that of the random stream. Every second of speech is as likely as any other. A
        clip shorter than the shortest rows stands somewhere in its row, silence around.
        """
        random = numpy_stream(*name)
        filled = {crop: share for crop, share in CROPS.items() if self._filling(crop * max(_SPEEDS)).any()}
        crops, shares = list(filled or {min(CROPS): 1}), np.array(list(filled.values() or [1]))
        crop, speed = random.choice(crops, p=shares / shares.sum()), random.choice(_SPEEDS)
        size, length = max(1, int(seconds / crop)), int(crop * speed * SAMPLE_RATE)
        weights = self.lengths * self._filling(crop * speed) if crop > min(CROPS) else self.lengths
        clips = random.choice(len(weights), size, p=weights / weights.sum())
        rows = torch.stack([torch.from_numpy(self._cut(clip, length, random)) for clip in clips])
        if speed != 1:
            rows = resample(rows, round(10 * speed), 10)[:, : int(crop * SAMPLE_RATE)]
        return torch.stack([normalised(row) for row in rows])

    def _filling(self, seconds: float) -> np.ndarray:
        """Which clips are at least so long."""
        return self.lengths >= int(seconds * SAMPLE_RATE)

    def _cut(self, clip: int, length: int, random: np.random.Generator) -> np.ndarray:
        start, room = self.starts[clip], int(self.lengths[clip]) - length
        offset = int(random.integers(abs(room) + 1))
        if room >= 0:
            return self.samples[start + offset : start + offset + length].astype(np.float32)
        row = np.zeros(length, np.float32)
        row[offset : offset + self.lengths[clip]] = self.samples[start : start + self.lengths[clip]]
        return row


def open_pool(corpora: list[str], split: str) -> SpeechPool:
    """The pool of the clips in `split` of `corpora` (names or folders), decoded once into the cache.

    Raises what `open_corpus` raises, and FedexitError if there is nothing in them.
    """
    opened = [open_corpus(name) for name in corpora]
    key = hashlib.sha256("".join(corpus.checksum for corpus in opened).encode()).hexdigest()[:12]
    file = data_dir() / "cache" / f"pool-{key}-{split}.npy"
    if not file.is_file():
        _decode(opened, split, file)
    return SpeechPool(np.memmap(file.with_suffix(".i16"), np.int16, mode="r"), np.load(file))


def augmented(batch: Tensor, *name: str | int) -> Tensor:
    """`batch` (B, T) with another row, or noise, mixed into up to half of each second row; normalised again.

    As in WavLM (Chen et al. 2022, sec. III-B): the first speaker stays the one to be predicted, the other one is
    -5 to 5 dB apart; noise is -5 to 20 dB below, white to red. A gain of the whole row would change nothing, as rows
    are normalised; the mix is where loudness varies.
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
    """Noise (length,) of unit variance whose spectrum falls as 1 / f^s, s drawn between 0 (white) and 2 (red)."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum /= np.maximum(1, np.arange(len(spectrum))) ** (random.uniform(0, 2) / 2)
    noise = np.fft.irfft(spectrum, length)
    return torch.from_numpy((noise / (noise.std() + 1e-9)).astype(np.float32))


def _decode(corpora: list[Corpus], split: str, file: Path) -> None:
    """Write the samples beside `file`, then the lengths as `file`: it is there when all is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lengths, part = [], file.with_suffix(".part")
    with part.open("wb") as out:
        for corpus in corpora:
            for clip in progress(corpus.select(split)["id"], f"decoding {corpus.name}"):
                samples = (corpus.waveform(clip) * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
                samples.tofile(out)
                lengths.append(len(samples))
    if not lengths:
        raise FedexitError(f"no clips with the split {split!r} in {', '.join(corpus.name for corpus in corpora)}")
    os.replace(part, file.with_suffix(".i16"))
    with part.open("wb") as out:
        np.save(out, np.array(lengths))
    os.replace(part, file)
