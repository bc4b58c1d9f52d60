"""Define the one exception that means "the user can fix this"."""


class FedexitError(Exception):
    """Report wrong input or a failed step in one line that names the thing and the fix.

    The command line prints only the message and exits with code 2. In a notebook it is an ordinary exception.
    """


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, with the second if that explains it; its type if it is empty."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first


def reason(error: Exception) -> str:
    """Return why the system refused, in its words, without the paths of temporary files that `str(error)` holds."""
    return getattr(error, "strerror", None) or first_line(error)
