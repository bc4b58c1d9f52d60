"""Show progress bars to people and keep them out of logs."""

import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm as notebook_bar
from tqdm.std import tqdm as plain_bar

from fedexit.support.errors import FedexitError


def progress(items: Iterable, desc: str, total: int | None = None) -> plain_bar:
    """Wrap `items` in a progress bar on a terminal or in a live notebook; show nothing in logs and headless runs.

    The environment variable FEDEXIT_PROGRESS overrides this: `0` hides the bar, `1` shows it, and the path of a
    terminal draws it there. `fedexit run` uses the path to show a notebook's progress below its own bar.

    Raises:
        FedexitError: FEDEXIT_PROGRESS has another value.
    """
    wish = os.environ.get("FEDEXIT_PROGRESS", "")
    if wish not in ("", "0", "1"):
        terminal = _terminal(wish)
        return plain_bar(items, desc, total, leave=False, file=terminal, position=1, disable=terminal is None)
    shown = wish == "1" if wish else sys.stderr.isatty() or "ipykernel" in sys.modules
    return notebook_bar(items, desc, total, leave=False, disable=not shown)


@cache
def _terminal(name: str) -> TextIO | None:
    """Open the terminal `name` for writing; return None if it was closed since the run began."""
    device = Path(name)
    if device.is_char_device():  # so that `open` never creates a file
        terminal = device.open("w")
        if terminal.isatty():
            return terminal
        terminal.close()
    elif device.is_relative_to("/dev") and not device.exists():
        return None
    raise FedexitError(f"FEDEXIT_PROGRESS is {name!r}, which is not a terminal; set it to 0, 1 or a terminal's path")
