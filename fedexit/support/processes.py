"""Run jobs side by side in processes of one thread each."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import wait

import torch

from fedexit.support.checks import whole_number
from fedexit.support.errors import FedexitError, ending
from fedexit.support.progress import progress


def one_thread() -> AbstractContextManager[None]:
    """Let torch use one thread inside the block: several threads on a busy machine are ten times slower."""
    return limited_threads(1)


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def on_workers(function: Callable, jobs: Sequence[tuple], workers: int, desc: str) -> list:
    """Return `function(*job)` for each of `jobs` in their order, computed by `workers` processes of one thread each.

    With one worker, this process does the work.

    Raises:
        FedexitError: for fewer than one worker, and when a process dies. The first failure of a job stops the other
            jobs and is raised here.
    """
    if whole_number(workers, "workers", 1) == 1:
        with one_thread():
            return [function(*job) for job in progress(jobs, desc)]
    with worker_pool("spawn", workers, start_worker) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        for future in progress(as_completed(futures), desc, total=len(futures)):
            future.result()
    return [future.result() for future in futures]


@contextmanager
def worker_pool(method: str, workers: int, start: Callable, *arguments: object) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes. When the block fails, waiting jobs are dropped and running ones are stopped.

    Args:
        method: The preferred start method; "spawn" is used on a system that lacks it.
        workers: The number of processes.
        start: The function that each process calls first. A forkserver loads its module once for all processes.
        arguments: The arguments of `start`.
    """
    method = method if method in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([start.__module__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start, initargs=arguments)
    try:
        yield pool
    except BrokenProcessPool as error:
        ended = [process.exitcode for process in processes_of(pool)]  # the pool itself stops those that are left
        first = next((code for code in ended if code not in (None, 0, -signal.SIGTERM)), None)
        pool.shutdown(wait=False)
        raise FedexitError(
            f"a worker died ({ending(first)}): it was killed, memory ran out, or a script starts workers outside of "
            'if __name__ == "__main__"; fix this and run again, finished work is kept'
        ) from error
    except BaseException:
        running = processes_of(pool)
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        raise
    pool.shutdown()


def processes_of(pool: ProcessPoolExecutor) -> list[multiprocessing.Process]:
    """Return the processes of `pool`. The standard library has no public way to get them before Python 3.14."""
    return list((pool._processes or {}).values())


def start_worker(threads: int = 1) -> None:
    """Set this process to a number of threads, and let it end when its parent ends."""
    torch.set_num_threads(threads)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Wait for the end of the parent, because a killed parent cannot tell its workers to stop."""
    wait([parent])
    os._exit(1)
