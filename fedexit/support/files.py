"""Hash files, and write a file or folder so that it is always either the old version or the complete new one."""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedexit.support.errors import FedexitError, first_line, reason

_BLOCK = 1 << 20
_LARGEST_HEADER = 100_000_000  # bytes, the limit of safetensors
_SEAL = "checksum"
_LINE = "# sha256 "  # begins the first line of a text that `write_checked` wrote
OLD = "old_copy"  # eight letters, as in the temporary names
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or "missing"."""
    if not path.is_file():
        return "missing"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_bytes(file: Path) -> bytes:
    """Return the bytes of a file that a user named. Raises FedexitError if it cannot be read."""
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise FedexitError(f"{file}: cannot be read ({reason(error)}); check the path") from error


def json_hash(value: object) -> str:
    """Return the SHA-256 of a value that JSON can hold; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_downloaded(file: Path) -> None:
    """Raise FedexitError for a file that is missing, empty, cut off, a web page or a Git LFS pointer.

    Only safetensors files say how long they are, so that a cut is noticed here.
    """
    if not file.is_file():
        raise FedexitError(f"{file} is not there; download it again")
    with file.open("rb") as opened:
        start = opened.read(64).lstrip().lower()
    if not start:
        raise FedexitError(f"{file} is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise FedexitError(f"{file} is a Git LFS pointer, not the file itself; get it with: git lfs pull")
    if start.startswith((b"<!doctype", b"<html")):
        raise FedexitError(f"{file} is a web page; download the file itself")
    if file.suffix == ".safetensors" and (size := file.stat().st_size) < (whole := _announced(file)):
        raise FedexitError(f"{file} is cut off: it holds {size} of {whole} bytes; download it again")


def _announced(file: Path) -> int:
    """Return the size in bytes that the header of a safetensors file announces; 0 if there is no such header."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length <= _LARGEST_HEADER else b""
    if 0 < len(header) < length and header.startswith(b"{"):  # cut off in the header itself
        return 8 + length
    with suppress(ValueError, RecursionError, LookupError, TypeError, AttributeError):
        tensors = [own for name, own in json.loads(header).items() if name != "__metadata__"]
        return 8 + length + max(int(own["data_offsets"][1]) for own in tensors)
    return 0


def read_json_object(file: Path) -> dict:
    """Return the JSON object in `file`. Raises FedexitError if the file holds anything else."""
    check_downloaded(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FedexitError(f"{file} is not JSON ({first_line(error)}); download it again") from error
    if not isinstance(content, dict):
        raise FedexitError(f"{file} holds a JSON {type(content).__name__}, not an object; download it again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """Return the files in a model folder that hold its weights: the safetensors files, else the old `.bin` files."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def weights_hash(folder: Path) -> str:
    """Return `file_hash` of the weights in a model folder, joined if there are several files; "missing" without any."""
    return "+".join(map(file_hash, weight_files(folder))) or "missing"


def sealed(facts: dict) -> dict:
    """Return the JSON object `facts` with a checksum of itself, so that `unsealed` notices any change."""
    return {**facts, _SEAL: json_hash(facts)}


def unsealed(found: dict) -> dict:
    """Return the object in `found`, which `sealed` made. Raises ValueError if it changed since."""
    facts = {name: value for name, value in found.items() if name != _SEAL}
    if found.get(_SEAL) != json_hash(facts):
        raise ValueError("it changed since it was written")
    return facts


def check_target(path: str | Path) -> Path:
    """Return the path of a file that a command is going to write; call it before the work that may take minutes.

    Nothing is made: folders that are missing are those of `replacing`.

    Raises:
        FedexitError: it is a folder, below a file, or in a folder where this user cannot write; or its name is too
            long.
    """
    path = Path(path)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
        above = next((folder for folder in path.absolute().parents if folder.exists()), path)
        if path.is_dir():
            fault = errno.EISDIR
        else:
            fault = errno.ENOTDIR if not above.is_dir() else 0 if os.access(above, os.W_OK) else errno.EACCES
        if fault:
            raise OSError(fault, os.strerror(fault))
    except (OSError, ValueError) as error:
        raise FedexitError(f"{path}: cannot be written ({reason(error)}); choose another place") from error
    return path


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of the system name `path` instead of a temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: str | Path, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path near `path`; when the block ends without an error, that file becomes `path`.

    The temporary file is alone in a new folder beside `path`, so two processes never write into each other's file.
    What a library leaves there when the process is killed lies in that folder too, and `fedexit.support.locks.sweep`
    removes it: safetensors first writes to a name of its own, such as `.tmpQ7xY2a`. A failed block leaves `path` as it
    was and no temporary file. The new file is on disk before it takes its name, so a power failure leaves one of the
    two whole. `flush=False` leaves that to a later `new_folder`, which is faster for many small files.

    Example:
        >>> with replacing(target) as part:
        ...     part.write_text("all or nothing")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path):
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=f".part{path.suffix}", dir=path.parent))
    part = folder / path.name
    try:
        part.touch()
        yield part
        part.chmod(0o666 & ~_umask())  # some libraries make a private file
        if flush:
            flush_to_disk(part)
        with _naming(path):
            os.replace(part, path)
        if flush:
            flush_to_disk(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a temporary sibling of `target` that becomes `target` when the block ends without an error.

    So a folder is either complete or absent, even if the process is killed. An older `target` is replaced in one step.
    Call it inside `fedexit.support.locks.owned(target)` where two processes could make one folder.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=f".part{target.suffix}", dir=target.parent))
    except (OSError, ValueError) as error:
        raise FedexitError(f"{target}: cannot be made ({reason(error)}); choose another place") from error
    part.chmod(0o755)  # mkdtemp makes a private folder, but a cache may be shared
    try:
        yield part
        if hasattr(os, "sync"):  # one call for all files; Windows lacks it
            os.sync()
        swap(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def swap(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`, and remove the older `target` if there is one.

    On Linux `target` is there at every moment. Other systems need two steps; a kill between them leaves the older
    folder as `.<name>.old_copy.part`, which `fedexit.support.locks.sweep` restores.
    """
    if not target.exists():
        os.rename(new, target)
    elif _exchange(new, target):
        shutil.rmtree(new)
    else:
        old = target.with_name(f".{target.name}.{OLD}.part")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:  # also an interrupt
            os.rename(old, target)
            raise
        shutil.rmtree(old)
    flush_to_disk(target.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk. Not all systems can flush folders."""
    folder = path.is_dir()
    if folder and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_bytes(path: str | Path, content: bytes, flush: bool = True) -> None:
    """Write `content` to `path` in one step (see `replacing`)."""
    with replacing(path, flush) as part:
        part.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with its own line ends, in one step (see `replacing`)."""
    write_bytes(path, text.encode("utf-8"))


def write_checked(path: str | Path, text: str) -> None:
    """Write `text` as `write_text` does, below a line with its checksum, so that `read_checked` notices any change."""
    write_text(path, f"{_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_checked(path: Path, fix: str) -> str:
    """Return the text that `write_checked` wrote. An older version wrote no checksum: such a text is returned as it is.

    Raises:
        FedexitError: the file is missing, cannot be read, or changed since it was written; the message ends in `fix`.
    """
    try:
        first, end, text = path.read_bytes().decode().partition("\n")
        if not first.startswith(_LINE):
            return first + end + text
        if first.removeprefix(_LINE) == hashlib.sha256(text.encode()).hexdigest():
            return text
        why = "it changed since it was written"
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error)
    raise FedexitError(f"{path.name} is damaged or missing ({why}); {fix}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step. Returns False where the system cannot: Linux alone has a call for it."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # since glibc 2.28
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
