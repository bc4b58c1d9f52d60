"""Execute one notebook in one kernel, under one time limit, with papermill."""

import ast
import base64
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from fedexit.runner import watchdog
from fedexit.runner.manifest import Notebook
from fedexit.runner.watchdog import kill_descendants
from fedexit.support.errors import FedexitError, ending
from fedexit.support.extras import extra
from fedexit.support.files import replacing

MAX_BYTES = 1_000_000  # bytes of an executed notebook; a larger one is slow to open and to compare
COLOURS = 64  # of the images of a notebook that would be larger
MAX_PRINTED = 100_000  # characters that are kept of what a cell prints to stdout or stderr
MAX_LINE = 10_000  # characters that are kept of one printed line
MAX_OUTPUTS = 1_000  # outputs of a cell: tables, pictures and streams
_LINE_CUT = " [... the rest of this line is not stored]"
_TOO_MANY = f"[... only the first {MAX_OUTPUTS:,} outputs of a cell are stored]\n"
_OUTPUT_CUT = f"\n[... only the first {MAX_PRINTED:,} characters that a cell prints are stored]\n"


def known_parameters(notebook: Notebook) -> list[str]:
    """Return the names set in the notebook's cell tagged `parameters`.

    Raises:
        FedexitError: its metadata names no Python kernel.
    """
    with extra("notebooks"):
        import papermill  # takes 1.7 s; `fedexit status` does without

    try:
        return sorted(papermill.inspect_notebook(_literally(notebook.path)))
    except ValueError:
        raise FedexitError(f"{notebook.id}: no kernel in its metadata; open it in JupyterLab with Python 3") from None


