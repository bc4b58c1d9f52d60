"""Named random streams: every draw belongs to a name, so a resumed run or another number of workers gets the same bits.

A stream is named by what it is for, e.g. `stream_seed(seed, "sampling", round)`; there is no hidden global counter that
an interruption could move.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream_seed(*name: str | int | float) -> int:
    """A 63-bit seed from the stream's name; equal names give equal seeds in every process."""
    digest = hashlib.sha256("/".join(map(repr, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_stream(*name: str | int | float) -> np.random.Generator:
    """NumPy generator of the stream `name`."""
    return np.random.default_rng(stream_seed(*name))


@contextmanager
def seeded(*name: str | int | float) -> Iterator[None]:
    """Seed torch, NumPy and `random` for a block, and put their states back afterwards.

    All three, because `transformers` draws dropout with torch but its SpecAugment masks with NumPy.
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
