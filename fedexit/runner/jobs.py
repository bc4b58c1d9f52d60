"""Start jobs one after the other in this process, or side by side in separate processes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import psutil

from fedexit.support.errors import FedexitError, ending


@contextmanager
def submitter(jobs: int) -> Iterator[Callable[..., Future]]:
    """Give a function that starts `function(*arguments)` and returns its future.

    With one job, each call runs at once in this process. With several, each call runs in a fresh process. Processes
    that still run when the block ends or this process dies are killed.
    """
    if jobs == 1:
        yield at_once
        return
    started: list[BaseProcess] = []
    with ThreadPoolExecutor(jobs) as threads:
        try:
            yield lambda function, *arguments: threads.submit(_in_process, started, function, arguments)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for process in started:
                if process.is_alive() and process.pid is not None:
                    _kill_with_children(process.pid)


def _in_process(started: list[BaseProcess], function: Callable, arguments: tuple) -> object:
    """Return `function(*arguments)` as a fresh process computes it. Raises BrokenExecutor if the process is killed.

    Not a pool: one whose workers serve a single job each can wait for a replaced worker for ever (CPython 3.11).
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    started.append(process)
    process.start()
    sender.close()
    try:
        value, error = receiver.recv()
    except EOFError:
        process.join()
        raise BrokenExecutor(ending(process.exitcode)) from None
    finally:
        process.join()
        receiver.close()
    if error is not None:
        raise error
    return value


def _answer(sender: Connection, function: Callable, arguments: tuple) -> None:
    """Send the value of a call, or the error that it raised, to the parent."""
    _end_with_parent()
    try:
        sender.send((function(*arguments), None))
    except BaseException as error:  # the parent raises it
        sender.send((None, error))


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
