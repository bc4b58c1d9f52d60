"""Save and load checkpoints: one file with a run's state and tensors, and beside it a table of rows that only grows.

A kill at any moment leaves a state to resume from. The state and the tensors are replaced in one step, and the state
before stays beside them as `<file>.previous`, for the case that the newest is damaged. Rows are written to the table
before the state that counts them, and rows beyond the count are ignored. Every part has a checksum.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import replacing
from fedexit.support.locks import owned, sweep
from fedexit.support.tensors import read_tensors, write_tensors

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of one parameter, by name


def save_checkpoint(file: str | Path, identity: object, state: object, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint in one step.

    Args:
        file: The path of the checkpoint.
        identity: The facts that must be equal when the run resumes, ready for JSON. Only their hash is stored.
        state: The progress of the run, ready for JSON.
        tensors: The tensors of the run by name.

    Raises:
        FedexitError: when the file cannot be written.
    """
    texts = {"identity": _hashed(identity), "state": json.dumps(state)}
    with _written(file):
        if Path(file).exists():
            _copy(Path(file), previous_file(file))
        write_tensors(file, tensors, texts)


@contextmanager
def owned_checkpoint(file: str | Path | None) -> Iterator[None]:
    """Let no other process use the checkpoint `file` (see `owned`); None stands for no checkpoint.

    Raises:
        FedexitError: another process uses it, or no file can be written there.
    """
    if file is None:
        yield
        return
    with _written(file):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=Path(file).parent).close()
    with owned(file):
        sweep(Path(file).parent, previous_file(file).name)
        yield


def load_checkpoint(file: str | Path | None, identity: object) -> tuple[Any, dict[str, Tensor]] | None:
    """Return the state and the tensors as they were saved, or None if there is no file yet.

    If the file is damaged and the state before it is whole, that one takes its place, with a warning.

    Raises:
        FedexitError: the file is damaged or belongs to another run.
    """
    if file is None or not Path(file).exists():
        return None
    try:
        owner, found = _read(file)
    except FedexitError as damage:
        try:
            owner, found = _read(previous_file(file))
        except FedexitError:
            raise damage from None
        if owner != _hashed(identity):
            raise
        warnings.warn(f"{damage.args[0].partition(';')[0]}; resuming from the state before it", stacklevel=2)
        _copy(previous_file(file), Path(file))
    if owner != _hashed(identity):
        raise FedexitError(
            f"checkpoint {Path(file).name} belongs to another run (other data, settings or start); delete it or name "
            "another file"
        )
    return found


def remove_checkpoint(file: str | Path) -> None:
    """Remove a checkpoint with all that lies beside it; the state itself goes last."""
    for own in (previous_file(file), rows_file(file), Path(file)):
        own.unlink(missing_ok=True)


def previous_file(file: str | Path) -> Path:
    """Return the path of the state before the newest one of a checkpoint."""
    return Path(f"{file}.previous")


def rows_file(file: str | Path) -> Path:
    """Return the path of the table of rows beside a checkpoint: a JSON object and its checksum per line."""
    return Path(f"{file}.rows.jsonl")


def append_rows(file: str | Path, rows: Sequence[Mapping], size: int) -> int:
    """Append `rows` to the table beside the checkpoint `file`, after its first `size` bytes; return the new size.

    Bytes beyond `size` come from a run that was killed before it saved its state, and are overwritten.
    """
    texts = map(json.dumps, rows)
    lines = "".join(f"{text}\t{_short_hash(text)}\n" for text in texts).encode()
    with _written(file), open(rows_file(file), "r+b" if size else "wb") as table:
        table.truncate(size)
        table.seek(size)
        table.write(lines)
        table.flush()
        os.fsync(table.fileno())
    return size + len(lines)


def read_rows(file: str | Path, size: int) -> list[dict]:
    """Return the rows in the first `size` bytes of the table beside the checkpoint `file`.

    Raises:
        FedexitError: when the table is missing, shorter or damaged.
    """
    if not size:
        return []
    with refusing_damage(file):
        with rows_file(file).open("rb") as table:
            content = table.read(size)
        if len(content) < size:
            raise ValueError(f"{rows_file(file).name} holds {len(content)} of {size} bytes")
        return [_row(line) for line in content.decode().removesuffix("\n").split("\n")]


def _row(line: str) -> dict:
    """Return the row in a line of the table. An older version wrote no checksums. Raises ValueError for damage."""
    text, tab, checksum = line.partition("\t")
    row = json.loads(text)
    if not isinstance(row, dict) or (tab and checksum != _short_hash(text)):
        raise ValueError(f"the row {text[:60]} changed since it was written")
    return row


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(file: str | Path) -> tuple[str, tuple[Any, dict[str, Tensor]]]:
    """Return the hash of the run that owns the file `file`, and the state and tensors in it."""
    with refusing_damage(file):
        tensors, texts = read_tensors(file, ("identity", "state"))
        return texts["identity"], (json.loads(texts["state"]), tensors)


def _copy(file: Path, target: Path) -> None:
    """Let `target` have the content of `file`, in one step; by a link where the system has links."""
    with replacing(target) as part:
        part.unlink()
        try:
            os.link(file, part)
        except OSError:
            shutil.copyfile(file, part)


@contextmanager
def refusing_damage(file: str | Path) -> Iterator[None]:
    """Turn an error about the content of the checkpoint `file` into one sentence."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise FedexitError(f"checkpoint {Path(file).name} is damaged ({reason}); delete it and run again") from error


@contextmanager
def _written(file: str | Path) -> Iterator[None]:
    try:
        if Path(file).is_dir():
            raise IsADirectoryError("it is a folder")
        yield
    except (OSError, TypeError) as error:
        raise FedexitError(f"checkpoint {file} cannot be written ({first_line(error)}); name another file") from error


def _hashed(identity: object) -> str:
    return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()


def options_set(options: Any) -> dict:
    """Return the options (fields of a dataclass) that differ from their defaults.

    An option that is added later therefore does not change what identifies finished work.
    """
    given = [(option.name, getattr(options, option.name), option.default) for option in fields(options)]
    return {
        name: options_set(value) if is_dataclass(value) else value
        for name, value, default in given
        if default is MISSING or value != default
    }
