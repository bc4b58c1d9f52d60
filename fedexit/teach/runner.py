"""Run the functions of one submission, each in a process of its own with limits. Started as a script: see `grading`.

The script reads one JSON object from its input and prints one: the raw result of each exercise. It imports nothing of
fedexit, so a submission cannot use the package's own answers without breaking out.
"""

import ast
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

NOBODY = 65534  # the user without rights
_RESULT_BYTES = 200_000
_KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
_REFUSED = ("os.fork", "os.posix_spawn", "os.exec", "os.system", "subprocess.", "socket.", "ctypes.", "os.kill", "pty.")
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.ch",
    "shutil.",
)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers, texts, lists, and dicts with texts as keys.

    Raises:
        TypeError: the value is something else, such as a set or None.
    """
    if hasattr(value, "tolist"):  # NumPy, torch
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, int | float | str):
        return value
    raise TypeError(f"the result holds a {type(value).__name__}; return numbers, texts, lists, dicts or arrays")


def decoded(value: Any) -> Any:
    """Return inputs that were stored as JSON; {"array": ...} becomes an array."""
    if isinstance(value, dict):
        return np.array(value["array"]) if set(value) == {"array"} else {k: decoded(part) for k, part in value.items()}
    return [decoded(part) for part in value] if isinstance(value, list) else value


def outputs_of(function: Callable, cases: list) -> list:
    """Return for each case {"value": ...}, or {"error": name, "text": ...} of an exception."""
    found: list[dict] = []
    for inputs in cases:
        try:
            with np.errstate(all="ignore"):
                found.append({"value": plain(function(*decoded(inputs)))})
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())
            found.append({"error": type(error).__name__, "text": text[:200]})
    return found


def function_in(cells: list[str], name: str) -> Callable | None:
    """Return the function `name` of the last cell that defines it; None if there is none.

    Of that cell only imports, definitions and assignments run. Raises SyntaxError if the cell is not Python.
    """
    for source in reversed(cells):
        if f"def {name}" not in source:
            continue
        lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
        body = ast.parse("\n".join(lines)).body
        if any(isinstance(node, ast.FunctionDef) and node.name == name for node in body):
            scope: dict = {"__name__": "answer"}
            module = ast.Module([node for node in body if isinstance(node, _KEPT)], [])
            exec(compile(module, "answer", "exec"), scope)
            return scope.get(name)
    return None


def _answer(job: dict, exercise: dict) -> dict:
    """Return the outputs of one exercise: {"outputs": [...]}, {"missing": true} or {"error": name, "text": ...}."""
    try:
        function = function_in(job["cells"], exercise["function"])
        return {"outputs": outputs_of(function, exercise["cases"])} if function else {"missing": True}
    except (Exception, SystemExit) as error:
        return {"error": type(error).__name__, "text": " ".join(str(error).split())[:200]}


def _confine(job: dict, home: str) -> None:
    """Give up rights and set the limits of this process; none of this can be undone."""
    import resource  # Unix only

    limits = job["limits"]
    megabyte = 1 << 20
    if job["drop"]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu"]),
        (resource.RLIMIT_AS, limits["memory"] * megabyte),
        (resource.RLIMIT_FSIZE, limits["output"] * megabyte),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),  # no new process; the system does not apply it to root
    ):
        resource.setrlimit(kind, (value, value))
    sys.modules["fedexit"] = None  # type: ignore[assignment]  # "import fedexit" fails
    sys.addaudithook(_guard(home))


def _guard(home: str) -> Callable[[str, tuple], None]:
    """Return an audit hook that refuses processes, sockets, and files outside `home` and the Python installation."""
    readable = tuple(os.path.realpath(place) + os.sep for place in (home, sys.prefix, sys.base_prefix))

    def guard(event: str, details: tuple) -> None:
        if event.startswith(_REFUSED + _CHANGES):
            raise PermissionError(f"a submission may not use {event}")
        if event == "open" and isinstance(details[0], str | bytes):
            path = os.path.realpath(os.fsdecode(details[0]))
            writes = (details[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not path.startswith(readable[:1] if writes else readable):
                raise PermissionError("a submission may not open files outside its folder")

    return guard


def _child(job: dict, exercise: dict, pipe: int) -> None:
    """Run one exercise in this new process and write the result to `pipe`. This never returns."""
    try:
        os.setsid()
        home = os.getcwd()
        output = os.open(os.path.join(home, "output"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        pipe = os.dup2(pipe, 3)
        os.closerange(4, 256)
        _confine(job, home)
        text = json.dumps(_answer(job, exercise)).encode()
        while text:
            text = text[os.write(pipe, text) :]
    finally:
        os._exit(0)


def attempt(job: dict, exercise: dict) -> dict[str, str]:
    """Return {"end": ..., "text": ...}: why the process was stopped ("" if it was not) and its raw result."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(job, exercise, write)
    os.close(write)
    end, text, deadline = "time", b"", time.monotonic() + job["limits"]["wall"]
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([read], [], [], left)[0]:
            break
        part = os.read(read, 65536)
        text += part
        if not part or len(text) > _RESULT_BYTES:
            end = "size" if part else ""
            break
    os.close(read)
    if end:
        for stop, target in ((os.killpg, pid), (os.kill, pid)):
            try:
                stop(target, signal.SIGKILL)
            except ProcessLookupError:
                continue
    _, status = os.waitpid(pid, 0)
    if not end and os.WIFSIGNALED(status):
        end = "cpu" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "crash"
    return {"end": end, "text": "" if end else text.decode("utf-8", "replace")}


def main() -> None:
    """Run the job on the standard input."""
    import collections, functools, itertools, math, random, re, statistics  # noqa: E401, F401, I001 (for submissions, before rights are given up)

    job = json.load(sys.stdin)
    print(json.dumps({exercise["name"]: attempt(job, exercise) for exercise in job["exercises"]}))


if __name__ == "__main__":
    main()
