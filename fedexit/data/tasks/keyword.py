"""Define keyword spotting (KWS in the paper): predict a word of a closed list."""

import pandas as pd

from fedexit.data.corpora import Corpus
from fedexit.data.tasks.contract import Task, closed_set
from fedexit.data.text import words as whole_words


def keyword_task(corpus: Corpus, words: int = 10) -> Task:
    """Predict the first word of a line, one of the `words` most frequent first words in train.

    Words are whole words of any script (`fedexit.data.text.words`).
    """
    rows = corpus.manifest.query("text != ''")
    rows = rows.assign(word=first_words(rows["text"]))
    frequent = rows.query("split == 'train' and word != ''")["word"].value_counts(sort=False).sort_index()
    closed_list = frequent.sort_values(ascending=False, kind="stable").index[:words]
    return closed_set("keyword", corpus, rows[rows["word"].isin(closed_list)], "word")


def digit_task(corpus: Corpus) -> Task:
    """Predict the spoken digit: the label and the split are the corpus's (`asc_digits` splits by speaker)."""
    return closed_set("digit", corpus, corpus.manifest.query("label != ''"), "label")


def first_words(texts: pd.Series) -> pd.Series:
    """Return the first word of each line in lower case with its apostrophes ("it's"); "" where there is none."""
    return texts.map(lambda text: next(iter(whole_words(text)), ""))
