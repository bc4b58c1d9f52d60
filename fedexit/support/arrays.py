"""Record the checksum and the layout of a raw file of numbers, so that a damaged or incomplete one is made again."""

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from fedexit.support.files import file_hash
from fedexit.support.tensors import read_tensors, write_tensors

_CONTENT = "content"


def record_file(layout: Path) -> Path:
    """Return the path of the record beside the raw file `layout`."""
    return layout.with_suffix(".layout")


def write_record(file: Path, layout: dict[str, Tensor]) -> None:
    """Record the raw `file` as it is now, with its `layout`: sizes by name."""
    write_tensors(record_file(file), layout, {_CONTENT: file_hash(file)})


def read_record(file: Path) -> dict[str, Tensor] | None:
    """Return the layout of the raw `file`; None if it is missing, damaged or without a record, so make it again."""
    try:
        layout, texts = read_tensors(record_file(file))
        return layout if file.is_file() and texts.get(_CONTENT) == file_hash(file) else None
    except (OSError, ValueError, SafetensorError):
        return None
