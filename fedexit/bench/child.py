"""Run a measurement in a separate process: `python -m fedexit.bench.child NAME JSON` prints its result as JSON.

`launch` starts the process and samples the memory of it and its descendants.
"""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import psutil

import fedexit
from fedexit.support.errors import FedexitError

# Functions that can run in a child. Each takes the keywords of the JSON argument and `started`, and returns a
# dictionary or a list of rows that JSON can hold.
TARGETS = {
    "bare": "fedexit.bench.engines:bare",
    "fedexit": "fedexit.bench.engines:fedexit",
    "pfl": "fedexit.bench.pfl_engine:pfl",
    "flower": "fedexit.bench.flower_engine:flower",
    "fleet": "fedexit.bench.fleet_engine:fleet",
    "aggregate": "fedexit.bench.aggregate:one_way",
    "depth": "fedexit.bench.depth:steps",
}
_LIMIT = 1200  # seconds, about twenty times the longest run; Flower waits for ever if Ray fails to start
_EVERY = 0.25  # seconds between two samples of the memory


def launch(name: str, arguments: dict, threads: int = 1, python: str | Path = sys.executable, ranks: int = 1) -> dict:
    """Run target `name` in a new process and return its result with the `peak_mb` of its processes.

    The peak is that of the proportional set size, which counts a shared page once. Where the system does not report
    it, the unique set size is used.

    Args:
        name: a key of `TARGETS`.
        arguments: keywords of the target, ready for JSON.
        threads: threads of the process, for every library.
        python: interpreter that runs the target.
        ranks: with more than one, torchrun starts this many processes and the first one answers.

    Returns:
        The dictionary of the target; a list of rows comes as `rows`.

    Raises:
        FedexitError: the process fails (with its last line of output) or runs for twenty minutes.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    job = json.dumps({**arguments, "threads": threads, "started": time.time()})
    command = [str(python), "-m", *torchrun, "fedexit.bench.child", name, job]
    process = subprocess.Popen(
        command, env=_environment(threads), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    memory = _Memory(process.pid)
    memory.start()
    try:
        output, errors = process.communicate(timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        raise FedexitError(f"{name} did not end within twenty minutes; stop other programs and run it again") from None
    finally:
        memory.ended.set()
        _end(process)
    answers = [line for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not answers:
        last = [f"it ended with code {process.returncode}", *errors.strip().splitlines()][-1]
        raise FedexitError(f"{name} failed: {last}")
    memory.join()
    return {**json.loads(answers[-1]), "peak_mb": memory.peak / 1e6}


def _environment(threads: int) -> dict[str, str]:
    """Return this process's environment with the number of threads, this package to import and no telemetry."""
    package = str(Path(fedexit.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    quiet = dict(FEDEXIT_PROGRESS="0", HF_HUB_OFFLINE="1", FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")
    return {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONPATH": path}


def _end(process: subprocess.Popen) -> None:
    """Kill `process` and its descendants if it still runs."""
    if process.poll() is not None:
        return
    root = psutil.Process(process.pid)
    for each in [*root.children(recursive=True), root]:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            each.kill()
    process.communicate()


class _Memory(threading.Thread):
    """A thread that samples the memory of a process and its descendants until `ended` is set; `peak` is in bytes."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.root, self.peak, self.ended = psutil.Process(pid), 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(_EVERY):
            try:
                processes = [self.root, *self.root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, sum(map(_size, processes)))


def _size(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
    except psutil.Error:  # it has ended, or belongs to another user
        return 0
    return getattr(info, "pss", info.uss)


def main() -> None:
    """Run the target that the command line names and print its result."""
    name, job = sys.argv[1:]
    arguments = json.loads(job)
    module, function = TARGETS[name].split(":")
    import torch  # after the cheap checks, because it takes seconds

    torch.set_num_threads(arguments.pop("threads"))
    if "workload" in arguments:
        from fedexit.bench.workload import Workload

        arguments["workload"] = Workload(**arguments["workload"])
    answer = getattr(import_module(module), function)(**arguments)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(answer if isinstance(answer, dict) else {"rows": answer}), flush=True)


if __name__ == "__main__":
    main()
