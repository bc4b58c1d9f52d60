"""Measure the hidden states of a frozen backbone by linear probes, and the similarity of its layers.

Index 0 is the input of layer 1, index l the output of layer l. Log-mel features, as a single "layer", are the baseline.
"""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
import torchaudio
from scipy.linalg import LinAlgWarning
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from fedexit.data.batches import collate, normalised
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.text import CHARACTERS, characters, frames_needed, spell
from fedexit.model.backbone import Backbone
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.progress import progress
from fedexit.support.streams import numpy_stream, seeded, stream_seed

Split = tuple[np.ndarray, np.ndarray, np.ndarray]  # indices of train, dev and test clips
ALPHAS = (1.0, 10.0, 100.0, 1000.0, 10000.0)  # strengths of the ridge, chosen on dev
_BATCH_SECONDS, _BANDS = 20.0, 80


def pooled_states(backbone: Backbone, waveforms: Sequence[Tensor], desc: str) -> np.ndarray:
    """Return mean and standard deviation over time of every hidden state of N clips (T_i,): (N, layers + 1, 2 D)."""
    pooled = np.empty((len(waveforms), backbone.layers + 1, 2 * backbone.width), np.float32)
    for index, states in _states(backbone, waveforms, backbone.layers, desc):
        pooled[index] = torch.stack([_pooled(state) for state in states]).numpy()
    return pooled


def frame_states(backbone: Backbone, waveforms: Sequence[Tensor], layer: int, desc: str) -> list[Tensor]:
    """Return the hidden state `layer`, (F_i, D), of each of the clips (T_i,)."""
    if layer == 0:  # the backbone returns the input of layer 1 together with its output
        found = {index: states[0] for index, states in _states(backbone, waveforms, 1, desc)}
    else:
        found = {index: states[-1] for index, states in _states(backbone, waveforms, layer, desc)}
    return [found[index] for index in range(len(waveforms))]


def log_mel(waveform: Tensor, hop: int = 160) -> Tensor:
    """Return 80 log-mel bands (F, 80) of a waveform (T,), one frame per `hop` samples."""
    spectrogram = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, 400, hop_length=hop, n_mels=_BANDS)
    return (spectrogram(normalised(waveform)) + 1e-6).log().T


def pooled_log_mel(waveforms: Sequence[Tensor]) -> np.ndarray:
    """Return mean and standard deviation over time of the log-mel bands of N clips: (N, 1, 160) float32."""
    return torch.stack([_pooled(log_mel(waveform)) for waveform in waveforms])[:, None].numpy()


def _pooled(frames: Tensor) -> Tensor:
    return torch.cat([frames.mean(0), frames.std(0, correction=0)])


@torch.no_grad()
def _states(
    backbone: Backbone, waveforms: Sequence[Tensor], depth: int, desc: str
) -> Iterable[tuple[int, list[Tensor]]]:
    """Yield each clip's index and its hidden states 0..depth, each (F_i, D); clips of similar length run together."""
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    bar, batch = progress(order, desc), []
    for place, index in enumerate(bar):
        batch.append(index)
        following = order[place + 1] if place + 1 < len(order) else None
        if following is not None and len(waveforms[following]) * (len(batch) + 1) <= _BATCH_SECONDS * SAMPLE_RATE:
            continue
        padded, lengths, _ = collate([(waveforms[clip], 0) for clip in batch])
        states, frames = backbone.hidden_states(padded, lengths, depth)
        own = list(zip(batch, frames.tolist(), strict=True))
        states = [state.cpu() for state in states]
        for row, (clip, held) in enumerate(own):
            yield clip, [state[row, :held].clone() for state in states]
        batch = []


def profile(features: np.ndarray, labels: Sequence, splits: Sequence[Split]) -> pd.DataFrame:
    """Measure the accuracy of a linear probe on each layer.

    The probe is a ridge classifier on standardised features. Its strength is the one of ALPHAS with the best mean
    accuracy on dev over all splits, because the dev part of a single split can be a few clips of one speaker.

    Args:
        features: (N, layers, F).
        labels: (N,).
        splits: indices of train, dev and test clips of each split.

    Returns:
        One row per layer and split with the columns `layer, repeat, dev, test`.
    """
    targets, rows = np.asarray(labels), []
    for layer in range(features.shape[1]):
        scores = np.array([_scores(features[:, layer], targets, split) for split in splits])  # (splits, alphas, 2)
        best = scores[..., 0].mean(0).argmax()
        rows += [(layer, repeat, dev, test) for repeat, (dev, test) in enumerate(scores[:, best])]
    return pd.DataFrame(rows, columns=["layer", "repeat", "dev", "test"])


def best_layer(profile: pd.DataFrame) -> int:
    """Return the layer with the highest mean accuracy on dev; the test clips do not influence the choice."""
    return int(profile.groupby("layer")["dev"].mean().idxmax())


