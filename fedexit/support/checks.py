"""Check plain values."""

import numbers

from fedexit.support.errors import FedexitError


def whole_number(value: object, name: str, least: int | None = None) -> int:
    """Return `value` as an int: any integer type is accepted, NumPy's as well.

    Raises:
        FedexitError: for a bool, a float, text or None, and for a number below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise FedexitError(f"{name} must be a whole number, not {value!r} ({type(value).__name__})")
    if least is not None and value < least:
        raise FedexitError(f"{name} must be >= {least}, not {value}")
    return int(value)
