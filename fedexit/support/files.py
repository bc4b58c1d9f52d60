"""Hash files, and write a file so that it is always either the old version or the complete new one."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedexit.support.errors import FedexitError, first_line, reason

_BLOCK = 1 << 20


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
    """Raise FedexitError for a file that is missing, empty, a web page or a Git LFS pointer instead of the real one."""
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


def read_json_object(file: Path) -> dict:
    """Return the JSON object in `file`. Raises FedexitError if the file holds anything else."""
    check_downloaded(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends without an error, that file becomes `path`.

    The temporary name is unique, so two processes never write into each other's file. A failed block leaves `path`
    as it was and no temporary file.

    Example:
        >>> with replacing(target) as part:
        ...     part.write_text("all or nothing")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".part{path.suffix}", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())  # mkstemp makes a private file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` in one step (see `replacing`)."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with its own line ends, in one step (see `replacing`)."""
    write_bytes(path, text.encode("utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
