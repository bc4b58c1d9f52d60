"""Tasks: which clips of a corpus take part, what is to be told from them, and the clips as training examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fedexit.audio import SAMPLE_RATE
from fedexit.clients import Example
from fedexit.corpora import Corpus
from fedexit.errors import FedexitError

TASKS = ("voice", "keyword")


@dataclass(frozen=True)
class Task:
    """A closed-set classification of whole clips.

    labels: class names in the order of the logits; rows: the manifest's rows that take part, with the column `target`
    (index into `labels`).
    """

    name: str
    corpus: Corpus
    labels: list[str]
    rows: pd.DataFrame


class Clips(Sequence[Example]):
    """The clips of some of a task's rows, decoded when asked for: item i is (waveform (T,) at 16 kHz, label index)."""

    def __init__(self, corpus: Corpus, rows: pd.DataFrame, max_seconds: float):
        self.corpus, self.max_samples = corpus, int(max_seconds * SAMPLE_RATE)
        self.ids, self.targets = rows["id"].tolist(), rows["target"].tolist()

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        """Clip `index`, cut after `max_seconds`, and its label."""
        return self.corpus.waveform(self.ids[index])[: self.max_samples], self.targets[index]


def make_task(name: str, corpus: Corpus) -> Task:
    """The task `name` on `corpus`. Raises FedexitError for an unknown name and for a corpus that cannot express it."""
    if name not in TASKS:
        raise FedexitError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return voice_task(corpus) if name == "voice" else keyword_task(corpus)


def voice_task(corpus: Corpus, min_clips: int = 36) -> Task:
    """Who speaks: the voices with at least `min_clips` clips with a transcript (25 on queen). SID in the paper."""
    rows = corpus.manifest.query("speaker != '' and text != ''")
    counts = rows["speaker"].value_counts()
    if (counts >= min_clips).sum() < 2:
        raise FedexitError(
            f"corpus {corpus.name}: task voice needs two speakers with {min_clips} transcribed clips each"
        )
    return _closed_set("voice", corpus, rows[rows["speaker"].map(counts) >= min_clips], "speaker")


def keyword_task(corpus: Corpus, words: int = 10) -> Task:
    """Which of the `words` most frequent first words opens the line (counted on train). KWS in the paper."""
    rows = corpus.manifest.query("text != ''")
    rows = rows.assign(word=first_words(rows["text"]))
    frequent = rows.query("split == 'train' and word != ''")["word"].value_counts(sort=False).sort_index()
    closed_list = frequent.sort_values(ascending=False, kind="stable").index[:words]
    return _closed_set("keyword", corpus, rows[rows["word"].isin(closed_list)], "word")


def first_words(texts: pd.Series) -> pd.Series:
    """The first word of each line in lower case, apostrophes kept ("it's"); empty when there is none."""
    return texts.str.lower().str.extract(r"([a-z]+(?:'[a-z]+)?)", expand=False).fillna("")


def _closed_set(name: str, corpus: Corpus, rows: pd.DataFrame, column: str) -> Task:
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
    return Task(name, corpus, labels, rows.assign(target=target).reset_index(drop=True))
