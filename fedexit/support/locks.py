"""Let one process at a time work on a file or folder, and remove what killed processes left beside it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedexit.support.errors import FedexitError, reason
from fedexit.support.files import OLD

_PART = r"\.({})\.([a-z0-9_]{{8}})\.part(\..*)?"  # names that `replacing`, `new_folder` and `swap` make


@contextmanager
def owned(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Let no other process work on the file or folder `path` inside the block; remove leftovers of killed ones first.

    The system releases the lock however the process ends.

    Args:
        path: the file or folder; it need not exist.
        wait: wait for the other process instead of raising an error.

    Raises:
        FedexitError: another process works on it, or the lock cannot be made beside it.

    Example:
        >>> with owned(out), new_folder(out) as part:
        ...     fill(part)
    """
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FedexitError(f"{path} is in use by another process; wait for it or stop it") from None
    except (OSError, ValueError, NotImplementedError) as error:  # the last where a file system has no locks
        raise FedexitError(f"{path}: cannot be made ({reason(error)}); choose another place") from error
    try:
        sweep(path.parent, path.name)
        yield
    finally:
        with suppress(OSError):  # Windows does not remove an open file
            Path(lock.lock_file).unlink()
        lock.release()


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders that killed processes left in `folder`: those of `name`, or all.

    A folder that was moved aside and has no successor yet gets its name back. Call this only where no other process
    writes such files.
    """
    pattern = re.compile(_PART.format(re.escape(name) if name is not None else ".+"))
    for left in folder.iterdir() if folder.is_dir() else ():
        if not (match := pattern.fullmatch(left.name)):
            continue
        if match[2] == OLD and not (folder / match[1]).exists():
            left.rename(folder / match[1])
        else:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
