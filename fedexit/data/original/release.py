"""Find and read the files of a release. What macOS adds to a folder, such as `._a.wav` and `__MACOSX`, is ignored."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedexit.support.errors import FedexitError

Note = Callable[[str, object], None]  # receives a reason and the file or clip that it concerns
_DEPTH, _SHOWN = 2, 5


class Clip(NamedTuple):
    """One clip of a release.

    id: unique name, by convention the path in the release without its ending.
    path: the audio file, relative to the release.
    speaker, group, text, label, split: as in the manifest of a corpus.
    second: take only this second of the file, counted from 0; None takes the whole file.
    """

    id: str
    path: str
    speaker: str = ""
    group: str = ""
    text: str = ""
    label: str = ""
    split: str = "train"
    second: int | None = None


def release_root(folder: Path, marks: Sequence[str], title: str) -> Path:
    """Return `folder`, or the folder up to two levels below it, that holds a release.

    Args:
        folder: a folder of the user.
        marks: patterns of files that the release holds; alternatives are separated by `|`.
        title: name of the release, for the error.

    Raises:
        FedexitError: there is no such folder; the message states what was expected and what was found.
    """
    level = [folder]
    for _ in range(_DEPTH + 1):
        for place in level:
            if all(any(any(place.glob(one)) for one in mark.split("|")) for mark in marks):
                return place
        level = [inner for place in level for inner in sorted(place.iterdir()) if inner.is_dir() and not _hidden(inner)]
    names = sorted(inner.name for inner in folder.iterdir() if not _hidden(inner))
    found = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    expected = " and ".join(mark.replace("|", " or ") for mark in marks)
    raise FedexitError(f"{folder}: no release of {title} in it; expected {expected}, found {found or 'nothing'}")


def files_below(root: Path, endings: Sequence[str], inside: str = ".") -> Iterator[str]:
    """Yield the files below the folder `inside` of `root` with one of `endings`, as sorted paths relative to `root`.

    Endings are given in lower case and may be in upper case on disk. Hidden files and folders are left out.
    """
    for here, folders, files in os.walk(root / inside, followlinks=True):
        place = Path(here)
        folders[:] = sorted(name for name in folders if not _hidden(place / name))
        for name in sorted(files):
            if not _hidden(place / name) and name.lower().endswith(tuple(endings)):
                yield (place / name).relative_to(root).as_posix()


def bare(path: str) -> str:
    """Return a path without its ending."""
    return os.path.splitext(path)[0]


def read_lines(file: Path) -> list[str]:
    """Return the lines of a list of a release without blanks around them and without empty lines.

    Raises FedexitError if the file is missing or cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise FedexitError(f"{file}: cannot be read ({error.strerror}); unpack or fetch the release again") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def refuse_missing(missing: Sequence[str], total: int, where: Path) -> None:
    """Raise FedexitError if a release lacks files that its own list `where` names."""
    if missing:
        raise FedexitError(
            f"{where}: {len(missing):,} of the {total:,} files in this list are missing ({missing[0]}); "
            "unpack or fetch the whole release"
        )


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "__MACOSX"
