"""Emotion recognition (ER in the paper), and a stand-in for corpora without emotions: how a line is spoken."""

import numpy as np

from fedexit.data.corpora import Corpus
from fedexit.data.tasks.contract import Task, closed_set
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


def emotion_task(corpus: Corpus, fold: int = 0) -> Task:
    """Predict the acted emotion: the corpus's label. One fifth of the speakers is for test, another for dev.

    A speaker is a client. Raises FedexitError for fewer than five speakers.

    Args:
        corpus: a corpus with labels and speakers.
        fold: selects the fifths; folds 0 to 4 test each speaker once.
    """
    rows = corpus.manifest.query("label != '' and speaker != ''")
    speakers = sorted(rows["speaker"].unique())
    if len(speakers) < 5:
        raise FedexitError(f"corpus {corpus.name} has {len(speakers)} speakers; task emotion needs five")
    parts = np.array_split(numpy_stream("emotion folds").permutation(speakers), 5)
    split = dict.fromkeys(speakers, "train")
    split |= dict.fromkeys(parts[fold % 5], "test") | dict.fromkeys(parts[(fold + 1) % 5], "dev")
    rows = rows.assign(split=rows["speaker"].map(split), group=rows["speaker"])
    return closed_set("emotion", corpus, rows, "label")


def sentence_task(corpus: Corpus) -> Task:
    """Predict how a line ends: the corpus's label (queen: statement, question, exclamation or ellipsis).

    The labels are noisy, since writers use these marks freely. The task stands in for emotion where no emotion is
    labelled.
    """
    return closed_set("sentence", corpus, corpus.manifest.query("label != ''"), "label")
