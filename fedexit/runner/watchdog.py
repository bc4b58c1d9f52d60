"""Kill the processes of a notebook after its time limit. This runs as a process of its own.

So the limit holds whatever the process of the notebook is busy with. It is a script without imports from fedexit,
because it must start at once: `python watchdog.py PARENT SECONDS SPARED ...`.
"""

import sys
from contextlib import suppress

import psutil


def watch(parent: int, seconds: float, spared: set[int]) -> None:
    """Wait until `parent` ends or `seconds` passed; then kill its descendants, except this process and the `spared`."""
    try:
        psutil.Process(parent).wait(seconds)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        kill_descendants(parent, spared | {psutil.Process().pid})


def kill_descendants(parent: int, spared: set[int]) -> None:
    """Kill all processes below `parent` except those with an id in `spared`."""
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended by itself between listing and killing
            if process.pid not in spared:
                process.kill()


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), set(map(int, sys.argv[3:])))
