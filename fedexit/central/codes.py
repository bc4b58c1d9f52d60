"""What masked prediction predicts: k-means codes of every frame (HuBERT, Hsu et al. 2021, sec. II-A and II-C).

Several codebooks at once, since no single one keeps everything (there called a cluster ensemble): of MFCC as they are,
of MFCC with each clip's own mean and spread taken out (what is said), of the clip's mean and spread alone (who says
it, and through what channel), and, in a second iteration, of a layer of the model of the first, as it is or likewise.
"""

import re
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torchaudio
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from fedexit.data.audio import SAMPLE_RATE
from fedexit.model.backbone import Backbone
from fedexit.support.errors import FedexitError
from fedexit.support.streams import stream_seed

_FRAME, _HOP = 400, 320  # samples: one MFCC frame for each frame of the convolutional encoder
_BANDS, _COEFFICIENTS = 40, 13
# Added to a band's power before the logarithm, some 60 dB below loud speech of unit variance. Without it the codes of
# recordings in telephone band or from MP3 say little but how empty their upper bands are.
_FLOOR = 1e-2
CODEBOOK_PARTS = ("mean", "std", "centres", "frequencies")
MAX_FRAMES = 300_000  # enough for a few hundred centres; more only costs time
Features = Callable[[Tensor], Tensor]  # waveforms (B, T) at 16 kHz -> (B, F, D)


def mfcc(waveforms: Tensor) -> Tensor:
    """13 MFCC, their first and second differences, (B, F, 39), of waveforms (B, T); F as of the backbone."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, _FRAME, hop_length=_HOP, n_mels=_BANDS, center=False)
    cosines = torchaudio.functional.create_dct(_COEFFICIENTS, _BANDS, "ortho")  # (40, 13)
    static = cosines.T @ (mel(waveforms) + _FLOOR).log()  # (B, 13, F)
    delta = torchaudio.functional.compute_deltas(static)
    return torch.cat([static, delta, torchaudio.functional.compute_deltas(delta)], dim=1).transpose(1, 2)


def content(waveforms: Tensor) -> Tensor:
    """`mfcc` with each clip's own mean and spread taken out: what is said, less who says it."""
    return _own_scale(mfcc(waveforms))


def voice(waveforms: Tensor) -> Tensor:
    """Mean and spread of a clip's MFCC, the same in each of its frames: (B, F, 26)."""
    static = mfcc(waveforms)[..., :_COEFFICIENTS]
    return torch.cat([static.mean(1), static.std(1)], dim=-1)[:, None].expand(-1, static.shape[1], -1)


def _own_scale(features: Tensor) -> Tensor:
    """`features` (B, F, D) with mean 0 and spread 1 over each clip's own frames."""
    return (features - features.mean(1, keepdim=True)) / (features.std(1, keepdim=True) + 1e-5)


FEATURES: dict[str, Features] = {"mfcc": mfcc, "content": content, "voice": voice}


def features_of(name: str, teacher: Backbone | None) -> Features:
    """The features called `name`: one of FEATURES, or of layer L of `teacher`: its output, `layerL`, or `contentL`.

    `contentL` is to `layerL` what `content` is to `mfcc`. Raises FedexitError if there are none of this name.
    """
    if name in FEATURES:
        return FEATURES[name]
    parts = re.fullmatch(r"(layer|content)(\d+)", name)
    if teacher is None or parts is None:
        raise FedexitError(
            f"unknown codebook {name!r}: expected {', '.join(FEATURES)}, or layerL or contentL with a teacher"
        )
    kind, layer = parts[1], int(parts[2])

    @torch.no_grad()
    def hidden(waveforms: Tensor) -> Tensor:
        states = teacher.hidden_states(waveforms, depth=layer)[0][-1]
        return states if kind == "layer" else _own_scale(states)

    return hidden


class Codebook:
    """k-means centres (K, D) of standardised features; `mean` and `std` (D,) are of the frames they were fitted on.

    `frequencies` (K,) are the shares of the codes among these frames, none of them zero.
    """

    def __init__(self, features: Features, mean: Tensor, std: Tensor, centres: Tensor, frequencies: Tensor):
        self.features, self.mean, self.std = features, mean, std
        self.centres, self.frequencies = centres, frequencies

    def __call__(self, waveforms: Tensor) -> Tensor:
        """Code (B, F) int64 of every frame of waveforms (B, T): the number of its nearest centre."""
        scaled = (self.features(waveforms) - self.mean) / self.std
        return (2 * scaled @ self.centres.T - self.centres.square().sum(1)).argmax(-1)


def fit_codebook(features: Features, batches: Iterable[Tensor], clusters: int, seed: int) -> Codebook:
    """A codebook of `clusters` centres fitted on up to MAX_FRAMES frames of `batches` of waveforms (B, T).

    Raises FedexitError when there are fewer frames than clusters.
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
