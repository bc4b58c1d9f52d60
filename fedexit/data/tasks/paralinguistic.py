"""ER in the paper, and the like of it on a corpus without emotions: how something is said."""

import numpy as np

from fedexit.data.corpora import Corpus
from fedexit.data.tasks.contract import Task, closed_set
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


def emotion_task(corpus: Corpus, fold: int = 0) -> Task:
    """Which emotion is acted: the corpus's label, with a fifth of the speakers for test, another for dev.

    `fold` says which: folds 0 to 4 test each speaker once. A speaker is a client.
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
    """How a line ends: the corpus's label (queen: statement, question, exclamation, ellipsis, by its last mark).

    Noisy, as the writers' marks are. The stand-in for emotion where nobody labelled emotions.
    """
    return closed_set("sentence", corpus, corpus.manifest.query("label != ''"), "label")
