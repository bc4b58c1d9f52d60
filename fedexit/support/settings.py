"""Check the fields of settings, which are frozen dataclasses, against their annotations by pydantic."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from fedexit.support.errors import FedexitError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
AtLeastOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
# One or more texts; a single text or a list of texts becomes a tuple.
Texts = Annotated[
    tuple[str, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


def check_fields(settings: object) -> None:
    """Check every field of a dataclass against its annotation and store the validated value.

    Call it in `__post_init__`. Types are strict: 2.9 or true is not an integer, and NaN and infinity are refused unless
    the annotation allows them. An integer is accepted where a float is expected, and NumPy numbers are accepted.

    Raises:
        FedexitError: names the first field that does not fit, its value and the range or type that is expected.
    """
    for name, adapter in _adapters(type(settings)).items():  # type: ignore[arg-type]  # classes are hashable
        value = getattr(settings, name)
        value = value.item() if isinstance(value, np.generic) else value
        try:
            object.__setattr__(settings, name, adapter.validate_python(value))
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise FedexitError(f"setting {name}={value!r}: {message[0].lower()}{message[1:]}") from None


def with_given(defaults: Settings, given: Mapping[str, Any]) -> Settings:
    """Return `defaults`, a dataclass, with the `given` fields replaced.

    Raises:
        FedexitError: a name is unknown, or the dataclass refuses a value.
    """
    known = [field.name for field in fields(defaults)]
    for name in given:
        if name not in known:
            raise FedexitError(f"unknown setting {name!r}; known: {', '.join(known)}")
    return replace(defaults, **given)


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    config = ConfigDict(strict=True, allow_inf_nan=False)
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name], config=config) for field in fields(kind)}
