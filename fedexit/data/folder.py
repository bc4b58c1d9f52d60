"""Read, check and write the manifest of a corpus: `manifest.csv` in a folder with the audio files that it names."""

import hashlib
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from fedexit.data import table as csv_table
from fedexit.data.constants import MIN_SAMPLES, SAMPLE_RATE
from fedexit.support.errors import FedexitError, reason

COLUMNS = ["id", "path", "speaker", "group", "text", "label", "seconds", "split"]
SHORT_COLUMNS = ["path", "speaker", "label", "transcript"]
SPLITS = ["train", "dev", "test"]
MANIFEST = "manifest.csv"
MIN_SECONDS = MIN_SAMPLES / SAMPLE_RATE
_SPLIT_NAMES = {"training": "train", "val": "dev", "valid": "dev", "validation": "dev", "testing": "test"}


def read_table(path: Path) -> pd.DataFrame:
    """Read a manifest file as strings, as `fedexit.data.table.read_table` does."""
    return csv_table.read_table(path, [*COLUMNS, *SHORT_COLUMNS])


def read_manifest(folder: Path) -> pd.DataFrame:
    """Return the manifest of `folder` with the manifest's columns, not yet checked."""
    return as_manifest(read_table(folder / MANIFEST), folder / MANIFEST)


def as_manifest(table: pd.DataFrame, where: Path) -> pd.DataFrame:
    """Return `table` with the manifest's columns, filled in if it has the short format.

    The short format has `path` and `speaker`, and perhaps `label`, `transcript` and others, but no `text`. Then the id
    is the path without its ending, the group is the speaker, and speakers are split by `split_groups`. Given columns
    are kept; a field of blanks alone counts as empty. Names are converted to Unicode's composed form, and labels lose
    blanks at their ends, so that equal names compare equal. Raises FedexitError without `path` or `speaker`.
    """
    blank = {name: table[name].where(table[name].str.strip() != "", "") for name in table if name != "seconds"}
    table = table.assign(**blank)
    if "text" not in table:
        for column in ("path", "speaker"):
            if column not in table:
                expected = f"{','.join(SHORT_COLUMNS)} or {','.join(COLUMNS)}"
                raise FedexitError(f"{where}: column {column!r} is missing, expected {expected}")
        ids, text = clip_ids(table["path"]), table.get("transcript", "")
        filled = {"id": ids, "group": table["speaker"], "text": text, "label": ""}
        table = table.assign(**{name: values for name, values in filled.items() if name not in table})
        if "split" not in table:
            table = with_new_split(table)
    names = {name: table[name].map(composed) for name in ("id", "speaker", "group", "label") if name in table}
    if "label" in names:
        names["label"] = names["label"].str.strip()
    if "split" in table:
        names["split"] = table["split"].str.strip().str.lower().replace(_SPLIT_NAMES)
    return table.assign(**names)


