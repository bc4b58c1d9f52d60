"""The contract of every task: which clips of a corpus take part, what is to be told of them, by what head."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torchaudio

from fedexit.data.audio import SAMPLE_RATE
from fedexit.data.batches import Example
from fedexit.data.corpora import Corpus
from fedexit.support.errors import FedexitError


@dataclass(frozen=True)
class Task:
    """What is to be told of the clips of a corpus.

    labels: names of the outputs in their order (for `ctc` heads the blank comes before them); rows: the manifest's rows
    that take part, with the task's own `split` and `group` (a client's clips) and the column `target`: an index into
    `labels`, for `ctc` a list of numbers from 1. head: a name in `fedexit.model.heads.HEADS`.
    """

    name: str
    corpus: Corpus
    labels: list[str]
    rows: pd.DataFrame
    head: str = "pooled"
    verification: bool = False  # whether pairs of voices can be verified, where the corpus has a list of trials


class Clips(Sequence[Example]):
    """The clips of some of a task's rows, decoded when asked for: item i is (waveform (T,) at 16 kHz, target).

    Played at `speed` (speed perturbation, Ko et al. 2015: 1.25 is shorter and higher), one voice sounds like another.
    """

    def __init__(self, corpus: Corpus, rows: pd.DataFrame, max_seconds: float, speed: float = 1.0):
        self.corpus, self.max_samples, self.speed = corpus, int(max_seconds * SAMPLE_RATE), speed
        self.ids, self.targets = rows["id"].tolist(), rows["target"].tolist()

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        """Clip `index`, cut after `max_seconds` and then played at `speed`, and its target."""
        clip = self.corpus.waveform(self.ids[index])[: self.max_samples]
        return torchaudio.functional.resample(clip, round(100 * self.speed), 100), self.targets[index]


def closed_set(name: str, corpus: Corpus, rows: pd.DataFrame, column: str, verification: bool = False) -> Task:
    """Labels are the values of `column` in training; a value that only dev or test has is an error, not a guess."""
    train = set(rows.query("split == 'train'")[column])
    if len(train) < 2:
        raise FedexitError(f"corpus {corpus.name} has {len(train)} {column}(s) to train task {name} on; it needs two")
    for split in ("dev", "test"):
        unknown = sorted(set(rows.query("split == @split")[column]) - train)
        if unknown:
            raise FedexitError(
                f"corpus {corpus.name}: {column} {unknown[0]!r} is in {split} but not in train, so task {name} cannot "
                "know it; give it training clips or take it out of the manifest"
            )
    labels = sorted(train)
    target = rows[column].map({label: index for index, label in enumerate(labels)})
    return Task(name, corpus, labels, rows.assign(target=target).reset_index(drop=True), verification=verification)
