"""Define the tasks of the paper's tables on the corpora that it uses, each by the corpus's own split.

A client is a speaker in all of them. They read the columns `label`, `speaker`, `text` and `split` of the manifest, so
any corpus that has these can stand in for the paper's.
"""

from collections.abc import Callable

import pandas as pd

from fedexit.data.corpora import Corpus
from fedexit.data.tasks.contract import Task, check_spelling, closed_set
from fedexit.data.text import CHARACTERS, characters
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")  # of the list of twelve
UNKNOWN, SILENCE = "unknown", "silence"


def kws12_task(corpus: Corpus) -> Task:
    """Predict one of ten commands, `unknown` for any other word, or `silence` (KWS-12 in the paper).

    Each split keeps as many unknown words, drawn once, as it has clips of a command on average, as in the official list
    of twelve. The labels `_silence_` and `_unknown_` mean the same as those without lines.
    """
    rows = _labelled(corpus)
    words = rows["label"].where(rows["label"].isin((*COMMANDS, SILENCE)), UNKNOWN)
    kept = [_few_unknown(own.assign(word=words[own.index])) for _, own in rows.groupby("split", sort=True)]
    return closed_set("kws12", corpus, _with_owners(pd.concat(kept).sort_index()), "word")


def kws35_task(corpus: Corpus) -> Task:
    """Predict the spoken word, one of all labels of the corpus (KWS-35 in the paper)."""
    rows = _labelled(corpus)
    return closed_set("kws35", corpus, _with_owners(rows[~rows["label"].isin((SILENCE, UNKNOWN))]), "label")


def er_task(corpus: Corpus) -> Task:
    """Predict the emotion, the label of the corpus (ER in the paper)."""
    return closed_set("er", corpus, _with_owners(_labelled(corpus)), "label")


def sid_task(corpus: Corpus) -> Task:
    """Predict the speaker; every split holds other clips of the same speakers (SID in the paper)."""
    rows = corpus.manifest.query("speaker != ''")
    return closed_set("sid", corpus, rows.assign(group=rows["speaker"]), "speaker", verification=True)


def transcription_task(corpus: Corpus, max_seconds: float = 36.0) -> Task:
    """Predict the characters a-z, apostrophe and blank of every transcript (ASR in the paper).

    Raises FedexitError without transcripts, and for a clip that is too short for its text after `max_seconds`.
    """
    rows = corpus.manifest.query("text != '' and speaker != ''")
    rows = rows.assign(group=rows["speaker"], target=[characters(text) for text in rows["text"]])
    rows = rows[rows["target"].map(len) > 0].reset_index(drop=True)
    if rows.empty:
        raise FedexitError(f"corpus {corpus.name} has no transcripts for task transcription; take another corpus")
    check_spelling(rows, max_seconds)
    return Task("transcription", corpus, list(CHARACTERS), rows, head="ctc", max_seconds=max_seconds)


OFFICIAL: dict[str, Callable[..., Task]] = {
    "kws12": kws12_task,
    "kws35": kws35_task,
    "er": er_task,
    "sid": sid_task,
    "transcription": transcription_task,
}


def _labelled(corpus: Corpus) -> pd.DataFrame:
    """Return the rows with a label, without the lines around names such as `_silence_`."""
    rows = corpus.manifest.query("label != ''")
    return rows.assign(label=rows["label"].str.strip("_"))


def _few_unknown(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one split with as many unknown words as a command has clips on average."""
    unknown = rows.index[rows["word"] == UNKNOWN]
    count = round(rows["word"].isin(COMMANDS).sum() / len(COMMANDS))
    order = numpy_stream("unknown words", rows["split"].iloc[0]).permutation(len(unknown))
    return rows.drop(unknown[order[count:]])


def _with_owners(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `rows` whose group is the speaker. Clips of nobody, such as silence, are dealt to the split's speakers."""
    groups = rows["speaker"].copy()
    for split, own in rows.groupby("split", sort=True):
        speakers, lone = sorted(set(own["speaker"]) - {""}), own.index[own["speaker"] == ""]
        if len(lone) and speakers:
            groups[lone] = numpy_stream("clips of nobody", split).choice(speakers, len(lone))
    return rows.assign(group=groups)