def with_new_split(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with its groups split by `split_groups`."""
    groups = table["group"].map(composed)
    return table.assign(split=groups.map(split_groups(groups)))


def composed(name: str) -> str:
    """Return `name` in Unicode's composed form (NFC): macOS stores names decomposed, other systems composed."""
    return unicodedata.normalize("NFC", name)


def clip_ids(paths: Sequence[str]) -> list[str]:
    """Return the paths without their endings, or with them where two files differ only in the ending."""
    paths = [composed(posixpath.normpath(path.replace("\\", "/"))) if path else "" for path in paths]
    bare = [PurePosixPath(path).with_suffix("").as_posix() if PurePosixPath(path).name else path for path in paths]
    counts = pd.Series(bare).value_counts()
    ids = [short if counts[short] == 1 else path for short, path in zip(bare, paths, strict=True)]
    return ids if len(set(ids)) == len(ids) else paths


def save_manifest(table: pd.DataFrame, path: Path) -> None:
    """Write `table` as a manifest: columns in order, seconds with 3 decimals, LF line ends; all or nothing."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FedexitError(f"{path}: cannot be written (no such folder); choose another place")
    try:
        csv_table.write_table(table[COLUMNS].assign(seconds=[f"{value:.3f}" for value in table["seconds"]]), path)
    except (OSError, ValueError) as error:
        raise FedexitError(f"{path}: cannot be written ({reason(error)}); choose another place") from error


def check_manifest(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the manifest's columns of `table`, with `seconds` as float and `path` as the file is really spelled.

    Raises:
        FedexitError: a column is missing, there is no row, an id is empty or not unique, a split is not one of
            `SPLITS`, seconds are not finite or below `MIN_SECONDS`, a path leads out of the folder or to no file, or a
            file has two ids in different splits.
    """
    where = folder / MANIFEST
    for column in COLUMNS:
        if column not in table:
            fix = "or run `fedexit data convert FOLDER OUT`, which measures seconds"
            raise FedexitError(f"{where}: column {column!r} is missing, expected {','.join(COLUMNS)}; add it, {fix}")
    if table.empty:
        raise FedexitError(f"{where}: the corpus is empty, expected at least one clip")
    _refuse(where, table["id"][table["path"] == ""], "the clip {} has no path; fill it in, or remove the row")
    _refuse(where, table["path"][table["id"] == ""], "the clip of the file {} has an empty id; give it one")
    _refuse(where, table["id"][table["id"].duplicated()], "the id {} occurs more than once; make ids unique")
    _refuse(where, table["split"][~table["split"].isin(SPLITS)], f"unknown split {{}}, expected {', '.join(SPLITS)}")
    given = table["seconds"].astype(str).str.strip().replace(r"^(\d+),(\d+)$", r"\1.\2", regex=True)  # decimal comma
    seconds = pd.to_numeric(given, errors="coerce").to_numpy(float)
    bad = ~(np.isfinite(seconds) & (seconds > 0))
    _refuse(where, table["id"][bad], "seconds of clip {} are not a finite number above 0")
    short = f"the clip {{}} is shorter than {MIN_SECONDS} s, too short for any model; take it out of the manifest"
    _refuse(where, table["id"][seconds < MIN_SECONDS], short)
    outside = "path {} leads out of the folder or is absolute; write it relative to the folder"
    _refuse(where, table["path"][table["path"].map(leads_out)], outside)
    listings: dict[Path, dict[str, str]] = {}
    paths = [located(folder, path, listings) for path in table["path"]]
    missing = [path for path, there in zip(table["path"], paths, strict=True) if there is None]
    _refuse(where, missing, "the audio file {} is missing; correct its path, or fetch or convert the corpus again")
    table = table[COLUMNS].assign(path=paths, seconds=seconds).reset_index(drop=True)
    _check_same_files(table, folder)
    return table


def check_groups(table: pd.DataFrame, folder: Path) -> None:
    """Raise FedexitError if clips of one group are in different splits: test clips would resemble training clips.

    Clips without speaker, text and label are not checked, because no task uses them.
    """
    used = (table[["speaker", "text", "label"]] != "").any(axis=1)
    named = table[used & (table["group"] != "")]
    first = named.drop_duplicates("group").set_index("group")
    for row in named[named["split"] != named["group"].map(first["split"])].itertuples():
        other = first.loc[row.group]
        pair = f"{other['id']!r} ({other['split']}) and {row.id!r} ({row.split})"
        raise FedexitError(
            f"{folder / MANIFEST}: the clips {pair} belong to the group {row.group!r}; put all clips of a "
            "group into one split (without a column group, the speaker is the group)"
        )


def located(folder: Path, path: str, listings: dict[Path, dict[str, str]]) -> str | None:
    """Return the spelling on disk of the file `path` in `folder`, or None if it does not exist.

    Paths with backslashes and names in another Unicode form (NFC or NFD) are found, too.

    Args:
        folder: the corpus.
        path: the path in the manifest.
        listings: names in each folder by composed form; this function fills it, so that each folder is listed once.
    """
    for spelled in (path, path.replace("\\", "/")):
        if path and os.path.isfile(os.path.join(folder, spelled)):
            return spelled
    if composed(path) == unicodedata.normalize("NFD", path):  # one form only
        return None
    here = folder
    for part in PurePosixPath(path.replace("\\", "/")).parts:
        if not (here / part).exists():
            if here not in listings:
                listings[here] = {composed(name): name for name in os.listdir(here)} if here.is_dir() else {}
            if composed(part) not in listings[here]:
                return None
            part = listings[here][composed(part)]
        here = here / part
    return here.relative_to(folder).as_posix() if here.is_file() else None


def split_groups(groups: Iterable[str]) -> dict[str, str]:
    """Return the split of each group (70 % train, 15 % dev, 15 % test, counted in groups), equal on every machine.

    Groups are ordered by the SHA-256 of their names. With three groups or more, each split gets at least one. Two
    groups give train and test, a single group gives train.
    """
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    held_out = max(1, round(0.15 * len(ranked)))
    test = held_out if len(ranked) >= 2 else 0
    dev = held_out if len(ranked) >= 3 else 0
    names = ["test"] * test + ["dev"] * dev + ["train"] * (len(ranked) - test - dev)
    return dict(zip(ranked, names, strict=True))


def leads_out(path: str) -> bool:
    """Return whether `path`, followed as it is written, leaves the folder; links inside the folder are followed."""
    plain = os.path.normpath(path.replace("\\", "/"))
    return os.path.isabs(plain) or plain.split("/")[0] == ".." or plain[1:2] == ":"


def _check_same_files(table: pd.DataFrame, folder: Path) -> None:
    """Raise FedexitError if one file, by whatever path or link, has two ids in different splits."""
    seen: dict[tuple[int, int], tuple[str, str]] = {}
    for clip, path, split in zip(table["id"], table["path"], table["split"], strict=True):
        other, its_split = seen.setdefault(identity(os.path.join(folder, path)), (clip, split))
        if its_split != split:
            raise FedexitError(
                f"{folder / MANIFEST}: the clips {other!r} ({its_split}) and {clip!r} ({split}) are the same file; "
                "remove one of the rows"
            )


def identity(path: str | Path) -> tuple[int, int]:
    """Return device and inode: equal for two paths to one file. Raises OSError if nothing is there."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _refuse(where: Path, values: Iterable[str], message: str) -> None:
    """Raise FedexitError about the first of `values`, if there is one."""
    for value in values:
        raise FedexitError(f"{where}: " + message.format(repr(value)))
