"""Define the contract of every task: its clips, their targets, and the kind of head that predicts them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torchaudio

from fedexit.data.batches import Example
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus
from fedexit.data.text import frames_needed
from fedexit.support.errors import FedexitError

FRAME = 320  # samples per frame of wav2vec 2.0, HuBERT and WavLM


@dataclass(frozen=True)
class Task:
    """A task on a corpus.

    name: the task's name in `fedexit.data.tasks.TASKS`.
    corpus: the corpus of its clips.
    labels: names of the outputs in their order; `ctc` heads have the blank before them.
    rows: the manifest's rows that take part, with the task's own `split` and `group` (the client that holds a clip) and
        the column `target`: an index into `labels`, for `ctc` a list of character ids from 1.
    head: a name in `fedexit.model.heads.HEADS`.
    max_seconds: clips are cut to this length, unless a caller gives another.
    verification: whether its voices are also verified in pairs, if the corpus has a trial list.
    """

    name: str
    corpus: Corpus
    labels: list[str]
    rows: pd.DataFrame
    head: str = "pooled"
    max_seconds: float = 3.0
    verification: bool = False


def can_spell(seconds: float, target: Sequence[int], frame: int = FRAME) -> bool:
    """Return whether a clip of `seconds` has enough frames (of `frame` samples) for CTC to spell `target`."""
    return round(seconds * SAMPLE_RATE) // frame - 1 >= frames_needed(target)


def check_spelling(rows: pd.DataFrame, max_seconds: float, frame: int = FRAME) -> None:
    """Raise FedexitError that names the first clip that is too short for its text after the cut."""
    for row in rows.itertuples():
        seconds = min(row.seconds, max_seconds)
        if not can_spell(seconds, row.target, frame):
            fix = "cut clips later (max_seconds)" if row.seconds > max_seconds else "correct its text"
            raise FedexitError(
                f"clip {row.id}: {seconds:.1f} s cannot spell its {len(row.target)} characters; {fix}, or remove it "
                "from the manifest"
            )


class Clips(Sequence[Example]):
    """The clips of a task, decoded on access: item i is (waveform (T,) at 16 kHz, target).

    Args:
        corpus: the corpus of the clips.
        rows: rows of a task.
        max_seconds: clips are cut to this length.
        speed: clips are then played at this speed (speed perturbation, Ko et al. 2015: 1.25 is shorter and
            higher), so that one voice sounds like another.
    """

    def __init__(self, corpus: Corpus, rows: pd.DataFrame, max_seconds: float, speed: float = 1.0):
        self.corpus, self.max_samples, self.speed = corpus, int(max_seconds * SAMPLE_RATE), speed
        self.ids, self.targets = rows["id"].tolist(), rows["target"].tolist()

    channels = 0  # its clips are waveforms

    @property
    def lengths(self) -> list[int]:
        """Return the samples of each clip after the cut and at its speed, by the manifest's durations (to 1 ms)."""
        rows = self.corpus.table.set_index("id")["seconds"]
        samples = (rows.loc[self.ids] * SAMPLE_RATE).clip(upper=self.max_samples) / self.speed
        return samples.round().astype(int).tolist()

    @property
    def content_hash(self) -> str:
        """Return a hash of the audio, ids, targets, cut and speed of the clips (see `data_digest`)."""
        audio = [self.corpus.clip_hash(clip) for clip in self.ids]
        facts = [audio, self.ids, self.targets, self.max_samples, self.speed]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        """Return clip `index`, cut after `max_seconds` and then played at `speed`, and its target."""
        clip = self.corpus.waveform(self.ids[index])[: self.max_samples]
        return torchaudio.functional.resample(clip, round(100 * self.speed), 100), self.targets[index]


def closed_set(name: str, corpus: Corpus, rows: pd.DataFrame, column: str, verification: bool = False) -> Task:
    """Return a task whose labels are the values of `column` in training.

    Raises FedexitError for fewer than two labels, and for a value that is only in dev or test.
    """
    train = set(rows.query("split == 'train'")[column])
    if len(train) < 2:
        raise FedexitError(f"corpus {corpus.name} has {len(train)} {column}(s) to train task {name} on; it needs two")
    for split in ("dev", "test"):
        unknown = sorted(set(rows.query("split == @split")[column]) - train)
        if unknown:
            raise FedexitError(
                f"corpus {corpus.name}: {column} {unknown[0]!r} is in {split} but not in train, so task {name} cannot "
                "learn it; give it training clips or remove its rows from the manifest"
            )
    labels = sorted(train)
    target = rows[column].map({label: index for index, label in enumerate(labels)})
    return Task(name, corpus, labels, rows.assign(target=target).reset_index(drop=True), verification=verification)


def majority_error(labels: Sequence[int]) -> float:
    """Return the error of always answering the most frequent of `labels`; a useful classifier has a smaller one."""
    return 1.0 - np.bincount(np.asarray(labels)).max() / len(labels)
