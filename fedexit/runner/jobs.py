"""Start jobs one after the other in this process, or side by side in separate processes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress

import psutil

from fedexit.support.errors import FedexitError


@contextmanager
def submitter(jobs: int) -> Iterator[Callable[..., Future]]:
    """Give a function that starts `function(*arguments)` and returns its future.

    With one job, each call runs at once in this process. With several, each call runs in a fresh process. Processes
    that still run when the block ends or this process dies are killed.
    """
    if jobs == 1:
        yield at_once
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent, max_tasks_per_child=1)
    before = set(multiprocessing.active_children())
    try:
        yield pool.submit
    finally:
        for worker in set(multiprocessing.active_children()) - before:
            if worker.pid is not None:
                _kill_with_children(worker.pid)
        pool.shutdown(wait=True, cancel_futures=True)


def _kill_with_children(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        worker = psutil.Process(pid)
        for process in [worker, *worker.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def at_once(function: Callable, *arguments: object) -> Future:
    """Call a function and return its outcome as a future; errors other than FedexitError are raised here."""
    done: Future = Future()
    try:
        done.set_result(function(*arguments))
    except FedexitError as error:
        done.set_exception(error)
    return done


def _end_with_parent() -> None:
    """End this process when its parent is gone; its kernel notices that by itself."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
