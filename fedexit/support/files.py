"""Hashes and atomic writes of files."""

import hashlib
from pathlib import Path


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or "missing"."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def weights_hash(folder: Path) -> str:
    """`file_hash` of the weights in a backbone's folder, joined if there are several files; "missing" without any."""
    return "+".join(map(file_hash, sorted(folder.glob("*.safetensors")))) or "missing"
