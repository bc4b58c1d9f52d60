"""Save and load checkpoints: one file with a run's state and tensors, and beside it a table of rows that only grows.

A kill at any moment leaves a state to resume from. The state and the tensors are replaced in one step. Rows are written
to the table before the state that counts them, and rows beyond the count are ignored.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import replacing

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
    metadata = {"identity": _hashed(identity), "state": json.dumps(state)}
    with _written(file), replacing(file) as part:
        save_file(dict(tensors), part, metadata=metadata)


def load_checkpoint(file: str | Path | None, identity: object) -> tuple[Any, dict[str, Tensor]] | None:
    """Return the state and the tensors as they were saved, or None if there is no file yet.

    Raises:
        FedexitError: the file is damaged or belongs to another run, or no file can be written there.
    """
    if file is None:
        return None
    with _written(file):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=Path(file).parent).close()
    if not Path(file).exists():
        return None
    with refusing_damage(file):
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a dict)
        owner, state = metadata["identity"], json.loads(metadata["state"])
    if owner != _hashed(identity):
        raise FedexitError(
            f"checkpoint {Path(file).name} belongs to another run (other data, settings or start); delete it or name "
            "another file"
        )
    return state, tensors


def rows_file(file: str | Path) -> Path:
    """Return the path of the table of rows beside a checkpoint: one JSON object per line."""
    return Path(f"{file}.rows.jsonl")


def append_rows(file: str | Path, rows: Sequence[Mapping], size: int) -> int:
    """Append `rows` to the table beside the checkpoint `file`, after its first `size` bytes; return the new size.

    Bytes beyond `size` come from a run that was killed before it saved its state, and are overwritten.
    """
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
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
        return [json.loads(line) for line in content.splitlines()]


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