def default_values(notebook: Notebook) -> dict[str, object]:
    """Return the values in the notebook's cell tagged `parameters` that are literals; none of a broken notebook."""
    found: dict[str, object] = {}
    with suppress(ValueError, KeyError, TypeError, SyntaxError, RecursionError):
        for cell in json.loads(notebook.path.read_text(encoding="utf-8"))["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                for line in ast.parse("".join(cell["source"])).body:
                    if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                        with suppress(ValueError):
                            found[line.targets[0].id] = ast.literal_eval(line.value)
    return found


def execute(
    notebook: Notebook, parameters: dict, executed: Path, env: dict[str, str], minutes: float, bar: bool = True
) -> None:
    """Run `notebook` with `parameters` in a fresh kernel with the variables `env`, and write it to `executed`.

    Args:
        notebook: the source.
        parameters: values for its cell tagged `parameters`.
        executed: file for the executed notebook; after an error it holds the cells up to the error.
        env: environment variables of the kernel, beside those of this process.
        minutes: time limit for the whole notebook.
        bar: show a progress bar, if stderr is a terminal.

    Raises:
        FedexitError: a cell failed (its source and the error are printed to stderr), the kernel died, the limit was
            reached, or the executed notebook is too large.
        OSError: the disk is full.
    """
    import papermill

    kernels: list[subprocess.Popen] = []
    try:
        with _time_limit(notebook.id, minutes, kernels):
            papermill.execute_notebook(
                _literally(notebook.path),
                _literally(executed),
                parameters,
                engine_name=_engine(),
                kernel_name="python3",
                language="python",
                progress_bar=bar and sys.stderr.isatty(),
                cwd=str(notebook.path.parent),
                kernel_manager_class=_this_interpreter(env, kernels),
            )
    except papermill.PapermillExecutionError as error:
        if os.strerror(errno.ENOSPC) in error.evalue:
            raise OSError(errno.ENOSPC, f"in a cell of {notebook.id}") from None
        _show_failure(error)
        first = next((line for line in error.evalue.splitlines() if line.strip()), "no message")
        reason = f"{error.ename}: {first:.300}"
        raise FedexitError(f"{notebook.id} failed in cell In [{error.exec_count}]: {reason}") from None
    _remove_volatile(executed)
    if executed.stat().st_size > MAX_BYTES:
        _take_few_colours(executed)
    if executed.stat().st_size > MAX_BYTES:
        raise FedexitError(
            f"{notebook.id} is larger than {MAX_BYTES:,} bytes when executed; show smaller or fewer outputs"
        )


def _take_few_colours(executed: Path) -> None:
    """Store the images of an executed notebook with `COLOURS` colours; they then need about a third of the bytes."""
    from PIL import Image  # comes with matplotlib

    content = json.loads(executed.read_text(encoding="utf-8"))
    for output in [output for cell in content["cells"] for output in cell.get("outputs", [])]:
        if image := output.get("data", {}).get("image/png"):
            with Image.open(io.BytesIO(base64.b64decode("".join(image)))) as full:
                few = full.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(made := io.BytesIO(), "PNG", optimize=True)
            output["data"]["image/png"] = base64.b64encode(made.getvalue()).decode() + "\n"
    executed.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _literally(path: Path) -> str:
    """Return a path with its braces escaped, because papermill reads braces as parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _this_interpreter(env: dict[str, str], kernels: list[subprocess.Popen]) -> type:
    """Return a kernel manager that starts this Python, whatever kernelspec is installed under the name python3.

    It appends the process of its kernel to `kernels`.
    """
    from ipykernel.kernelspec import make_ipkernel_cmd
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    escaped = {name: value.replace("$", "$$") for name, value in env.items()}  # the values are string templates
    command = [*make_ipkernel_cmd(), "--log-level=CRITICAL"]  # its messages about sockets do not help the reader

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=command, language="python", display_name="Python 3", env=escaped)

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]  # the base class is typed so
            await super().start_kernel(**options)
            provisioner: Any = self.provisioner
            kernels.append(provisioner.process)

    return ThisInterpreter


@cache
def _engine() -> str:
    """Register an engine of papermill that stores at most `MAX_PRINTED` characters per cell; return its name.

    nbclient joins what a cell prints with regular expressions that need minutes for one long line.
    """
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines
    from papermill.log import logger

    class Client(PapermillNotebookClient):
        clear_before_next_output: bool

        def output(self, outs: list, msg: dict, display_id: str | None, cell_index: int) -> Any:
            if msg["msg_type"] != "stream" or self.output_hook_stack[msg["parent_header"].get("msg_id")]:
                if (size := len(json.dumps(data := msg["content"].get("data", {})))) > MAX_BYTES:
                    data.clear()
                    data["text/plain"] = f"[an output of {size:,} bytes is not stored; {MAX_BYTES:,} are the most]"
                if len(outs) < MAX_OUTPUTS:
                    return super().output(outs, msg, display_id, cell_index)
                if outs[-1].get("text") != _TOO_MANY:
                    add_printed(outs, "stderr", _TOO_MANY)
                return None
            if self.clear_before_next_output:
                self.clear_before_next_output = False
                outs.clear()
            add_printed(outs, msg["content"]["name"], msg["content"]["text"])
            return None

    class CappedEngine(Engine):
        @classmethod
        def execute_managed_notebook(
            cls, nb_man: object, kernel_name: str, kernel_manager_class: type, **_: object
        ) -> Any:
            # a cell that prints a lot is done before its last message arrives: wait for it, then go on
            waits = dict(startup_timeout=120, iopub_timeout=120, raise_on_iopub_timeout=False)
            client = Client(
                nb_man, kernel_name=kernel_name, kernel_manager_class=kernel_manager_class, log=logger, **waits
            )
            return client.execute(stdout=subprocess.DEVNULL)  # the notebook has it; ipykernel repeats it here

    papermill_engines.register("fedexit", CappedEngine)
    return "fedexit"


def add_printed(outputs: list, name: str, text: str) -> None:
    """Append `text`, printed to the stream `name`, to a cell's outputs: each stream is one output, stdout first.

    A carriage return starts its line again, as on a terminal. Lines are cut after `MAX_LINE` characters and streams
    after `MAX_PRINTED`, with a remark.
    """
    from nbformat.v4 import new_output

    found = [output for output in outputs if output["output_type"] == "stream" and output["name"] == name]
    if not found:
        found = [new_output("stream", name=name, text="")]
        before_stderr = name == "stdout" and outputs and outputs[-1].get("name") == "stderr"
        outputs.insert(len(outputs) - 1 if before_stderr else len(outputs), found[0])
    if found[0]["text"].endswith(_OUTPUT_CUT):
        return
    done, newline, last = found[0]["text"].rpartition("\n")
    added = "\n".join(map(_as_shown, (last + text).split("\n")))
    whole = done + newline + added
    found[0]["text"] = whole if len(whole) <= MAX_PRINTED else whole[:MAX_PRINTED] + _OUTPUT_CUT


def _as_shown(line: str) -> str:
    """Return what a terminal shows of a line; a final carriage return stays, because more text may follow."""
    shown = line.rstrip("\r")
    ending = "\r" if len(shown) < len(line) else ""
    shown = shown.rpartition("\r")[2]
    return (shown if len(shown) <= MAX_LINE else shown[:MAX_LINE] + _LINE_CUT) + ending


@contextmanager
def _time_limit(name: str, minutes: float, kernels: list[subprocess.Popen]) -> Iterator[None]:
    """Kill what the block starts (the kernel and its workers) after `minutes`, and in any case when the block ends.

    Another process watches the time, because this one may be busy with a large output. `kernels` are those that were
    started. An interrupt kills them, too, before it is raised: papermill's event loop can lose the exception, or wait
    for the kernel. It always notices a kernel that is gone.
    """
    before, interrupted = {process.pid for process in psutil.Process().children(recursive=True)}, threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        kill_descendants(os.getpid(), before)
        raise KeyboardInterrupt

    since, seconds = time.monotonic(), 60 * minutes
    facts = [os.getpid(), seconds, *before]
    watcher = subprocess.Popen([sys.executable, watchdog.__file__, *map(str, facts)], stderr=subprocess.DEVNULL)
    try:
        with _on_interrupt(interrupt):
            yield
    except RuntimeError as error:  # what nbclient raises when its kernel is gone
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        if time.monotonic() - since >= seconds:
            raise FedexitError(
                f"{name} took longer than its limit of {minutes:g} min; raise it in nbs_ci.yml"
            ) from None
        how = ending(kernels[0].poll()) if kernels else error
        raise FedexitError(f"{name}: the kernel died ({how}); most often memory ran out, see its minutes") from None
    finally:
        kill_descendants(os.getpid(), before)
        watcher.wait()


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


def _show_failure(error: Any) -> None:
    """Print the failing cell and the end of its traceback in one piece, without papermill's own."""
    traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).rstrip().splitlines()
    lines = [f"cell In [{error.exec_count}]:", *error.source.splitlines(), "error:", *traceback[-8:]]
    shown = [lines[0], *(line if line == "error:" else f"    {line:.300}" for line in lines[1:])]
    print("\n".join(shown), file=sys.stderr)


def _remove_volatile(path: Path) -> None:
    """Take dates, durations, random ids and recordings out of an executed notebook: a rerun is bit-identical."""
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
            if "<audio" in output.get("data", {}).get("text/html", ""):  # recordings may not be redistributed
                output["data"] = {"text/plain": "(recordings are not stored: run the notebook to listen)"}
    with replacing(path) as part:
        nbformat.write(notebook, part)
