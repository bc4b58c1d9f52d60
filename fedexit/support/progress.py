"""Progress bars that are seen by people and stay out of logs."""

import os
import sys
from collections.abc import Iterable

import tqdm.auto
import tqdm.std


def progress(items: Iterable, desc: str, total: int | None = None) -> tqdm.std.tqdm:
    """Wrap `items` in a bar on a terminal or in a live notebook; silent in logs, CI and headless notebook runs.

    `FEDEXIT_PROGRESS=0` silences it, `FEDEXIT_PROGRESS=1` forces it. Any other value is the terminal (its device
    file) to draw on: so `fedexit run` shows on its own terminal what goes on in a notebook that it runs.
    """
    wish = os.environ.get("FEDEXIT_PROGRESS", "")
    if wish not in ("", "0", "1"):  # one line below the runner's own bar
        return tqdm.std.tqdm(items, desc, total, leave=False, file=open(wish, "w"), position=1)
    shown = wish == "1" if wish else sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm.auto.tqdm(items, desc, total, leave=False, disable=not shown)
