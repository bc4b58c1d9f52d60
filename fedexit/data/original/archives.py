"""Unpack archives of releases."""

import errno
import tarfile
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

from fedexit.data.folder import MANIFEST
from fedexit.data.packages import tar_fault
from fedexit.support.errors import FedexitError


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or a .tar of any compression into `folder`. No file is written outside of it.

    Raises:
        FedexitError: `archive` is damaged or no archive, or holds a path that leads out of the folder.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, OSError, RuntimeError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise FedexitError(f"{archive}: cannot be unpacked ({tar_fault(error)}); get it again") from error


def holds_corpus(archive: Path) -> bool:
    """Return whether `archive` is a readable .tar with a `manifest.csv`, and so not a release."""
    try:
        with tarfile.open(archive) as opened:
            return any(Path(member.name).name == MANIFEST for member in opened)
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError):
        return False
