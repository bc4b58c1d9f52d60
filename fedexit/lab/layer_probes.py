"""Probe what the layers of frozen backbones hold (notebook 05): labels, characters, and the likeness of layers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedexit.central.fine_tuning import Recipe
from fedexit.central.probes import (
    Split,
    ctc_probe,
    frame_states,
    group_splits,
    linear_cka,
    pooled_log_mel,
    pooled_states,
    profile,
)
from fedexit.central.teachers import Teacher, load_teacher
from fedexit.central.whisper import PACKAGES
from fedexit.data.batches import normalised
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus
from fedexit.lab.cells import fine_tuned_error
from fedexit.lab.statistics import half_interval
from fedexit.lab.wording import counted, interval, points
from fedexit.model.backbone import Backbone
from fedexit.support.processes import on_workers
from fedexit.support.streams import numpy_stream

Features = Mapping[str, np.ndarray]  # (N, layers, F) of each model


def sample(rows: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Return at most `most` of the rows, drawn by `seed`, in their order."""
    return rows.loc[np.sort(numpy_stream(seed, "probe clips").permutation(rows.index)[:most])]


@dataclass(frozen=True)
class ProbeTask:
    """Clips, labels and splits of a probe.

    corpus: the corpus of the clips.
    rows: rows of its manifest.
    label: column that the probe predicts.
    group: column whose values are never in two parts of a split.
    folds: number of splits.
    seconds: clips are cut after this many seconds.
    """

    corpus: Corpus
    rows: pd.DataFrame
    label: str
    group: str
    folds: int
    seconds: float = 4.0

    @cached_property
    def clips(self) -> list[Tensor]:
        """Return the waveforms (T,) at 16 kHz."""
        return [self.corpus.waveform(clip)[: int(self.seconds * SAMPLE_RATE)] for clip in self.rows["id"]]

    @cached_property
    def labels(self) -> list:
        """Return the label of each clip (N,)."""
        return list(self.rows[self.label])

    @cached_property
    def splits(self) -> list[Split]:
        """Return the positions of train, dev and test clips of each split."""
        return group_splits(self.labels, self.rows[self.group], self.folds)

    @property
    def guess(self) -> float:
        """Return the error of always answering the most frequent label, in percent."""
        return float(100 * (1 - pd.Series(self.labels).value_counts(normalize=True).max()))


def sizes(tasks: Mapping[str, ProbeTask]) -> pd.DataFrame:
    """Return how large each task is: `task, clips, classes, splits`."""
    rows = [(name, len(task.labels), len(set(task.labels)), len(task.splits)) for name, task in tasks.items()]
    return pd.DataFrame(rows, columns=["task", "clips", "classes", "splits"])


def installed_teacher(name: str) -> Teacher | None:
    """Return the teacher `name` if the packages of the extra `teacher` are installed, else None."""
    return load_teacher(name) if all(find_spec(package.replace("-", "_")) for package in PACKAGES) else None


def pooled_layers(
    models: Mapping[str, Backbone], teachers: Mapping[str, Teacher | None], clips: Sequence[Tensor], desc: str
) -> dict[str, np.ndarray]:
    """Return mean and standard deviation over time of every layer of each model: (N, layers, 2 D).

    Args:
        models: the backbones by name.
        teachers: the teachers by name; None leaves one out.
        clips: waveforms (T,) at 16 kHz.
        desc: what the progress bar calls the clips.

    Returns:
        Models and teachers, and `log-mel` with one layer.
    """
    found = {name: pooled_states(model, clips, f"{desc}, {name}") for name, model in models.items()}
    found |= {name: _pooled_teacher(teacher, clips) for name, teacher in teachers.items() if teacher}
    return found | {"log-mel": pooled_log_mel(clips)}


@torch.no_grad()
def _pooled_teacher(teacher: Teacher, clips: Sequence[Tensor]) -> np.ndarray:
    found = []
    for clip in clips:
        states = torch.stack(teacher.hidden_states(normalised(clip)[None]))[:, 0]
        found.append(torch.cat([states.mean(1), states.std(1, correction=0)], -1))
    return torch.stack(found).numpy()


def probe_errors(features: Mapping[str, Features], tasks: Mapping[str, ProbeTask]) -> pd.DataFrame:
    """Return the error of a linear probe on each layer, in percent: `task, model, layer, repeat, dev, test`.

    Args:
        features: those of each model (`pooled_layers`), by task.
        tasks: labels and splits, by task.
    """
    tables = [
        profile(states, tasks[name].labels, tasks[name].splits).assign(task=name, model=model)
        for name, own in features.items()
        for model, states in own.items()
    ]
    probed = pd.concat(tables, ignore_index=True)
    probed[["dev", "test"]] = 100 * (1 - probed[["dev", "test"]])
    return probed[["task", "model", "layer", "repeat", "dev", "test"]]


