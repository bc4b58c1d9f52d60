"""Grade the notebooks of a class: each submission in a process of its own, with limits, and marks as CSV."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from fedexit.support.errors import FedexitError
from fedexit.support.files import check_target, read_bytes, replacing
from fedexit.teach.checking import RECORDED, Verdict, exercise_named, judge, read_key
from fedexit.teach.exercises import BY_NAME, Exercise
from fedexit.teach.runner import NOBODY

_RUNNER = Path(__file__).parent / "runner.py"
_LARGEST = 5_000_000  # bytes of a notebook
_ENDS = {
    "time": "Stopped: the time limit was reached. Does a loop never end?",
    "cpu": "Stopped: the limit of computing time was reached. Does a loop never end?",
    "crash": "Stopped: the process crashed.",
    "size": "Stopped: the result is far too large.",
    "": "The process ended without a result. The function must return it, and must not end Python.",
}


@dataclass(frozen=True)
class Limits:
    """Limits of one exercise of one submission."""

    cpu: int = 5  # seconds of computing time
    wall: float = 20.0  # seconds by the clock
    memory: int = 1024  # MB of address space
    output: int = 1  # MB of printed text, and of each file


class Grade(NamedTuple):
    """One mark."""

    submission: str  # name of the file without .ipynb, or of the folder
    exercise: str
    mark: int  # 1 if the answer is right, else 0
    hint: str  # "" if the answer is right


class Protection(NamedTuple):
    """Protection that this system offers against a harmful submission."""

    prefix: list[str]  # command that starts the runner in namespaces of its own; empty: not permitted
    user: bool  # whether submissions run as a user without rights

    def __str__(self) -> str:
        network = "no network" if self.prefix else "NETWORK OPEN (unshare is not permitted)"
        user = "a user without rights" if self.user else "YOUR OWN RIGHTS (only root can change the user)"
        return f"submissions run with {network} and with {user}"


def grade(
    files: Iterable[str | Path],
    out: str | Path,
    key: str | Path | None = None,
    exercises: Iterable[str] = (),
    limits: Limits = Limits(),
) -> list[Grade]:
    """Grade submissions and write the marks to a CSV file.

    Args:
        files: a notebook, or a folder with the notebooks, of each student.
        out: the file to write, with the columns `submission,exercise,mark,hint`.
        key: a key of `keys.write_key`; None for the inputs that students check their answers with.
        exercises: names of the exercises that count; empty for all.
        limits: limits of each exercise of each submission.

    Raises:
        FedexitError: there is nothing to grade, two submissions have one name, the key does not fit, `out` cannot be
            written, or the system is not Linux.

    Example:
        >>> grade(["ana.ipynb", "ben.ipynb"], "grades.csv", key="key.json", exercises=["pooling", "head"])
    """
    if sys.platform != "linux":
        raise FedexitError(f"grading needs the limits of Linux, not {sys.platform}; run it in a Linux container")
    recorded = read_key(RECORDED if key is None else Path(key))
    chosen = [exercise_named(name) for name in exercises] or list(BY_NAME.values())
    submissions = [Path(file) for file in files]
    names = [path.stem if path.suffix == ".ipynb" else path.name for path in submissions]
    if not names:
        raise FedexitError("there is nothing to grade; give notebooks, or folders of notebooks")
    if twice := {name for name in names if names.count(name) > 1}:
        raise FedexitError(f"several submissions have the name {min(twice)}; give each file the name of its student")
    cells = [_code_cells(path) for path in submissions]
    check_target(out)
    here, grades = protection(), []
    for name, own in zip(names, cells, strict=True):
        verdicts = _verdicts(own, chosen, recorded, limits, here)
        grades += [Grade(name, exercise, int(verdict.right), verdict.hint) for exercise, verdict in verdicts.items()]
    odd = "backslashreplace"  # a file name or a hint may be no valid Unicode
    with replacing(out) as part, part.open("w", encoding="utf-8", errors=odd, newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([Grade._fields, *grades])
    return grades


def protection() -> Protection:
    """Return what this system permits: namespaces without a network, and another user."""
    root = os.geteuid() == 0
    if shutil.which("unshare"):
        namespaces = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
        for prefix in (namespaces, [*namespaces, "--user", "--map-root-user"]):
            if not subprocess.run([*prefix, "true"], capture_output=True).returncode:
                return Protection(prefix, root and "--user" not in prefix and _other_user())
    return Protection([], root and _other_user())


def _other_user() -> bool:
    try:
        return not subprocess.run(["true"], user=NOBODY, group=NOBODY, extra_groups=[]).returncode
    except (OSError, subprocess.SubprocessError):
        return False


def _code_cells(path: Path) -> list[str]:
    """Return the code cells of a submission; none of a notebook that cannot be read: it gets the mark 0."""
    notebooks = sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
    return [source for notebook in notebooks for source in _cells_of(read_bytes(notebook))]


def _cells_of(content: bytes) -> list[str]:
    if len(content) > _LARGEST:
        return []
    try:
        cells = json.loads(content)["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _verdicts(
    cells: list[str], chosen: list[Exercise], recorded: Mapping[str, list[dict]], limits: Limits, here: Protection
) -> dict[str, Verdict]:
    """Run one submission and return the verdict on each exercise."""
    work = [
        {"name": one.name, "function": one.function, "cases": [case["inputs"] for case in recorded[one.name]]}
        for one in chosen
    ]
    job = {"cells": cells, "exercises": work, "limits": asdict(limits), "drop": here.user}
    raw = _run(json.dumps(job), here, 60 + len(chosen) * limits.wall)
    return {one.name: _verdict(one, raw.get(one.name), recorded[one.name]) for one in chosen}


def _run(job: str, here: Protection, seconds: float) -> dict[str, dict[str, str]]:
    """Return the raw results of the runner by exercise; {} if the submission stopped the runner."""
    with tempfile.TemporaryDirectory(prefix="fedexit-grade-", ignore_cleanup_errors=True) as home:
        if here.user:
            os.chmod(home, 0o777)  # the user without rights writes here
        command = [*here.prefix, sys.executable, "-I", str(_RUNNER)]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        own = {"HOME": home, "TMPDIR": home, "PATH": os.defpath} | threads
        try:
            done = subprocess.run(
                command, input=job, capture_output=True, text=True, cwd=home, env=own, timeout=seconds
            )
            return json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):
            return {}


def _verdict(exercise: Exercise, raw: Mapping[str, str] | None, cases: list[dict]) -> Verdict:
    """Return the verdict on a raw result, which the submission may have forged."""
    if raw is None:
        return Verdict(False, "The submission stopped the process that runs it.")
    if raw["end"] or not raw["text"]:
        return Verdict(False, _ENDS[raw["end"]])
    try:
        result = json.loads(raw["text"])
        if "missing" in result:
            return Verdict(False, f"No cell defines the function {exercise.function}.")
        if "error" in result:
            return Verdict(False, _line(f"The cell raises {result['error']}: {result['text']}"))
        verdict = judge(exercise, result["outputs"], cases)
        return Verdict(verdict.right, _line(verdict.hint))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return Verdict(False, "The result cannot be read.")


def _line(text: str) -> str:
    """Return `text` in one line of at most 300 characters."""
    return " ".join(text.split())[:300]
