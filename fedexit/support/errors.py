"""Define the one exception that means "the user can fix this"."""


class FedexitError(Exception):
    """Wrong input or a failed step, described in one line that names the thing and the fix.

    The command line prints only the message and exits with code 2. In a notebook it is an ordinary exception.
    """


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, and the second if it explains the first; without a text, the type."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first
