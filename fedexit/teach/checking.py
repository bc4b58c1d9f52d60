"""Check an answer against recorded hashes of results. The right results themselves are not stored."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedexit.support.errors import FedexitError
from fedexit.support.files import read_json_object
from fedexit.teach.exercises import BY_NAME, Exercise
from fedexit.teach.runner import outputs_of

_DECIMALS = 4
RECORDED = Path(__file__).parent / "recorded.json"


class Verdict(NamedTuple):
    """The result of a check."""

    right: bool
    hint: str  # "" if the answer is right

    def __str__(self) -> str:
        return "right" if self.right else f"not yet: {self.hint}"


def check(name: str, function: Callable) -> Verdict:
    """Return and print the verdict on a student's function, with a hint if it is wrong.

    Args:
        name: the exercise, such as "pooling".
        function: the student's function.

    Raises:
        FedexitError: there is no such exercise, or `function` cannot be called.

    Example:
        >>> check("wer", word_error_rate)
        wer: not yet: You divide by the number of predicted words.
    """
    exercise = exercise_named(name)
    if not callable(function):
        raise FedexitError(f"{name}: {function!r} is not a function; pass {exercise.function} without parentheses")
    cases = read_key(RECORDED)[name]
    verdict = judge(exercise, outputs_of(function, [case["inputs"] for case in cases]), cases)
    print(f"{name}: {verdict}")
    return verdict


def exercise_named(name: str) -> Exercise:
    """Return the exercise `name`. Raises FedexitError if there is none."""
    if name not in BY_NAME:
        raise FedexitError(f"there is no exercise {name!r}; known: {', '.join(BY_NAME)}")
    return BY_NAME[name]


def judge(exercise: Exercise, outputs: list, cases: Sequence[Mapping[str, Any]]) -> Verdict:
    """Return the verdict on the outputs of a function (`runner.outputs_of`) for recorded `cases`."""
    if len(outputs) != len(cases):
        return Verdict(False, "The results are not complete.")
    for output, case in zip(outputs, cases, strict=True):
        found = digest(output, case["salt"])
        if found == case["right"]:
            continue
        if output.get("error") == "NotImplementedError":
            return Verdict(False, "The function is not written yet.")
        if found in case["hints"]:
            return Verdict(False, exercise.hints[case["hints"][found]])
        if "error" in output:
            return Verdict(False, f"Your function raises {output['error']}: {output['text']}")
        return Verdict(False, exercise.hint)
    return Verdict(True, "")


def digest(output: Mapping[str, Any], salt: str) -> str:
    """Return a salted SHA-256 of an output, rounded to four decimals, or of the name of its error."""
    content = _rounded(output["value"]) if "value" in output else {"error": output.get("error")}
    return hashlib.sha256((salt + json.dumps(content, sort_keys=True)).encode()).hexdigest()[:32]


def _rounded(value: Any) -> Any:
    """Return a JSON value with all numbers as text of four decimals, so that 3 equals 3.0 and -0 equals 0."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value if isinstance(value, str) else f"{round(float(value), _DECIMALS) + 0.0:.{_DECIMALS}f}"


def read_key(file: Path) -> dict[str, list[dict]]:
    """Return a key, made by `keys.write_key`. Raises FedexitError if it has other exercises than this version."""
    key = read_json_object(file)
    if set(key) != set(BY_NAME):
        raise FedexitError(f"{file} is not a key of these exercises; make it again with: fedexit key")
    return key
