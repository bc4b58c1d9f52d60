"""Describe the corpus and its clients (notebook 03): counts, spectrum, voices, yardsticks, and skew of labels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus
from fedexit.data.tasks.contract import Clips, Task, majority_error
from fedexit.federated.clients import Client
from fedexit.federated.partition import device_of

SPLITS = ("train", "dev", "test")
WINDOW = 256  # samples
Federations = Mapping[tuple[str, str], Sequence[Client]]  # by task and partition


def counts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return clips, texts, voices, groups, words and hours of the whole corpus (`all`) and of each split."""
    parts = {"all": manifest} | {split: manifest[manifest["split"] == split] for split in SPLITS}
    rows = []
    for split, own in parts.items():
        spoken = own[own["text"] != ""]
        rows.append(
            {
                "split": split,
                "clips": len(own),
                "with_text": len(spoken),
                "with_voice": (own["speaker"] != "").sum(),
                "groups": own.loc[own["group"] != "", "group"].nunique(),
                "words": spoken["text"].str.split().str.len().sum(),
                "hours": round(own["seconds"].sum() / 3600, 2),
            }
        )
    return pd.DataFrame(rows)


def durations(manifest: pd.DataFrame, longest: float = 12.0, step: float = 0.25) -> pd.DataFrame:
    """Return how many clips of each split last from `seconds` to one step more: `seconds, train, dev, test`."""
    edges = np.arange(0, longest + step, step)
    found = pd.DataFrame({"seconds": edges[:-1]})
    for split in SPLITS:
        found[split] = np.histogram(manifest.loc[manifest["split"] == split, "seconds"], edges)[0]
    return found


def spectrogram(waveform: Tensor) -> pd.DataFrame:
    """Return the rows of `figures_basics.spectrogram` of a waveform (T,): `hertz`, and dB below the peak by time."""
    spectrum = _spectrum(waveform, WINDOW).abs().double()
    decibel = (20 * torch.log10(spectrum / spectrum.max() + 1e-5)).numpy().round(1)  # (129, frames)
    times = np.arange(decibel.shape[1]) * WINDOW / SAMPLE_RATE
    grid = pd.DataFrame(decibel, columns=[f"{time:.3f} s" for time in times])
    grid.insert(0, "hertz", _hertz())
    return grid


def mean_power(corpus: Corpus, clips: Iterable[str]) -> pd.Series:
    """Return the power of the average spectrum of some clips, with Hz as index."""
    spectra = [_spectrum(corpus.waveform(clip)) for clip in clips]
    power = sum((spectrum.abs().double().square().sum(1) for spectrum in spectra), torch.zeros(WINDOW // 2 + 1))
    return pd.Series(power.numpy(), _hertz())


def _spectrum(waveform: Tensor, hop: int = WINDOW // 4) -> Tensor:
    return torch.stft(waveform, WINDOW, hop_length=hop, window=torch.hann_window(WINDOW), return_complex=True)


def _hertz() -> np.ndarray:
    return np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)


def voices(manifest: pd.DataFrame, least: int) -> pd.DataFrame:
    """Return the voices with at least `least` clips with a text, the one with most clips first.

    Returns:
        Columns `speaker, clips, train, dev, test, dialogues, minutes`.
    """
    voiced = manifest.query("speaker != '' and text != ''")
    found = pd.crosstab(voiced["speaker"], voiced["split"])[[*SPLITS]].rename_axis(columns=None)
    found.insert(0, "clips", found.sum(axis=1))
    found["dialogues"] = voiced[voiced["group"].str.endswith(".DOG")].groupby("speaker")["group"].nunique()
    found["minutes"] = (voiced.groupby("speaker")["seconds"].sum() / 60).round(1)
    return found[found["clips"] >= least].sort_values("clips", ascending=False, kind="stable").reset_index()


def yardsticks(tasks: Mapping[str, Task]) -> pd.DataFrame:
    """Return labels, clips per split, and the error of the most frequent answer of test: `majority_error_test`."""
    rows = []
    for name, task in tasks.items():
        sizes = task.rows["split"].value_counts()
        error = majority_error(task.rows.query("split == 'test'")["target"])
        rows.append((name, len(task.labels), *(sizes[split] for split in SPLITS), error))
    return pd.DataFrame(rows, columns=["task", "labels", *SPLITS, "majority_error_test"])


def skew(targets: Sequence[int], everybody: Sequence[int], labels: int) -> float:
    """Return the total variation distance between the shares of `labels` labels in `targets` and in `everybody`."""
    own, whole = (np.bincount(part, minlength=labels) / len(part) for part in (targets, everybody))
    return float(0.5 * np.abs(own - whole).sum())


def client_table(federations: Federations, tasks: Mapping[str, Task]) -> pd.DataFrame:
    """Return a row per client: `task, partition, client, device, depth, clips, labels, skew`."""
    rows = []
    for (name, how), clients in federations.items():
        everybody = [target for client in clients for target in _targets(client)]
        for client in clients:
            held = _targets(client)
            distance = skew(held, everybody, len(tasks[name].labels))
            about = client.name, device_of(client.name), client.depth
            rows.append((name, how, *about, len(held), len(set(held)), distance))
    return pd.DataFrame(rows, columns=["task", "partition", "client", "device", "depth", "clips", "labels", "skew"])


def _targets(client: Client) -> list:
    """Return the targets of a client of `make_clients`, without decoding its clips."""
    return cast(Clips, client.data).targets


def summary(clients: pd.DataFrame) -> pd.DataFrame:
    """Return numbers of clients and devices, sizes, labels and mean skew by task and partition (`client_table`)."""
    found = clients.groupby(["task", "partition"]).agg(
        clients=("client", "size"),
        devices=("device", "nunique"),
        smallest=("clips", "min"),
        median=("clips", "median"),
        largest=("clips", "max"),
        labels_per_client=("labels", "median"),
        mean_skew=("skew", "mean"),
    )
    return found.reset_index()


def labels_held(federations: Federations, tasks: Mapping[str, Task], task: str) -> pd.DataFrame:
    """Return which client holds which label of a task: `partition, client, label, clips, share`."""
    names, rows = np.array(tasks[task].labels), []
    for (name, how), clients in federations.items():
        for client in clients if name == task else ():
            labels, sizes = np.unique(names[_targets(client)], return_counts=True)
            rows += [(how, client.name, *pair, pair[1] / len(client.data)) for pair in zip(labels, sizes, strict=True)]
    return pd.DataFrame(rows, columns=["partition", "client", "label", "clips", "share"])
