"""Read archives that may come from anyone: files and folders only, inside the folder, and within limits."""

import errno
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path

from zstandard import ZstdError

from fedexit.support.errors import FedexitError, first_line

MAX_MEMBERS = 1_000_000  # files and folders in an archive; the largest release here has 160,000
MAX_BYTES = 500_000_000_000  # bytes that an archive may unpack to
_PLAIN = "make it of files and folders only, with paths inside the folder (tar --dereference)"


class Limits:
    """Count the entries and bytes of one archive, and refuse what it must not hold.

    Args:
        most: bytes that its files may have together.
    """

    def __init__(self, most: int):
        self.entries, self.bytes, self.most = 0, 0, most

    def add(self, name: str, size: int) -> None:
        """Count an entry. Raises FedexitError if the archive has too many entries or bytes, or a negative size."""
        self.entries += 1
        self.bytes += size
        if size < 0:  # such a size would let `tarfile` read one entry for ever
            raise FedexitError(f"its entry {name!r:.100} has the size {size}; get it again")
        if self.entries > MAX_MEMBERS or self.bytes > self.most:
            found = f"{self.entries:,} entries or more with {self.bytes:,} bytes"
            raise FedexitError(f"it holds {found}, but {MAX_MEMBERS:,} and {self.most:,} are the most; free space, or "
                               "get a smaller one")  # fmt: skip


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar of any compression, or a .zip, into `folder`. No file is written outside of it.

    Raises:
        FedexitError: `archive` is damaged or no archive; it holds a link, a device, a path that is absolute or leads
            out of the folder, more than `MAX_MEMBERS` entries, or more bytes than `MAX_BYTES` or the disk has room for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limits = Limits(min(MAX_BYTES, shutil.disk_usage(folder).free))
    with refusing_faults(f"{archive}: cannot be unpacked", "get it again"):
        if tarfile.is_tarfile(archive) or not zipfile.is_zipfile(archive):
            with tarfile.open(archive) as opened:
                for member in opened:
                    _check(member.name, member.isfile() or member.isdir())
                    limits.add(member.name, member.size)
                    opened.extract(member, folder, filter="data")
            return
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                _check(entry.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                limits.add(entry.filename, entry.file_size)
                zipped.extract(entry, folder)


def holds_corpus(archive: Path, manifest: str) -> bool:
    """Return whether `archive` is a readable .tar with a file called `manifest`, and so not a release."""
    limits, found = Limits(MAX_BYTES), False
    try:
        with refusing_faults("", ""), tarfile.open(archive) as opened:
            for member in opened:
                limits.add(member.name, member.size)
                found = found or Path(member.name).name == manifest
    except FedexitError:
        return False
    return found


@contextmanager
def refusing_faults(problem: str, fix: str) -> Iterator[None]:
    """Turn an error about an archive into one sentence that begins with `problem`; a full disk stays an OSError."""
    try:
        yield
    except FedexitError as error:
        fault, _, own = str(error).partition("; ")
        raise FedexitError(f"{problem} ({fault}); {own or fix}") from error
    except (
        tarfile.TarError, zipfile.BadZipFile, ZstdError, LZMAError, zlib.error, EOFError, OSError, RuntimeError,
        ValueError, IndexError, KeyError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise FedexitError(f"{problem} ({_fault(error)}); {fix}") from error


def _fault(error: Exception) -> str:
    """Return why an archive cannot be read; the module tarfile lists every kind that it tried, which helps nobody."""
    return "not a .tar archive, or a damaged one" if "opened successfully" in str(error) else first_line(error)


def _check(name: str, plain: bool) -> None:
    """Raise FedexitError for an entry that is neither file nor folder, or that would lie outside of the folder."""
    if not plain:
        raise FedexitError(f"{name!r} is a link or device; {_PLAIN}")
    if name.startswith(("/", "\\")) or name[1:2] == ":" or ".." in re.split(r"[\\/]", name):
        raise FedexitError(f"{name!r} is an absolute path, or leads out of the folder; {_PLAIN}")
