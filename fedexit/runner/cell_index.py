"""Look up published cells in their index, and which code gives the same numbers as other code.

The folder results/cells has both; its README.md describes the files, and `fedexit.lab.published` writes them.
"""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from fedexit.support.errors import FedexitError, reason
from fedexit.support.extras import extra
from fedexit.support.files import file_hash
from fedexit.support.paths import results_dir

with extra("notebooks"):
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

INDEX = "cells.parquet"
SAME_CODE = "same_code.csv"
SAME_COLUMNS = ["code", "gives", "cells", "processor", "date"]


def cells_folder() -> Path:
    """Return the folder of the project's published cells."""
    return results_dir() / "cells"


def read_index(folder: Path) -> dict[tuple[str, str], dict]:
    """Return the index of the published cells in `folder` by key and name; it is empty if nothing is published yet.

    Raises:
        FedexitError: the index is damaged.
    """
    return _read_index(folder / INDEX, file_hash(folder / INDEX))


@cache
def _read_index(file: Path, checksum: str) -> dict[tuple[str, str], dict]:
    if checksum == "missing":
        return {}
    with refusing_damage(file):
        return {(row["key"], row["name"]): row for row in pq.read_table(file).to_pylist()}


def read_same_code(folder: Path) -> list[dict[str, str]]:
    """Return the rows of same_code.csv in `folder`: where a check found that one code gives the cells of another.

    Raises:
        FedexitError: the file has other columns.
    """
    file = folder / SAME_CODE
    if not file.is_file():
        return []
    with refusing_damage(file), file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
        if any([*row] != SAME_COLUMNS or None in row.values() for row in rows):
            raise ValueError(f"its columns are not {', '.join(SAME_COLUMNS)}")
    return rows


def trusted_codes(folder: Path, present: str) -> set[str]:
    """Return the hashes of the codes whose cells in `folder` are verified, given the hash of the `present` code.

    These are the present code, every code whose cells it reproduced bit-identically (`read_same_code`), every code
    whose cells that one reproduced, and so on.
    """
    pairs = {(row["code"], row["gives"]) for row in read_same_code(folder)}
    trusted, more = set[str](), {present}
    while more:
        trusted |= more
        more = {gives for code, gives in pairs if code in trusted} - trusted
    return trusted


@contextmanager
def refusing_damage(file: Path) -> Iterator[None]:
    """Turn an error about the content of a published `file` into one sentence."""
    try:
        yield
    except (OSError, ArrowException, ValueError, KeyError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
        raise FedexitError(f"{file.name} is damaged ({what}); get the folder {file.parent.name} from git") from error