def by_layer(probed: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over splits of `probe_errors`: `task, model, layer, dev, test, half_interval` (of `test`)."""
    groups = probed.groupby(["task", "model", "layer"], sort=False)
    means = groups[["dev", "test"]].mean()
    means["half_interval"] = groups["test"].agg(half_interval)
    return means.reset_index()


def best_layers(means: pd.DataFrame) -> pd.DataFrame:
    """Return the layer of `by_layer` with the lowest error on dev: `task, model, layer, error, half_interval`."""
    best = means.loc[means.groupby(["task", "model"], sort=False)["dev"].idxmin()].rename(columns={"test": "error"})
    return best[["task", "model", "layer", "error", "half_interval"]]


def guesses(tasks: Mapping[str, ProbeTask]) -> pd.DataFrame:
    """Return the error of the most frequent class as rows of `figures_basics.layer_profile`."""
    errors = [task.guess for task in tasks.values()]
    return pd.DataFrame({"task": tasks.keys(), "model": "most frequent class", "test": errors})


def gap(probed: pd.DataFrame, task: str, model: str, one: int, other: int) -> tuple[float, float]:
    """Return the error at layer `one` minus that at layer `other`, paired by split: mean and half its interval."""
    own = probed[(probed["task"] == task) & (probed["model"] == model)]
    wide = own.pivot(index="repeat", columns="layer", values="test")
    difference = wide[one] - wide[other]
    return float(difference.mean()), half_interval(difference)


def character_errors(
    models: Mapping[str, Backbone], corpus: Corpus, rows: pd.DataFrame, layers: Sequence[int], updates: int, seed: int
) -> pd.DataFrame:
    """Train a linear CTC head on each of `layers` of frozen models: `model, layer, dev, test`, errors in percent.

    Args:
        models: the backbones by name.
        corpus: the corpus of the clips.
        rows: rows of its manifest with `id`, `text` and `split`.
        layers: layers that are read.
        updates: updates of each head.
        seed: draws heads and batches.
    """
    clips = [corpus.waveform(clip) for clip in rows["id"]]
    train, dev, test = (np.flatnonzero(rows["split"] == part) for part in ("train", "dev", "test"))
    found = []
    for name, model in models.items():
        for layer in layers:
            states = frame_states(model, clips, layer, f"{name}, layer {layer}")
            errors = ctc_probe(states, list(rows["text"]), (train, dev, test), updates, seed)
            found.append((name, layer, *(100 * error for error in errors)))
    return pd.DataFrame(found, columns=["model", "layer", "dev", "test"])


def layer_similarity(features: Features, models: Iterable[str]) -> pd.DataFrame:
    """Return the linear CKA of each pair of layers of each of `models`: `model, one, other, cka`."""
    rows = [
        (name, one, other, linear_cka(features[name][:, one], features[name][:, other]))
        for name in models
        for one in range(features[name].shape[1])
        for other in range(features[name].shape[1])
    ]
    return pd.DataFrame(rows, columns=["model", "one", "other", "cka"])


def central_errors(
    tasks: Mapping[str, ProbeTask], backbone: str, exits: Sequence[int], folds: int, recipe: Recipe,
    state: Callable[[str], Path], workers: int,
) -> pd.DataFrame:  # fmt: skip
    """Fine-tune a model of each depth on the splits of each task: `task, repeat, exit, dev_error, test_error`.

    Args:
        tasks: the tasks by name.
        backbone: the start of all models.
        exits: the depths.
        folds: how many of the splits of each task are used.
        recipe: how to train.
        state: gives the file of a checkpoint by its name, so that an interrupted run resumes.
        workers: processes; they change no result.
    """
    jobs = {}
    for name, task in tasks.items():
        for repeat, split in enumerate(task.splits[:folds]):
            for exit in exits:
                about = task.corpus.name, task.rows, split, task.label, backbone, exit, recipe, task.seconds
                jobs[name, repeat, exit] = *about, repeat, state(f"central-{name}-{repeat}-{exit}.safetensors")
    errors = on_workers(fine_tuned_error, list(jobs.values()), workers, "central fine-tuning")
    rows = [(*about, *pair) for about, pair in zip(jobs, errors, strict=True)]
    return pd.DataFrame(rows, columns=["task", "repeat", "exit", "dev_error", "test_error"])


def errors_at(model: Backbone, tasks: Mapping[str, ProbeTask], layers: Sequence[int], desc: str) -> dict[str, float]:
    """Return the probe error of each task at some `layers` of a model, in percent, by `task, layer L`."""
    found: dict[str, float] = {}
    for name, task in tasks.items():
        features = pooled_states(model, task.clips, f"{name}, {desc}")[:, list(layers)]
        scores = profile(features, task.labels, task.splits).groupby("layer")["test"].mean()
        found |= {f"{name}, layer {layer}": 100 * (1 - scores[place]) for place, layer in enumerate(layers)}
    return found


def gap_sentences(probed: pd.DataFrame, tasks: Mapping[str, ProbeTask], model: str) -> list[str]:
    """Return one sentence per task, in Markdown: the error of `model` at layer 3 minus that at layer 12."""
    lines = []
    for name, task in tasks.items():
        mean, half = gap(probed, name, model, 3, 12)
        said = f"frozen `{model}`: the probe's error at layer 3 minus that at layer 12 is {points(mean)}"
        lines.append(f"*{name}*, {said} ({counted(task.folds, 'split')}, {interval(mean - half, mean + half)}).")
    return lines


def start_sentences(federated: pd.DataFrame, tasks: Mapping[str, ProbeTask], trained: str, control: str) -> list[str]:
    """Return one sentence per task, in Markdown: the error of federations from two starts, beside guessing.

    Args:
        federated: `task, seed, exit` and a column of error rates per start, as shares.
        tasks: tasks by name.
        trained: column of the trained start.
        control: column of the untrained one.
    """
    lines = []
    for name, own in federated.groupby("task", sort=False):
        one, other, guess = 100 * own[trained].mean(), 100 * own[control].mean(), tasks[str(name)].guess
        measured = f"{counted(own['seed'].nunique(), 'seed')}, mean over {own['exit'].nunique()} exits"
        lines.append(
            f"*{name}*, Eq. (1) from `{trained}`: {one:.1f} % errors, from the untrained `{control}` {other:.1f} % "
            f"({measured}); always the most frequent class of the probe's clips errs on {guess:.1f} %: demonstration."
        )
    return lines
