"""Write named tensors and texts to a safetensors file with a checksum of its content, and verify it on reading."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedexit.support.files import replacing

_TEXTS, _CHECKSUM = "texts", "checksum"


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, whatever their order."""
    return _digest(tensors).hexdigest()


def write_tensors(file: str | Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None) -> None:
    """Write `tensors` and `texts` by name to `file`, in one step. Raises OSError if it cannot be written."""
    own = dict(texts or {})
    facts = json.dumps({**own, _CHECKSUM: _checksum(tensors, own)}, sort_keys=True)
    with replacing(file) as part:  # one entry, because the library writes several in a random order
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata={_TEXTS: facts})


def read_tensors(file: str | Path, texts: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the texts in `file`.

    A file without a checksum is accepted if it has exactly the names of `texts`: an older version wrote such files.

    Args:
        file: a file of `write_tensors`.
        texts: names of its texts.

    Raises:
        OSError, SafetensorError: the file cannot be read.
        ValueError: its content is not as it was written.
    """
    with safe_open(file, framework="pt") as stored:
        header = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    header.pop("format", None)  # other programs write it
    if {*header} in ({*texts}, set()):
        return tensors, header
    own = json.loads(header[_TEXTS]) if {*header} == {_TEXTS} else {}
    if own.pop(_CHECKSUM, None) != _checksum(tensors, own):
        raise ValueError("its checksum is wrong, so it changed since it was written")
    return tensors, own


def _checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    digest = _digest(tensors)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(repr(sorted(texts.items())).encode())
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(name.encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest
