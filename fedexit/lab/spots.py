"""Note what a spot check compares: the checksum of a model's weights and its answers, early in training and at its end.

A spot check trains a stored model anew until `SPOT_ROUND` and compares, which takes seconds (`fedexit.lab.published`).
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedexit.data.batches import Example
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import predict
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import read_checked, write_checked

SPOT_ROUND, SPOT_CLIPS = 2, 100
COLUMNS = ["round", "weights", "exit", "clip", "answer"]


def again(file: Path) -> str:
    """Return how to measure a cell again whose side file `file` is damaged: without its checkpoint it starts anew."""
    return f"delete {file.name.partition('.')[0]}.* in {file.parent} and run again to measure the cell"


def side_table(text: str, columns: Sequence[str], file: Path, **how: Any) -> pd.DataFrame:
    """Return the table in the text of a side file. Raises FedexitError if it is no CSV of rows with these columns."""
    try:
        found = pd.read_csv(io.StringIO(text), **how)
    except ValueError as error:  # pandas' own errors are of this kind
        raise FedexitError(f"{file.name} is damaged ({first_line(error)}); {again(file)}") from error
    if [*found] != [*columns] or found.empty:
        held = f"it has {len(found)} rows of the columns {[*found]!r:.200}"
        raise FedexitError(f"{file.name} is damaged ({held}); {again(file)}")
    return found


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
            write_checked(self.file, self._noted(number, model).to_csv(index=False))
        return due

    def last(self, number: int, model: MultiExitModel) -> None:
        """Note the model after its last round."""
        self._later = self._noted(number, model)

    def rows(self) -> pd.DataFrame:
        """Return all notes, with the columns `COLUMNS`.

        Raises:
            FedexitError: the file of `SPOT_ROUND` is damaged, or missing although rounds were trained.
        """
        texts, early = {"weights": str, "clip": str, "answer": str}, []
        if self.file.is_file() or (self._later["round"] > 0).any():
            noted = read_checked(self.file, again(self.file))
            early.append(side_table(noted, COLUMNS, self.file, dtype=texts, keep_default_na=False))
        return pd.concat([*early, self._later], ignore_index=True)

    def _noted(self, number: int, model: MultiExitModel) -> pd.DataFrame:
        found = predict(model, self.dev)
        answers = [own if isinstance(own, str) else self.labels[own] for own in found["predicted"].tolist()]
        clips = [self.ids[item] for item in found["item"]]
        rows = found[["exit"]].assign(round=number, weights=model.checksum(), clip=clips, answer=answers)
        return rows[COLUMNS]
