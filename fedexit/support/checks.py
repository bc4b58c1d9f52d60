"""Check plain values."""

import copy
import numbers
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fedexit.support.errors import FedexitError

_NAMED = 4  # names in a message


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


def trial_copy(part: Any) -> Any:
    """Return a copy of an object whose state a trial could change; the object itself if it cannot be copied."""
    try:
        return copy.deepcopy(part)
    except Exception:  # of any class
        return part


def misfits(missing: Collection[str], unexpected: Collection[str], misshapen: Collection[str] = ()) -> str:
    """Return in words which tensors do not fit between a file and a model; "" if all fit."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return "; ".join(f"{len(names)} {kind}: {few(names)}" for kind, names in kinds.items() if names)


def few(names: Collection[str]) -> str:
    """Return the first of some `names`, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more


def check_exits(exits: Iterable[int], known: Iterable[int], name: str) -> list[int]:
    """Return `exits` as sorted integers. Raises FedexitError unless each is among the `known` ones of model `name`."""
    try:
        found = sorted({operator.index(depth) for depth in exits})
    except TypeError:
        raise FedexitError(f"exits must be a list of layer numbers, e.g. [3], not {exits!r}") from None
    if not found:
        raise FedexitError(f"exits is empty; give at least one of {', '.join(map(str, known))}")
    for depth in found:
        check_exit(depth, known, name)
    return found


def check_exit(depth: int, known: Iterable[int], name: str) -> None:
    """Raise FedexitError if `depth` is not among the `known` exits of the model `name`."""
    if depth not in known:
        raise FedexitError(f"exit {depth} does not exist in {name}; known: {', '.join(map(str, known))}")


def listed(values: object, name: str, kind: str) -> Sequence:
    """Return a list of any iterable, and a sequence as it is. Raises FedexitError for anything else."""
    if isinstance(values, Sequence):
        return values
    if not isinstance(values, Iterable):
        raise FedexitError(f"{name} must be a list of {kind}, not a {type(values).__name__}")
    return list(values)
