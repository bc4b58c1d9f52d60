"""A measurement in a process of its own: `python -m fedexit.bench.child NAME JSON` prints its result as one JSON line.

`launch` starts it and watches the memory of it and all that it starts.
"""

import json
import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import psutil

import fedexit
from fedexit.support.errors import FedexitError

# What can run in a child, by name: each takes the keywords in JSON, and `started`, and returns what JSON can hold, a
# dictionary or a list of rows.
TARGETS = {
    "bare": "fedexit.bench.engines:bare",
    "fedexit": "fedexit.bench.engines:fedexit",
    "pfl": "fedexit.bench.pfl_engine:pfl",
    "flower": "fedexit.bench.flower_engine:flower",
    "aggregate": "fedexit.bench.aggregate:one_way",
    "depth": "fedexit.bench.depth:steps",
}
_LIMIT = 1200  # seconds, some twenty times what the longest takes: Flower waits for ever when Ray could not start
_EVERY = 0.25  # seconds between two looks at the memory


def launch(name: str, arguments: dict, threads: int = 1, python: str | Path = sys.executable, ranks: int = 1) -> dict:
    """What target `name` returns for `arguments` (a list as `rows`), and the `peak_mb` of its processes.

    `python` runs it, with so many threads. The peak is that of the proportional set size, where a shared page
    counts once (where the system tells; else of the unique set size). With several `ranks`, torchrun starts as many and
    the first one answers.
    Raises FedexitError, with the last line that it said, when the process fails or takes twenty minutes.
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
        said, complained = process.communicate(timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        raise FedexitError(f"{name} did not end within twenty minutes") from None
    finally:
        memory.ended.set()
        _end(process)
    answers = [line for line in said.splitlines() if line.startswith("{")]
    if process.returncode or not answers:
        last = [f"it ended with code {process.returncode}", *complained.strip().splitlines()][-1]
        raise FedexitError(f"{name} failed: {last}")
    memory.join()
    return {**json.loads(answers[-1]), "peak_mb": memory.peak / 1e6}


def _environment(threads: int) -> dict[str, str]:
    """This process's, with the threads set for every library, this very package to import, and nothing sent out."""
    package = str(Path(fedexit.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    quiet = dict(FEDEXIT_PROGRESS="0", HF_HUB_OFFLINE="1", FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")
    return {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONPATH": path}


def _end(process: subprocess.Popen) -> None:
    """Kill `process`, with all that it started, if it still runs."""
    if process.poll() is not None:
        return
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue  # ended by itself meanwhile
    process.communicate()


class _Memory(threading.Thread):
    """Watches the summed memory of a process and its descendants; `peak` in bytes."""

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
    except psutil.Error:  # it ended meanwhile, or is another user's
        return 0
    return getattr(info, "pss", info.uss)


def main() -> None:
    """Run the target that the command line names and print its result."""
    import torch

    name, job = sys.argv[1:]
    arguments = json.loads(job)
    torch.set_num_threads(arguments.pop("threads"))
    module, function = TARGETS[name].split(":")
    if "workload" in arguments:
        from fedexit.bench.workload import Workload

        arguments["workload"] = Workload(**arguments["workload"])
    answer = getattr(import_module(module), function)(**arguments)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(answer if isinstance(answer, dict) else {"rows": answer}), flush=True)


if __name__ == "__main__":
    main()
