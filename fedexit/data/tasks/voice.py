"""Define speaker identification (SID in the paper): predict the speaker among a closed set."""

import pandas as pd

from fedexit.data.corpora import Corpus
from fedexit.data.tasks.contract import Task, closed_set
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


def voice_task(corpus: Corpus, min_clips: int = 36) -> Task:
    """Predict the voice among those with at least `min_clips` transcribed clips (25 voices on queen)."""
    rows = corpus.manifest.query("speaker != '' and text != ''")
    counts = rows["speaker"].value_counts()
    if (counts >= min_clips).sum() < 2:
        raise FedexitError(
            f"corpus {corpus.name}: task voice needs two speakers with {min_clips} transcribed clips; lower min_clips"
        )
    return closed_set("voice", corpus, rows[rows["speaker"].map(counts) >= min_clips], "speaker", verification=True)


def speaker_task(corpus: Corpus, dev: float = 0.2, test: float = 0.2) -> Task:
    """Predict the speaker among those of the corpus's training part, for corpora that are split by speaker.

    (`speechocean` has 40 training speakers; verification uses the others.)

    Args:
        corpus: a corpus with speakers.
        dev: share of each speaker's clips that is held out for dev.
        test: share of each speaker's clips that is held out for test.
    """
    rows = corpus.manifest.query("split == 'train' and speaker != ''")
    split = pd.Series("train", index=rows.index)
    for speaker, own in rows.groupby("speaker", sort=True):
        order = numpy_stream("speaker task", speaker).permutation(own.index)
        first, second = round(dev * len(own)), round((dev + test) * len(own))
        split[order[:first]], split[order[first:second]] = "dev", "test"
    return closed_set("speaker", corpus, rows.assign(split=split), "speaker", verification=True)
