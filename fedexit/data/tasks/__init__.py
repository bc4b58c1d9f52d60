"""Define the tasks, one small module each: its clips, their clients, their targets and the kind of head."""

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

from fedexit.data.corpora import Corpus
from fedexit.data.folder import MIN_SECONDS
from fedexit.data.tasks.asr import asr_task
from fedexit.data.tasks.contract import Clips, Task
from fedexit.data.tasks.keyword import digit_task, keyword_task
from fedexit.data.tasks.official import OFFICIAL
from fedexit.data.tasks.paralinguistic import emotion_task, sentence_task
from fedexit.data.tasks.voice import speaker_task, voice_task
from fedexit.support.errors import FedexitError

TASKS: dict[str, Callable[..., Task]] = {
    "voice": voice_task,
    "keyword": keyword_task,
    "sentence": sentence_task,
    "digit": digit_task,
    "speaker": speaker_task,
    "emotion": emotion_task,
    "asr": asr_task,
    **OFFICIAL,
}
_RANGES = {  # of numeric options: least and greatest value
    "words": (1, math.inf),
    "min_clips": (0, math.inf),
    "fold": (0, math.inf),
    "frame": (1, math.inf),
    "max_seconds": (MIN_SECONDS, math.inf),
    "known": (0, 1),
    "dev": (0, 1),
    "test": (0, 1),
}
__all__ = ["TASKS", "Clips", "Task", "make_task", "task_options"]


def task_options(name: str) -> list[str]:
    """Return the names of the options of the task `name`, e.g. `fold` of `emotion`.

    Raises:
        FedexitError: there is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise FedexitError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return list(inspect.signature(TASKS[name]).parameters)[1:]


def make_task(name: str, corpus: Corpus, **options: object) -> Task:
    """Return the task `name` on `corpus`.

    Args:
        name: a name in `TASKS`.
        corpus: the corpus whose clips take part.
        options: options of the task's function.

    Raises:
        FedexitError: the name or an option is unknown, an option is out of range, or the corpus lacks what the task
            needs.
    """
    known = task_options(name)
    for option, value in options.items():
        if option not in known:
            raise FedexitError(f"task {name} has no option {option!r}; known: {', '.join(known) or 'none'}")
        if option in _RANGES:
            _check_range(name, option, value)
    if not hasattr(corpus, "manifest"):
        raise FedexitError(f"task {name}: the corpus is of type {type(corpus).__name__}; give open_corpus(NAME)")
    return TASKS[name](corpus, **options)


def _check_range(name: str, option: str, value: Any) -> None:
    whole = inspect.signature(TASKS[name]).parameters[option].annotation is int
    kind, words = (numbers.Integral, "a whole number") if whole else (numbers.Real, "a number")
    least, most = _RANGES[option]
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= float(value) <= most:
        bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise FedexitError(f"task {name}: {option} is {value!r}; give {words} {bounds}")
