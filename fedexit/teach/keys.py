"""Record the results of right and wrong answers: for the check that students run, and as a teacher's key."""

import json
import runpy
import secrets
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fedexit.support.errors import FedexitError
from fedexit.support.files import check_target, replacing
from fedexit.support.streams import numpy_stream
from fedexit.teach.checking import digest
from fedexit.teach.exercises import EXERCISES, Exercise
from fedexit.teach.inputs import DRAWS
from fedexit.teach.runner import outputs_of

_CASES = 3  # of each exercise
_DRAWS = 500  # that are tried for one case


def write_key(answers: str | Path, out: str | Path, seed: int | None = None) -> Path:
    """Write a key: new inputs, with hashes of the right results and of the known wrong ones.

    Args:
        answers: folder with one file for each exercise, such as `pooling.py`. It defines functions whose names begin
            with `right_` (at least two) and `wrong_` (one for each hint of the exercise).
        out: the file to write; only its owner can read it.
        seed: seed of the inputs and salts; None for a secret one.

    Raises:
        FedexitError: `out` cannot be written, an answer is missing, right answers disagree, or no inputs separate the
            wrong ones.
    """
    check_target(out)
    seed = secrets.randbits(60) if seed is None else seed
    key = {exercise.name: _record(exercise, Path(answers), seed) for exercise in EXERCISES}
    with replacing(out) as part:
        part.write_text(json.dumps(key, separators=(",", ":")) + "\n", encoding="utf-8")
    Path(out).chmod(0o600)
    return Path(out)


def answers_to(exercise: Exercise, folder: Path) -> tuple[list[Callable], dict[str, Callable]]:
    """Return the right answers to an exercise, and the wrong ones by the name of their hint."""
    file = folder / f"{exercise.name}.py"
    if not file.is_file():
        raise FedexitError(f"{file} is not there; give the folder with the answers to all exercises")
    found = runpy.run_path(str(file))
    right = [value for name, value in found.items() if name.startswith("right_")]
    wrong = {name.removeprefix("wrong_"): value for name, value in found.items() if name.startswith("wrong_")}
    if len(right) < 2 or set(wrong) != set(exercise.hints):
        raise FedexitError(f"{file} needs two right answers and wrong ones named {', '.join(exercise.hints)}")
    return right, wrong


def _record(exercise: Exercise, folder: Path, seed: int) -> list[dict]:
    right, wrong = answers_to(exercise, folder)
    return [_case(exercise, right, wrong, seed, number) for number in range(_CASES)]


def _case(exercise: Exercise, right: list[Callable], wrong: dict[str, Callable], seed: int, number: int) -> dict:
    """Return the first drawn inputs for which no result is near a rounding edge and all wrong results differ."""
    salt = f"{numpy_stream(seed, 'salt', exercise.name, number).integers(1 << 62):x}"
    for draw in range(_DRAWS):
        inputs = _encoded(DRAWS[exercise.name](numpy_stream(seed, "inputs", exercise.name, number, draw)))
        results = [outputs_of(function, [inputs])[0] for function in [*right, *wrong.values()]]
        if "value" not in results[0] or any(_near_edge(result.get("value", [])) for result in results):
            continue
        first, *others = [digest(result, salt) for result in results]
        if any(other != first for other in others[: len(right) - 1]):
            raise FedexitError(f"{exercise.name}: the right answers disagree; correct them, then make the key again")
        hints = others[len(right) - 1 :]
        if first not in hints and all(one != other for one, other in combinations(hints, 2)):
            return {"inputs": inputs, "salt": salt, "right": first, "hints": dict(zip(hints, wrong, strict=True))}
    raise FedexitError(f"{exercise.name}: no inputs separate the wrong answers; make them more different")


def _encoded(value: Any) -> Any:
    """Return inputs as JSON can hold them: see `runner.decoded`."""
    if isinstance(value, np.ndarray):
        return {"array": value.tolist()}
    if isinstance(value, dict):
        return {key: _encoded(part) for key, part in value.items()}
    return [_encoded(part) for part in value] if isinstance(value, list) else value


def _near_edge(value: Any) -> bool:
    """Return whether rounding to four decimals could go either way for a number of a result."""
    if isinstance(value, dict | list):
        return any(_near_edge(part) for part in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and np.isfinite(value) and abs(abs(value) * 1e4 % 1 - 0.5) < 0.002
