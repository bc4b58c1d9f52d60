"""Check published cells: train a few of them again and compare their weights and answers.

Equal code on an equal processor gives bit-identical weights. Other processors round differently, so there most answers
must be alike.
"""

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedexit.data.places import place_of
from fedexit.lab.cells import run_cell
from fedexit.lab.kept import origin_of, present_code, processor, today
from fedexit.lab.published import read_published, setting_from
from fedexit.lab.setting import Cell, Setting
from fedexit.lab.spots import SPOT_ROUND
from fedexit.runner.cell_index import SAME_CODE, SAME_COLUMNS, read_index, read_same_code, trusted_codes
from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text
from fedexit.support.placement import lacks_bfloat16
from fedexit.support.processes import one_thread

ALIKE = 0.97  # share of the answers that must be alike on another processor


class Checked(NamedTuple):
    """The comparison of a cell that was trained again with the published one.

    row: the cell's row of the index.
    identical: whether weights and answers are bit-identical.
    alike: number of equal answers.
    answers: number of published answers after the rounds that were trained.
    """

    row: dict
    identical: bool
    alike: int
    answers: int

    @property
    def passed(self) -> bool:
        """Return whether the cell is bit-identical, or on another processor nearly all answers are alike."""
        return self.identical or (_made_elsewhere(self.row) and self.alike >= ALIKE * self.answers)

    def __str__(self) -> str:
        if self.identical:
            found = "bit-identical"
        else:
            found = f"{self.alike} of {self.answers} answers alike"
            found = f"{found} (made on another processor)" if self.passed else f"differs: {found}"
        return f"{self.row['key']} {self.row['name']}: {found}"


def check_cells(
    folder: Path,
    number: int | None = None,
    whole: bool = False,
    say: Callable[[str], object] = print,
    turn: int = 0,
) -> list[Checked]:
    """Train some of the cells that are published in `folder` again, and compare them with the published ones.

    Args:
        folder: the published cells.
        number: number of cells, of those that this kind of processor made if there are any, because these must be
            bit-identical; None takes one of every experiment, i.e. of every key, wherever it was made.
        whole: train the cells to the end; otherwise until `SPOT_ROUND`. Cells that train no weights are never checked.
        say: gets a line for each cell, and for each corpus that is not there.
        turn: another turn checks other cells, as long as there are any.

    Raises:
        FedexitError: there is no cell whose corpus is there; the corpus or the backbone has another content than the
            one the cell was made from; or as `run_cell`.
    """
    index = read_index(folder)
    rows = _in_own_precision(_with_corpus([row for row in index.values() if row["weights"]], say), say)
    if not rows:
        raise FedexitError(f"{folder} has no cell to check; publish cells, or fetch their corpora")
    if number is None:
        number = len({row["key"] for row in rows})
    else:
        rows = [row for row in rows if not _made_elsewhere(row)] or rows
    rows = sorted(rows, key=lambda row: (row["key"], row["name"]))
    start = turn * number % len(rows)
    chosen = _chosen([*rows[start:], *rows[:start]], number)
    published = read_published(folder, [(row["key"], row["name"]) for row in chosen])
    found = []
    for row in chosen:
        measured, _ = published[row["key"], row["name"]]
        found.append(_compared(row, measured.spot, _trained(row, whole)))
        say(str(found[-1]))
    return found


def _made_elsewhere(row: dict) -> bool:
    """Return whether another kind of processor made the cell: another name, or another answer to `lacks_bfloat16`.

    The name alone is not enough: a virtual machine may give processors of several generations one name.
    """
    return (row["processor"], row["bfloat16"]) != (processor(), not lacks_bfloat16())


def _with_corpus(rows: Iterable[dict], say: Callable[[str], object]) -> list[dict]:
    """Return the rows of cells whose corpus is there."""
    names: dict[str, list[dict]] = {}
    for row in rows:
        names.setdefault(setting_from(row["setting"]).data.corpus, []).append(row)
    found = []
    for corpus, own in names.items():
        try:
            place_of(corpus)
            found += own
        except FedexitError as error:
            say(f"{len(own)} cells are not checked: {error}")
    return found


def _in_own_precision(rows: list[dict], say: Callable[[str], object]) -> list[dict]:
    """Return the rows of cells that this processor can train in the precision in which they were trained.

    Cells of bfloat16 that were trained in single precision fell below `ALIKE`: this compares precisions.
    """
    if not lacks_bfloat16():
        return rows
    found = [row for row in rows if not _is_half(Cell(**_about(row)), setting_from(row["setting"]))]
    if left := len(rows) - len(found):
        say(f"{left} cells are not checked: they were trained in bfloat16, which this processor lacks")
    return found


