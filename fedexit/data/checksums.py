"""Hash the clips of a corpus. An index in the cache avoids reading unchanged files again.

This module does not import torch, because `fedexit status` needs checksums at once.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash, flush_to_disk, sealed, unsealed, write_text
from fedexit.support.locks import owned
from fedexit.support.paths import data_dir

SETTLED = 2_000_000_000  # nanoseconds after which another edit is certain to change a file's times
_HAS_CHANGE_TIME = os.name == "posix"  # elsewhere `st_ctime` is the creation time, so files are always read


class ClipHashes:
    """SHA-256 of files below one folder.

    A file is read again unless its size, modification time, change time and inode are as in the index. The system sets
    the change time at every edit, and no program can set it back. A file that changed within the last two seconds is
    always read, because a second edit could fall into the same tick of the clock. Not seen are edits through a memory
    map where the file system keeps files in memory alone (tmpfs).
    """

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._index = _index_file(self._folder)
        self._known = _load(self._index)

    def of(self, path: str) -> str:
        """Return the hash of the file `path` below the folder. Raises FedexitError if it cannot be read."""
        file = self._folder / path
        try:
            stamp = _stamp(file)
            if self._known.get(path, [None])[:-1] == stamp:
                return self._known[path][-1]
            if settled := _HAS_CHANGE_TIME and max(stamp[1:3]) + SETTLED < time.time_ns():
                with suppress(OSError):  # only then does the next write through a memory map change the times
                    flush_to_disk(file)
            digest = file_hash(file)
            if settled and _stamp(file) == stamp:
                self._known[path] = [*stamp, digest]
        except OSError as error:
            raise FedexitError(
                f"{file}: cannot be read ({error.strerror}); fetch or convert the corpus again"
            ) from error
        return digest

    def of_all(self, paths: Iterable[str]) -> list[str]:
        """Return the hashes of `paths` and keep them in the index for the next process."""
        before = dict(self._known)
        found = [self.of(path) for path in paths]
        if self._index is not None and self._known != before:
            with (
                suppress(OSError, FedexitError),
                owned(self._index),
            ):  # without an index, files are read again next time
                write_text(self._index, json.dumps(sealed(self._known)))
        return found


def combined(manifest: bytes, hashes: Iterable[str]) -> str:
    """Return the checksum of a corpus from the bytes of its manifest and the hashes of its clips."""
    return hashlib.sha256("\n".join([hashlib.sha256(manifest).hexdigest(), *hashes]).encode()).hexdigest()


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _index_file(folder: Path) -> Path | None:
    """Return the index of `folder` in the cache; None outside of a project, where there is no cache."""
    try:
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        return data_dir() / "cache" / f"hashes-{name}.json"
    except FedexitError:
        return None


def _load(index: Path | None) -> dict[str, list]:
    try:
        return unsealed(json.loads(index.read_text(encoding="utf-8"))) if index else {}
    except (OSError, ValueError, AttributeError, RecursionError):  # none yet, or damaged: everything is read again
        return {}
