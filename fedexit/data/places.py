"""Find the folder of a corpus. This module does not import torch, because `fedexit status` needs checksums at once."""

import os
from pathlib import Path

from fedexit.data.archives import unpack
from fedexit.data.checksums import ClipHashes, combined
from fedexit.data.folder import MANIFEST, located, read_manifest
from fedexit.data.original.catalogue import ORIGINALS
from fedexit.data.packages import PACKAGE
from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash, new_folder
from fedexit.support.locks import owned
from fedexit.support.paths import data_dir, named_or_folder

QUEEN, UNLABELLED = "queen", "unlabelled"
TARS = {  # corpus: (name of its folder or tar, licence, public home)
    name: (one.subset, one.licence, one.home) for name, one in ORIGINALS.items() if one.subset
}
NAMES = (QUEEN, UNLABELLED, *ORIGINALS)
_HOW_TO_FETCH = {
    QUEEN: f"run: fedexit data fetch {QUEEN} (Debian package {PACKAGE}, 35 MB)",
    UNLABELLED: f"run: fedexit data fetch {UNLABELLED} (speech in 13 Debian packages, 600 MB)",
    **{name: f"run: {one.how_to_fetch(name)}" for name, one in ORIGINALS.items()},
}


def found(name: str) -> Path | None:
    """Return the folder or tar of a known corpus, or None if it is not there."""
    stem = TARS[name][0] if name in TARS else name
    cache, downloads = data_dir() / "cache", data_dir() / "downloads"
    for folder in (cache / stem, downloads / stem):
        if (folder / MANIFEST).is_file():
            return folder
    tar = downloads / f"{stem}.tar"
    return tar if tar.is_file() else None


def named_or_own(name: str | Path) -> str | Path:
    """Return the name of a known corpus, or the path of the user's own; see `named_or_folder`."""
    if not isinstance(name, str | os.PathLike):
        raise FedexitError(f"a corpus cannot be of type {type(name).__name__}; give its name or its folder")
    return named_or_folder(name, NAMES, "corpus", found(name) if name in NAMES else None)


def place_of(name: str | Path) -> Path:
    """Return the path of the corpus with this name or path. Raises FedexitError if it does not exist."""
    place = named_or_own(name)
    if isinstance(place, str):
        return place_of_known(place)
    if not str(name) or not os.path.exists(place):
        expected = f"expected {', '.join(NAMES)}, or a folder or .tar with a {MANIFEST}"
        raise FedexitError(f"corpus {str(name)!r} is not there; {expected}")
    return place


def place_of_known(name: str) -> Path:
    """Return the path of the known corpus `name`. Raises FedexitError with the command that fetches it."""
    place = found(name)
    if place is None:
        raise FedexitError(f"corpus {name!r} is not there; {_HOW_TO_FETCH[name]}")
    return place


def unpacked(tar: Path) -> Path:
    """Return the folder of a tar's corpus in the cache, unpacked on first use; a changed tar gets a new folder.

    Raises FedexitError if `tar` is no tar, is damaged, or holds anything but files and folders.
    """
    folder = data_dir() / "cache" / f"{tar.stem}-{file_hash(tar)[:12]}"
    if not folder.is_dir():
        if tar.suffix.lower() == ".zip":
            raise FedexitError(
                f"{tar}: cannot be unpacked (a .zip archive); get it again as a .tar, or unpack it and give its folder"
            )
        with owned(folder, wait=True):
            if not folder.is_dir():  # another process may have unpacked it meanwhile
                with new_folder(folder) as part:
                    unpack(tar, part)
    return _corpus_inside(folder, tar)


def folder_of(name: str | Path) -> Path:
    """Return the folder, with a `manifest.csv`, of the corpus with this name or path.

    Raises FedexitError if it does not exist or holds no manifest.
    """
    place = place_of(name)
    folder = unpacked(place) if place.is_file() else place
    if not (folder / MANIFEST).is_file():
        raise FedexitError(f"{folder}: no {MANIFEST} in it; make a corpus of it with `fedexit data convert FOLDER OUT`")
    return folder


def corpus_checksum(name: str | Path) -> str:
    """Return the checksum of the manifest and the audio of the corpus with this name or path."""
    folder = folder_of(name)
    return content_checksum(folder, manifest_paths(folder), ClipHashes(folder))


def manifest_paths(folder: Path) -> list[str]:
    """Return the files that the manifest of `folder` names, as they are spelled on disk."""
    listings: dict[Path, dict[str, str]] = {}
    return [located(folder, path, listings) or path for path in read_manifest(folder)["path"]]


def content_checksum(folder: Path, paths: list[str], hashes: ClipHashes) -> str:
    """Return the checksum of the manifest in `folder` together with its files `paths`."""
    return combined((folder / MANIFEST).read_bytes(), hashes.of_all(paths))


def _corpus_inside(folder: Path, tar: Path) -> Path:
    """Return the folder nearest to the top of the unpacked `tar` that holds a manifest."""
    every = [file.parent for file in folder.rglob(MANIFEST) if not _is_hidden(file.relative_to(folder))]
    if not every:
        raise FedexitError(f"{tar}: no {MANIFEST} in it; unpack it and make a corpus of it with `fedexit data convert`")
    depth = min(len(path.parts) for path in every)
    nearest = sorted(path for path in every if len(path.parts) == depth)
    if len(nearest) > 1:
        names = " and ".join(repr(path.relative_to(folder).as_posix()) for path in nearest[:2])
        raise FedexitError(f"{tar}: holds several corpora, {names}; unpack it and give the folder of one")
    return nearest[0]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
