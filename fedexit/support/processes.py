"""Processes of one thread each, for many jobs side by side."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait

import torch

from fedexit.support.errors import FedexitError
from fedexit.support.progress import progress


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside the block: several on a busy machine make short clips ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def on_workers(function: Callable, jobs: Sequence[tuple], workers: int, desc: str) -> list:
    """`function(*job)` for each of `jobs`, in their order, on so many processes of one thread each.

    The first failure ends the others and is raised here; FedexitError for no workers and when a process dies.
    """
    if workers < 1:
        raise FedexitError(f"workers must be >= 1, not {workers}")
    with _pool("spawn", workers, _start_worker) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        for future in progress(as_completed(futures), desc, total=len(futures)):
            future.result()
    return [future.result() for future in futures]


@contextmanager
def _pool(method: str, workers: int, start: Callable, *arguments: object) -> Iterator[ProcessPoolExecutor]:
    """A pool whose jobs are dropped, and ended where they run, when the block fails."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start, initargs=arguments)
    try:
        yield pool
    except BrokenProcessPool as error:
        pool.shutdown(wait=False)
        raise FedexitError(
            "a worker died: it was killed, or the memory is full, or a script starts workers outside of "
            'if __name__ == "__main__"; mend it and run again, finished work is kept'
        ) from error
    except BaseException:
        running = list((pool._processes or {}).values())  # Python 3.14 has a method for it
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        raise
    pool.shutdown()


def _start_worker() -> None:
    """One thread, and no life beyond the parent's, however that ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Wait for the parent's end; a killed parent cannot tell its workers to stop."""
    wait([parent])
    os._exit(1)
