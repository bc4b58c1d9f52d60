"""The one manifest format of every corpus: a folder with `manifest.csv` and the audio files it names."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from fedexit.support.errors import FedexitError, first_line

COLUMNS = ["id", "path", "speaker", "group", "text", "label", "seconds", "split"]
SPLITS = ["train", "dev", "test"]
MANIFEST = "manifest.csv"


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file as strings, with empty fields as "" (never NaN; a text "None" or "NA" stays what it is)."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise FedexitError(f"{path}: not readable as a CSV table ({first_line(error)})") from error


def save_manifest(table: pd.DataFrame, path: Path) -> None:
    """Write `table` as a manifest: the columns in order, seconds with 3 decimals, LF line ends; whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    lines = table[COLUMNS].assign(seconds=[f"{seconds:.3f}" for seconds in table["seconds"]])
    try:
        lines.to_csv(part, index=False, lineterminator="\n")
        os.replace(part, path)
    except OSError as error:
        raise FedexitError(f"{path}: cannot be written ({error}); choose another place") from error


def check_manifest(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """`table` with the manifest's columns alone and `seconds` as float, or FedexitError naming the first fault.

    Checked: every column there, at least one row, ids unique, seconds finite and above zero, split one of train, dev
    and test, every path inside `folder` and there.
    """
    where = folder / MANIFEST
    for column in COLUMNS:
        if column not in table:
            raise FedexitError(f"{where}: column {column!r} is missing, expected {','.join(COLUMNS)}")
    if table.empty:
        raise FedexitError(f"{where}: the corpus is empty, expected at least one clip")
    _refuse(where, table["id"][table["id"].duplicated()], "the id {} occurs more than once; make ids unique")
    _refuse(where, table["split"][~table["split"].isin(SPLITS)], f"unknown split {{}}, expected {', '.join(SPLITS)}")
    seconds = pd.to_numeric(table["seconds"], errors="coerce").to_numpy(float)
    bad = ~(np.isfinite(seconds) & (seconds > 0))
    _refuse(where, table["id"][bad], "seconds of clip {} are not a finite number above 0")
    root = folder.resolve()
    outside = [path for path in table["path"] if not (root / path).resolve().is_relative_to(root)]
    _refuse(where, outside, "path {} leads out of the folder; use paths relative to it")
    missing = [path for path in table["path"] if not (root / path).is_file()]
    _refuse(where, missing, "the audio file {} is missing; fetch or convert the corpus again")
    return table[COLUMNS].assign(seconds=seconds)


def split_groups(groups: Iterable[str]) -> dict[str, str]:
    """Split of each group (70 % train, 15 % dev, 15 % test, counted in groups), the same on every machine.

    The order is that of the names' SHA-256, which has nothing to do with what the names mean. With three groups or more
    each split gets one; two give train and test, a single one gives train.
    """
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    held_out = max(1, round(0.15 * len(ranked)))
    test = held_out if len(ranked) >= 2 else 0
    dev = held_out if len(ranked) >= 3 else 0
    names = ["test"] * test + ["dev"] * dev + ["train"] * (len(ranked) - test - dev)
    return dict(zip(ranked, names, strict=True))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` that becomes `target` when the block ends well and is removed otherwise.

    So a corpus folder is either complete or absent, even if the build is killed. An older `target` is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    part.chmod(0o755)  # mkdtemp makes it private, and a cache may be shared
    try:
        yield part
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse(where: Path, values: Iterable[str], message: str) -> None:
    """Raise FedexitError about the first of `values`, if there is one."""
    for value in values:
        raise FedexitError(f"{where}: " + message.format(repr(value)))
