"""The one exception that means "the user can mend this"."""


class FedexitError(Exception):
    """Bad input or a failed step, said in one line that names the thing and the mend.

    The command line prints the message alone and exits with code 2; in a notebook it is an ordinary exception.
    """


def first_line(error: Exception) -> str:
    """What a library's error says, in one line; its type when it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
