"""Define the one exception that means "the user can fix this"."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class FedexitError(Exception):
    """Wrong input or a failed step, described in one line that names the thing and the fix.

    The command line prints only the message and exits with code 2. In a notebook it is an ordinary exception.
    """


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, and the second if it explains the first; without a text, the type."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first


def reason(error: Exception) -> str:
    """Return why the system refused, in its words, without the paths of temporary files that `str(error)` holds."""
    return getattr(error, "strerror", None) or first_line(error)


def ending(code: int | None) -> str:
    """Return in words how a process ended, from its exit code; a negative code is that of a signal."""
    if code is None:
        return "how it ended is unknown"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


@contextmanager
def naming_memory(owner: str, batch_size: int) -> Iterator[None]:
    """Turn torch's error about memory into a sentence that names the `owner` of the clips."""
    try:
        yield
    except RuntimeError as error:  # of the CPU; `torch.OutOfMemoryError` of a GPU is one as well
        if "memory" not in str(error):
            raise
        raise FedexitError(
            f"{owner}: memory ran out in a batch of up to {batch_size} clips; cut the clips or lower batch_size"
        ) from error
