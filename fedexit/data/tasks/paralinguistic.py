"""Define emotion recognition (ER in the paper), and a stand-in for corpora without emotions: how a line is spoken."""

import numpy as np
import pandas as pd

from fedexit.data.corpora import Corpus
from fedexit.data.tasks.contract import Task, closed_set
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


def emotion_task(corpus: Corpus, fold: int = 0) -> Task:
    """Predict the acted emotion: the corpus's label. One fifth of the speakers is for test, another for dev.

    A speaker is a client. If groups unite speakers, as the five sessions of `iemocap` do, fifths are made of whole
    groups. Raises FedexitError for fewer than five speakers.

    Args:
        corpus: a corpus with labels and speakers.
        fold: selects the fifths; folds 0 to 4 test each speaker once.
    """
    rows = corpus.manifest.query("label != '' and speaker != ''")
    speakers = sorted(rows["speaker"].unique())
    if len(speakers) < 5:
        raise FedexitError(f"corpus {corpus.name} has {len(speakers)} speakers; task emotion needs five")
    together = _together(rows)
    units = sorted(together.unique())
    parts = np.array_split(numpy_stream("emotion folds").permutation(units), 5)
    split = dict.fromkeys(units, "train")
    split |= dict.fromkeys(parts[fold % 5], "test") | dict.fromkeys(parts[(fold + 1) % 5], "dev")
    rows = rows.assign(split=together.map(split), group=rows["speaker"])
    return closed_set("emotion", corpus, rows, "label")


def _together(rows: pd.DataFrame) -> pd.Series:
    """Return for each row what a fold must not divide: the group of its speaker, or the speaker if it has several.

    It is always the speaker if there are fewer than five groups.
    """
    one_group = rows.groupby("speaker")["group"].transform("nunique") == 1
    groups = rows["group"].where(one_group & (rows["group"] != ""), rows["speaker"])
    return groups if groups.nunique() >= 5 else rows["speaker"]


def sentence_task(corpus: Corpus) -> Task:
    """Predict how a line ends: the corpus's label (queen: statement, question, exclamation or ellipsis).

    The labels are noisy, since writers use these marks freely. The task stands in for emotion where no emotion is
    labelled.
    """
    return closed_set("sentence", corpus, corpus.manifest.query("label != ''"), "label")
