"""Progress bars that are seen by people and stay out of logs."""

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable, desc: str, total: int | None = None) -> tqdm:
    """Wrap `items` in a bar on a terminal or in a live notebook; silent in logs, CI and headless notebook runs.

    `FEDEXIT_PROGRESS=0` silences it, `FEDEXIT_PROGRESS=1` forces it.
    """
    wish = os.environ.get("FEDEXIT_PROGRESS")
    shown = wish == "1" if wish in ("0", "1") else sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(items, desc=desc, total=total, disable=not shown, leave=False)
