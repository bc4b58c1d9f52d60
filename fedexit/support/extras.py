"""Name the extra that brings a missing optional package, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedexit.support.errors import FedexitError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a package that the block imports and that is missing into one line with the extra `name` of fedexit.

    Raises:
        FedexitError: a package is not installed.

    Example:
        >>> with extra("asr"):
        ...     import jiwer
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise FedexitError(f'{package} is not installed; run: pip install "fedexit[{name}]"') from None