def group_splits(labels: Sequence, groups: Sequence, folds: int) -> list[Split]:
    """Return splits in which each of `folds` parts is test once and dev once; no group is in two parts of a split.

    Args:
        labels: labels (N,), whose shares are as equal as possible in all parts.
        groups: group (N,) of each clip, such as its dialogue or speaker. For clips without groups give their numbers.
        folds: number of parts, at least 3.

    Raises:
        FedexitError: for fewer than 3 folds and for more folds than groups.
    """
    targets, names = np.asarray(labels), np.asarray(groups)
    if not 3 <= folds <= len(np.unique(names)):
        raise FedexitError(
            f"folds={folds} must be at least 3 and at most the number of groups, {len(np.unique(names))}"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=stream_seed("probe", "folds") % 2**32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # it is then missing in some part
        parts = [test for _, test in splitter.split(targets, targets, names)]
    splits = []
    for fold, test in enumerate(parts):
        dev = parts[(fold + 1) % folds]
        splits.append((np.setdiff1d(np.arange(len(targets)), np.concatenate([dev, test])), dev, test))
    return splits


def _scores(features: np.ndarray, labels: np.ndarray, split: Split) -> list[tuple[float, float]]:
    """Return the accuracy on dev and on test of the probe with each strength of ALPHAS."""
    train, dev, test = split
    scaler = StandardScaler().fit(features[train])
    known, *held_out = (scaler.transform(features[part]) for part in split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)  # of the weakest ridges; dev decides which one counts
        probes = [RidgeClassifier(alpha).fit(known, labels[train]) for alpha in ALPHAS]
    return [(probe.score(held_out[0], labels[dev]), probe.score(held_out[1], labels[test])) for probe in probes]


def fitted_probe(features: np.ndarray, labels: np.ndarray, dev: tuple[np.ndarray, np.ndarray]) -> Pipeline:
    """Return the linear probe of `profile` on one layer, with the strength that is best on dev.

    Args:
        features: (N, F) of the training clips.
        labels: (N,) of the training clips.
        dev: features and labels of the dev clips.
    """
    probes = [make_pipeline(StandardScaler(), RidgeClassifier(alpha)) for alpha in ALPHAS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)
        return max((probe.fit(features, labels) for probe in probes), key=lambda probe: probe.score(*dev))


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Return the linear centred kernel alignment of (N, D1) and (N, D2) (Kornblith et al. 2019, eq. 3)."""
    one, other = (x.astype(np.float64) - x.mean(0, dtype=np.float64) for x in (one, other))
    cross = np.linalg.norm(one.T @ other) ** 2
    return float(cross / (np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)))


def cluster_quality(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure how well codes (N,) predict labels (N,), as in HuBERT (Hsu et al. 2021, sec. IV-C).

    Returns:
        `label_purity`, the share of items whose label is the most frequent one of their code; `code_purity`, the share
        of items whose code is the most frequent one of their label; `pnmi`, the mutual information divided by the
        entropy of the labels. Purities depend on the number of codes, `pnmi` depends on it less.
    """
    table = pd.crosstab(codes, labels).to_numpy()
    share = table.sum(0) / table.sum()
    return {
        "label_purity": float(table.max(1).sum() / table.sum()),
        "code_purity": float(table.max(0).sum() / table.sum()),
        "pnmi": float(mutual_info_score(codes, labels) / -(share * np.log(share)).sum()),
    }


def ctc_probe(
    states: Sequence[Tensor], texts: Sequence[str], split: Split, updates: int, seed: int = 0
) -> tuple[float, float]:
    """Train a linear CTC head on frozen states by Adam and return its character error rates on dev and test.

    Decoding is greedy, and errors are counted over all clips together.

    Args:
        states: hidden states (F_i, D) of each clip.
        texts: the text of each clip.
        split: indices of train, dev and test clips.
        updates: number of updates.
        seed: names the random streams.

    Raises:
        FedexitError: names the clip whose text has no characters or needs more frames than the clip has.
    """
    with extra("asr"):
        import jiwer
    targets = [torch.tensor(characters(text)) for text in texts]
    for number, (state, target) in enumerate(zip(states, targets, strict=True)):
        if not len(target) or frames_needed(target.tolist()) > len(state):
            raise FedexitError(f"clip {number}: {len(state)} frames cannot spell {texts[number]!r}; leave it out")
    train, dev, test = split
    frames = torch.cat([states[index] for index in train])
    mean, std = frames.mean(0), frames.std(0) + 1e-5
    with seeded(seed, "ctc probe"):
        head = nn.Linear(frames.shape[1], len(CHARACTERS) + 1)
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, updates)
    by_length = sorted(train, key=lambda index: len(states[index]))
    batches = [by_length[start : start + 16] for start in range(0, len(by_length), 16)]
    draw = numpy_stream(seed, "ctc probe")
    for batch in progress(draw.integers(len(batches), size=updates), "characters"):
        loss = _ctc_loss(head, [(states[i] - mean) / std for i in batches[batch]], [targets[i] for i in batches[batch]])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    on_dev, on_test = (jiwer.cer(*_spelled(head, states, targets, part, mean, std)) for part in (dev, test))
    return on_dev, on_test


def _ctc_loss(head: nn.Linear, states: list[Tensor], targets: list[Tensor]) -> Tensor:
    logits = head(nn.utils.rnn.pad_sequence(states)).log_softmax(-1)  # (F, B, characters)
    frames, sizes = (torch.tensor([len(item) for item in items]) for items in (states, targets))
    return nn.functional.ctc_loss(logits, torch.cat(targets), frames, sizes)


@torch.no_grad()
def _spelled(
    head: nn.Linear, states: Sequence[Tensor], targets: list[Tensor], part: np.ndarray, mean: Tensor, std: Tensor
) -> tuple[list[str], list[str]]:
    """Return the true and the predicted texts of the clips `part`."""
    references, hypotheses = [], []
    for index in part:
        best = head((states[index] - mean) / std).argmax(-1).unique_consecutive()
        hypotheses.append(spell(best.tolist()))
        references.append(spell(targets[index].tolist()))
    return references, hypotheses