def _is_half(cell: Cell, setting: Setting) -> bool:
    return setting.federation.training.bfloat16 if cell.federated else setting.study.central.bfloat16


def _about(row: dict) -> dict:
    """Return the fields of a cell from its row of the index."""
    return {name: row[name] for name in ("task", "method", "seed", "depth")}


def _chosen(rows: Sequence[dict], number: int) -> list[dict]:
    """Return `number` rows: each time one whose key, and then whose method, were chosen least often so far."""
    left, chosen = list(rows), list[dict]()
    used: Counter[tuple[str, ...]] = Counter()
    while left and len(chosen) < number:
        row = min(left, key=lambda row: [used[part] for part in _parts(row)])
        used.update(_parts(row))
        left.remove(row)
        chosen.append(row)
    return chosen


def _parts(row: dict) -> list[tuple[str, ...]]:
    """Return what is counted when cells are chosen."""
    return [("key", row["key"]), ("both", row["key"], row["method"]), ("method", row["method"])]


def _trained(row: dict, whole: bool) -> pd.DataFrame:
    """Return the answers of a cell that is trained again, as the table `spot`."""
    cell, setting = Cell(**_about(row)), setting_from(row["setting"])
    origin = origin_of(setting)
    for kind, checksum in (("corpus", origin.corpus[1]), ("backbone", origin.backbone[1])):
        if checksum != row[f"{kind}_checksum"]:
            raise FedexitError(
                f"{row['name']} was made from another content of the {kind} {row[kind]}; get that one, or measure the "
                "cell again"
            )
    with tempfile.TemporaryDirectory() as state, one_thread():
        return run_cell(cell, setting, Path(state), stop_after=None if whole else SPOT_ROUND).spot


def _compared(row: dict, old: pd.DataFrame, new: pd.DataFrame) -> Checked:
    """Compare the answers of a cell that was trained again with the published ones after the same rounds."""
    answers = ["round", "exit", "clip"]
    old, new = old[old["round"].isin(new["round"])].drop_duplicates(answers), new.drop_duplicates(answers)
    both = old.merge(new.astype(old[answers].dtypes), on=answers, suffixes=("", "_new"))
    alike = int((both["answer"] == both["answer_new"]).sum())
    same_weights = bool((both["weights"] == both["weights_new"]).all())
    identical = 0 < len(old) == len(new) == alike and same_weights
    return Checked(row, identical, alike, len(old))


def record(folder: Path, checked: Sequence[Checked]) -> list[str]:
    """Note in same_code.csv that the present code reproduced the cells of other codes; return the hashes of these.

    Cells of another kind of processor prove nothing about the code and are left out.

    Raises:
        FedexitError: one of the other cells was not bit-identical, or there is none.
    """
    comparable = [one for one in checked if one.identical or not _made_elsewhere(one.row)]
    if others := [one for one in comparable if not one.identical]:
        raise FedexitError(f"nothing is recorded, because {others[0].row['name']} is not bit-identical")
    if not comparable:
        raise FedexitError("nothing is recorded, because all cells were made on other processors; check others: --turn")
    present = present_code()
    counts = Counter(one.row["code"] for one in comparable)
    gives = sorted({*counts} - {"", present})
    if not gives:
        return []
    added = [
        dict(zip(SAME_COLUMNS, (present, code, counts[code], processor(), today()), strict=True)) for code in gives
    ]
    again = {(present, code, processor()) for code in gives}
    rows = [r for r in read_same_code(folder) if (r["code"], r["gives"], r["processor"]) not in again] + added
    text = io.StringIO()
    writer = csv.DictWriter(text, SAME_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / SAME_CODE, text.getvalue())
    return gives


def listed(folder: Path) -> pd.DataFrame:
    """Return one row for every experiment in `folder`: what it is, and how many of its cells are verified."""
    rows, trusted = list(read_index(folder).values()), trusted_codes(folder, present_code())
    if not rows:
        raise FedexitError(f"{folder} has no cells; publish some with: fedexit cells publish")
    table = pd.DataFrame(rows)
    table = table.assign(verified=table["code"].isin(trusted), hours=table["seconds"] / 3600)
    about = ["key", "task", "corpus", "backbone"]
    groups = table.groupby(about, as_index=False)
    found = groups.agg(cells=("name", "count"), verified=("verified", "sum"), hours=("hours", "sum"))
    return found.sort_values(["task", "key"], ignore_index=True).round({"hours": 1})
