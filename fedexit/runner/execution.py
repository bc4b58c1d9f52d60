"""Execute one notebook in one kernel, under one time limit, with papermill."""

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from fedexit.runner.manifest import Notebook
from fedexit.support.errors import FedexitError

MAX_BYTES = 1_000_000  # of an executed notebook: more is slow to open and to compare


def known_parameters(notebook: Notebook) -> list[str]:
    """Names set in the notebook's cell tagged `parameters`. Raises FedexitError when it names no Python kernel."""
    import papermill  # 1.7 s; `fedexit status` does without

    try:
        return sorted(papermill.inspect_notebook(str(notebook.path)))
    except ValueError:
        raise FedexitError(f"{notebook.id}: no kernel in its metadata; open it in JupyterLab with Python 3") from None


def execute(notebook: Notebook, parameters: dict, executed: Path, env: dict[str, str], minutes: float) -> None:
    """Run `notebook` with `parameters` in a fresh kernel with the variables `env`, and write it to `executed`.

    Raises FedexitError when a cell fails (its source and the error are printed to stderr), when the kernel dies, after
    `minutes`, or when the executed notebook is too large: `executed` then holds what was run. OSError on a full disk.
    """
    import papermill

    try:
        with _time_limit(notebook.id, minutes):
            papermill.execute_notebook(
                str(notebook.path),
                str(executed),
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=sys.stderr.isatty(),
                cwd=str(notebook.path.parent),
                kernel_manager_class=_this_interpreter(env),
                coalesce_streams=True,  # otherwise the same prints come in chunks of chance
            )
    except papermill.PapermillExecutionError as error:
        if os.strerror(errno.ENOSPC) in error.evalue:
            raise OSError(errno.ENOSPC, f"in a cell of {notebook.id}") from None
        _show_failure(error)
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise FedexitError(f"{notebook.id} failed in cell In [{error.exec_count}]: {reason}") from None
    _remove_volatile(executed)
    if executed.stat().st_size > MAX_BYTES:
        raise FedexitError(
            f"{notebook.id} is larger than {MAX_BYTES:,} bytes when executed; show smaller or fewer outputs"
        )


def _this_interpreter(env: dict[str, str]) -> type:
    """Kernel manager that starts this Python, whatever kernelspec is installed under the name python3."""
    from ipykernel.kernelspec import make_ipkernel_cmd
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    escaped = {name: value.replace("$", "$$") for name, value in env.items()}  # the values are string templates

    command = [*make_ipkernel_cmd(), "--log-level=CRITICAL"]  # its remarks about sockets are no news to the reader

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=command, language="python", display_name="Python 3", env=escaped)

    return ThisInterpreter


@contextmanager
def _time_limit(name: str, minutes: float) -> Iterator[None]:
    """Kill what the block starts (the kernel and its workers) after `minutes`, and in any case when the block ends.

    An interrupt kills it, too, before it is raised: papermill's event loop can lose the exception, or wait for the
    kernel; a kernel that is gone it always notices.
    """
    before = set(psutil.Process().children(recursive=True))
    expired, interrupted = threading.Event(), threading.Event()

    def stop() -> None:
        expired.set()
        _kill_children_except(before)

    def interrupt(*_: object) -> None:
        interrupted.set()
        _kill_children_except(before)
        raise KeyboardInterrupt

    timer = threading.Timer(60 * minutes, stop)
    timer.start()
    try:
        with _on_interrupt(interrupt):
            yield
    except RuntimeError as error:  # what nbclient raises when its kernel is gone
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        if expired.is_set():
            raise FedexitError(
                f"{name} took longer than its limit of {minutes:g} min; raise it in nbs_ci.yml"
            ) from None
        raise FedexitError(f"{name}: the kernel died ({error}); most often memory ran out, see its minutes") from None
    finally:
        timer.cancel()
        _kill_children_except(before)


@contextmanager
def _on_interrupt(handler: Callable) -> Iterator[None]:
    """Let Ctrl-C call `handler` inside the block; no effect outside of the main thread, which alone gets it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _kill_children_except(spared: set[psutil.Process]) -> None:
    for process in set(psutil.Process().children(recursive=True)) - spared:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue  # ended by itself between listing and killing


def _show_failure(error: Exception) -> None:
    """Print the failing cell and the end of its traceback, without papermill's own."""
    traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).rstrip().splitlines()
    lines = [f"cell In [{error.exec_count}]:", *error.source.splitlines(), "error:", *traceback[-8:]]
    print(lines[0], *(line if line == "error:" else f"    {line}" for line in lines[1:]), sep="\n", file=sys.stderr)


def _remove_volatile(path: Path) -> None:
    """Take dates, durations, random ids and recordings out of an executed notebook: a rerun is the same bytes."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for number, cell in enumerate(notebook.cells):
        if "id" in cell and {"injected-parameters", "papermill-error-cell-tag"} & set(cell.metadata.get("tags", [])):
            cell.id = f"added-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            if "<audio" in output.get("data", {}).get("text/html", ""):  # a recording is not ours to hand on
                output["data"] = {"text/plain": "(recordings are not stored: run the notebook to listen)"}
    temporary = path.with_suffix(".part")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)
