"""Note what a spot check compares: the checksum of a model's weights and its answers, early in training and at its end.

A spot check trains a stored model anew until `SPOT_ROUND` and compares, which takes seconds (`fedexit.lab.published`).
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedexit.data.batches import Example
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import predict
from fedexit.support.files import write_text

SPOT_ROUND, SPOT_CLIPS = 2, 100
COLUMNS = ["round", "weights", "exit", "clip", "answer"]


class Spots:
    """The notes of one training. Those of `SPOT_ROUND` are also kept in a file, for a run that resumes later.

    Args:
        labels: names of the model's outputs.
        dev: dev clips; the first `SPOT_CLIPS` are answered.
        ids: their ids in the corpus.
        file: the notes of `SPOT_ROUND`.
    """

    def __init__(self, labels: Sequence[str], dev: Sequence[Example], ids: Sequence[str], file: Path):
        self.labels, self.dev, self.ids, self.file = labels, dev[:SPOT_CLIPS], ids[:SPOT_CLIPS], file
        self._later = pd.DataFrame(columns=COLUMNS)

    def early(self, number: int, rounds: int, model: MultiExitModel) -> bool:
        """Note the model if round `number` of `rounds` is the one of the spot check; return whether it is."""
        due = number == min(SPOT_ROUND, rounds)
        if due:
            write_text(self.file, self._noted(number, model).to_csv(index=False))
        return due

    def last(self, number: int, model: MultiExitModel) -> None:
        """Note the model after its last round."""
        self._later = self._noted(number, model)

    def rows(self) -> pd.DataFrame:
        """Return all notes, with the columns `COLUMNS`."""
        texts = {"weights": str, "clip": str, "answer": str}
        early = [pd.read_csv(self.file, dtype=texts, keep_default_na=False)] if self.file.is_file() else []
        return pd.concat([*early, self._later], ignore_index=True)

    def _noted(self, number: int, model: MultiExitModel) -> pd.DataFrame:
        found = predict(model, self.dev)
        answers = [own if isinstance(own, str) else self.labels[own] for own in found["predicted"].tolist()]
        clips = [self.ids[item] for item in found["item"]]
        rows = found[["exit"]].assign(round=number, weights=model.checksum(), clip=clips, answer=answers)
        return rows[COLUMNS]
