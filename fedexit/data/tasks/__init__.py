"""Define the tasks, one small module each: its clips, their clients, their targets and the kind of head."""

import inspect
from collections.abc import Callable

from fedexit.data.corpora import Corpus
from fedexit.data.tasks.asr import asr_task
from fedexit.data.tasks.contract import Clips, Task
from fedexit.data.tasks.keyword import digit_task, keyword_task
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
}
__all__ = ["TASKS", "Clips", "Task", "make_task", "task_options"]


def task_options(name: str) -> list[str]:
    """Return the names of the options of the task `name`, e.g. `fold` of `emotion`.

    Raises:
        FedexitError: there is no such task.
    """
    if name not in TASKS:
        raise FedexitError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return list(inspect.signature(TASKS[name]).parameters)[1:]


def make_task(name: str, corpus: Corpus, **options: object) -> Task:
    """Return the task `name` on `corpus`.

    Args:
        name: a name in `TASKS`.
        corpus: the corpus whose clips take part.
        options: options of the task's function.

    Raises:
        FedexitError: the name or an option is unknown, or the corpus lacks what the task needs.
    """
    known = task_options(name)
    for option in options:
        if option not in known:
            raise FedexitError(f"task {name} has no option {option!r}; known: {', '.join(known) or 'none'}")
    return TASKS[name](corpus, **options)
