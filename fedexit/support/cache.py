"""Keep the feature files in the cache below a limit: the least recently used ones are deleted first."""

import math
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedexit.support.arrays import record_file
from fedexit.support.errors import FedexitError
from fedexit.support.paths import data_dir


def limit() -> int:
    """Return the limit in bytes for all feature files together. Raises FedexitError for a bad FEDEXIT_CACHE_GB."""
    wish = os.environ.get("FEDEXIT_CACHE_GB", "8")
    try:
        size = float(wish)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise FedexitError(f"FEDEXIT_CACHE_GB is {wish!r}; give a number of gigabytes, 0 or more")
    return int(size * 1e9)


def feature_files() -> dict[Path, int]:
    """Return the size in bytes of each feature file in the cache, the least recently used one first."""
    found = []
    for file in (data_dir() / "cache").glob("frozen-*.f32"):
        with suppress(FileNotFoundError):  # another process has just deleted it
            found.append((file.stat().st_mtime, file, file.stat().st_size))
    return {file: size for _, file, size in sorted(found)}


def make_room(size: int) -> None:
    """Delete the least recently used feature files until `size` more bytes are within the limit."""
    files = feature_files()
    total = sum(files.values())
    for file, held in files.items():
        if total + size <= limit():
            break
        # a file that another process is about to open stays; a deleted one stays readable where it is open
        with suppress(Timeout, PermissionError), lock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)
            record_file(file).unlink(missing_ok=True)
            total -= held


def lock(file: Path) -> FileLock:
    """Return the lock of a cached file; the system releases it when its process ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file.with_suffix(".lock"))
