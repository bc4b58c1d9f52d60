"""Compute targets of masked prediction: k-means codes of every frame (HuBERT, Hsu et al. 2021, sec. II-A, II-C).

Several codebooks are used together (HuBERT calls this a cluster ensemble), because no single one keeps everything.
`mfcc` clusters plain MFCC. `content` clusters MFCC normalised per clip, which keeps the spoken content. `voice`
clusters the mean and standard deviation of a clip's MFCC, which keep speaker and channel. A second iteration clusters a
layer of the first model, plain or normalised per clip.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
import torchaudio
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from fedexit.central.speech_pool import Rows
from fedexit.data.constants import SAMPLE_RATE
from fedexit.support.errors import FedexitError
from fedexit.support.streams import stream_seed

FRAME, HOP = 400, 320  # samples: one frame for each frame of the convolutional encoder of wav2vec 2.0
_BANDS, _COEFFICIENTS = 40, 13
# Added to a band's power before the logarithm, about 60 dB below loud speech of unit variance. Without it the codes of
# telephone-band or MP3 recordings mostly encode how empty their upper bands are.
_FLOOR = 1e-2
CODEBOOK_PARTS = ("mean", "std", "centres", "frequencies")
MAX_FRAMES = 300_000  # enough frames for a few hundred centres; more only cost time
Features = Callable[[Tensor], Tensor]  # waveforms (B, T) at 16 kHz -> (B, F, D)


class States(Protocol):
    """The hidden states of a teacher (see `fedexit.central.teachers.TeacherStates`)."""

    def rows(self, rows: Rows, layer: int) -> Tensor:
        """Return the states (B, F, D) of `layer` for the rows of a batch."""
        ...


def frames_of(samples: int) -> int:
    """Return the number of frames in `samples`; below 1 if they are too few."""
    return (samples - FRAME) // HOP + 1


def mfcc(waveforms: Tensor) -> Tensor:
    """Return 13 MFCC with first and second differences, (B, F, 39), of waveforms (B, T); F is as in the backbone."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, FRAME, hop_length=HOP, n_mels=_BANDS, center=False)
    cosines = torchaudio.functional.create_dct(_COEFFICIENTS, _BANDS, "ortho")  # (40, 13)
    static = cosines.T @ (mel(waveforms) + _FLOOR).log()  # (B, 13, F)
    delta = torchaudio.functional.compute_deltas(static)
    return torch.cat([static, delta, torchaudio.functional.compute_deltas(delta)], dim=1).transpose(1, 2)


def content(waveforms: Tensor) -> Tensor:
    """Return `mfcc` normalised per clip: it keeps what is said and removes most of the speaker."""
    return _own_scale(mfcc(waveforms))


def voice(waveforms: Tensor) -> Tensor:
    """Return mean and standard deviation of a clip's MFCC, repeated in each of its frames: (B, F, 26)."""
    static = mfcc(waveforms)[..., :_COEFFICIENTS]
    return torch.cat([static.mean(1), static.std(1)], dim=-1)[:, None].expand(-1, static.shape[1], -1)


def _own_scale(features: Tensor) -> Tensor:
    """Return `features` (B, F, D) with mean 0 and standard deviation 1 over the frames of each clip."""
    return (features - features.mean(1, keepdim=True)) / (features.std(1, keepdim=True) + 1e-5)


FEATURES: dict[str, Features] = {"mfcc": mfcc, "content": content, "voice": voice}


def features_of(name: str, states: States | None) -> Callable[[Rows], Tensor]:
    """Return the function that computes the features called `name` for the rows of a batch.

    Args:
        name: one of FEATURES, `layerL` (layer L of a teacher, 0 to its last) or `contentL` (the same, normalised per
            row).
        states: the states of the teacher, or None.

    Raises:
        FedexitError: for an unknown name, and for a layer without a teacher.
    """
    if name in FEATURES:
        return lambda rows: FEATURES[name](rows.waveforms)
    layer = teacher_layer(name)
    if states is None or layer is None:
        raise FedexitError(
            f"unknown codebook {name!r}: expected {', '.join(FEATURES)}, or layerL or contentL with a teacher"
        )
    if name.startswith("layer"):
        return lambda rows: states.rows(rows, layer)
    return lambda rows: _own_scale(states.rows(rows, layer))


def teacher_layer(feature: str) -> int | None:
    """Return the teacher's layer that a feature such as `layer3` is computed from, None for other features."""
    found = re.fullmatch(r"(?:layer|content|state)(\d+)", feature)
    return int(found[1]) if found else None


class Codebook:
    """A k-means codebook of standardised features.

    Attributes:
        features: computes the features, of waveforms (B, T) or of the rows of a pool.
        mean: mean (D,) of the frames that the codebook was fitted on.
        std: standard deviation (D,) of these frames.
        centres: cluster centres (K, D) of the standardised frames.
        frequencies: share (K,) of each code among these frames, never zero.
    """

    def __init__(
        self, features: Callable[[Any], Tensor], mean: Tensor, std: Tensor, centres: Tensor, frequencies: Tensor
    ):
        self.features, self.mean, self.std = features, mean, std
        self.centres, self.frequencies = centres, frequencies

    def __call__(self, speech: Any) -> Tensor:
        """Return the code (B, F) int64 of every frame of what `features` takes: the index of its nearest centre."""
        scaled = (self.features(speech) - self.mean) / self.std
        return (2 * scaled @ self.centres.T - self.centres.square().sum(1)).argmax(-1)


def fit_codebook(features: Callable[[Any], Tensor], batches: Iterable, clusters: int, seed: int) -> Codebook:
    """Fit a codebook on up to MAX_FRAMES frames.

    Args:
        features: computes the features (B, F, D) to cluster.
        batches: what `features` takes, such as waveforms (B, T).
        clusters: number of centres.
        seed: names the random stream of k-means.

    Raises:
        FedexitError: for fewer frames than clusters.
    """
    frames = torch.cat([features(batch).flatten(0, 1) for batch in batches])
    if len(frames) < clusters:
        raise FedexitError(
            f"{len(frames)} frames are too few for {clusters} clusters; give more audio or fewer clusters"
        )
    random = stream_seed(seed, "k-means", clusters) % 2**32
    if len(frames) > MAX_FRAMES:
        frames = frames[np.random.default_rng(random).choice(len(frames), MAX_FRAMES, replace=False)]
    mean, std = frames.mean(0), frames.std(0) + 1e-5
    kmeans = MiniBatchKMeans(clusters, batch_size=10_000, n_init=3, random_state=random)
    kmeans.fit(((frames - mean) / std).numpy())
    counts = torch.from_numpy(np.bincount(kmeans.labels_, minlength=clusters)).float() + 1
    return Codebook(features, mean, std, torch.from_numpy(kmeans.cluster_centers_).float(), counts / counts.sum())
