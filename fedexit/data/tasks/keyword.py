"""KWS in the paper: which word of a closed list is said."""

import pandas as pd

from fedexit.data.corpora import Corpus
from fedexit.data.tasks.contract import Task, closed_set


def keyword_task(corpus: Corpus, words: int = 10) -> Task:
    """Which of the `words` most frequent first words opens the line (counted on train)."""
    rows = corpus.manifest.query("text != ''")
    rows = rows.assign(word=first_words(rows["text"]))
    frequent = rows.query("split == 'train' and word != ''")["word"].value_counts(sort=False).sort_index()
    closed_list = frequent.sort_values(ascending=False, kind="stable").index[:words]
    return closed_set("keyword", corpus, rows[rows["word"].isin(closed_list)], "word")


def digit_task(corpus: Corpus) -> Task:
    """Which digit is said: the corpus's own label, by its own split (`asc_digits`: speakers are on one side only)."""
    return closed_set("digit", corpus, corpus.manifest.query("label != ''"), "label")


def first_words(texts: pd.Series) -> pd.Series:
    """The first word of each line in lower case, apostrophes kept ("it's"); empty when there is none."""
    return texts.str.lower().str.extract(r"([a-z]+(?:'[a-z]+)?)", expand=False).fillna("")
