"""Draw random numbers from named streams, so that a resumed run is bit-identical for any number of workers.

A stream is named by its purpose, e.g. `stream_seed(seed, "sampling", round)`. No global counter is involved, so an
interruption changes nothing.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream_seed(*name: str | int | float) -> int:
    """Return a 63-bit seed for the stream `name`; equal names give equal seeds in every process.

    NumPy scalars, one-element tensors and booleans count as the Python numbers that they equal.
    """
    digest = hashlib.sha256("/".join(repr(_plain(part)) for part in name).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _plain(part: object) -> object:
    """Return a scalar of NumPy or torch as a Python number or string, and a boolean as 0 or 1."""
    part = part.item() if isinstance(part, np.generic | torch.Tensor) else part
    return int(part) if isinstance(part, bool) else part


def numpy_stream(*name: str | int | float) -> np.random.Generator:
    """Return the NumPy generator of the stream `name`."""
    return np.random.default_rng(stream_seed(*name))


@contextmanager
def seeded(*name: str | int | float) -> Iterator[None]:
    """Seed torch, NumPy and `random` for a block, and restore their states afterwards.

    `transformers` draws dropout with torch but its SpecAugment masks with NumPy.
    """
    seed = stream_seed(*name)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
