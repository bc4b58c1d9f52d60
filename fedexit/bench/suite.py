"""Run the parts of `fedexit bench`: each measurement in its own process, in turn, repeated."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedexit.bench import peers, report
from fedexit.bench.aggregate import WAYS
from fedexit.bench.child import launch
from fedexit.bench.workload import Sizes, Workload
from fedexit.support.errors import FedexitError
from fedexit.support.files import check_target
from fedexit.support.paths import results_dir
from fedexit.support.progress import progress

PARTS = ("engine", "aggregate", "depth", "peers")


@dataclass(frozen=True)
class Engine:
    """One row of the comparison.

    Attributes:
        name: a target of `fedexit.bench.child`.
        kind: kind of workload (`Workload.kind`).
        processes: number of processes that train.
    """

    name: str
    kind: str
    processes: int


ENGINES = (
    Engine("bare", "full", 1),
    Engine("bare", "full", 2),
    Engine("fedexit", "full", 1),
    Engine("fedexit", "full", 2),
    Engine("bare", "mixed", 1),
    Engine("fedexit", "mixed", 1),
    Engine("fedexit", "mixed", 2),
    Engine("bare", "empty", 1),
    Engine("fedexit", "empty", 1),
)
PEER_ENGINES = (
    Engine("pfl", "full", 1),
    Engine("pfl", "full", 2),
    Engine("pfl", "empty", 1),
    Engine("flower", "full", 1),
    Engine("flower", "full", 2),
    Engine("flower", "empty", 1),
)


def bench(
    parts: Sequence[str] = (), repetitions: int = 3, out: str | Path | None = None, sizes: Sizes | None = None
) -> Path:
    """Measure `parts`, write tables and a figure to the folder `out`, and return the folder.

    A peer that cannot be installed or run is named on stderr and left out.

    Args:
        parts: `engine` (seconds of a round), `aggregate` (GB/s of the server), `depth` (seconds of a step by exit) and
            `peers` (`engine` with pfl-research and Flower, installed if missing); by default all but `peers`.
        repetitions: number of times each measurement runs.
        out: folder of the tables and the figure; results/bench by default.
        sizes: how much is measured.

    Raises:
        FedexitError: a part is unknown, `repetitions` is below 1, `out` cannot be written, or a measurement fails.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise FedexitError(f"unknown part {unknown[0]!r} of the benchmark; known: {', '.join(PARTS)}")
    if repetitions < 1:
        raise FedexitError(f"repetitions must be >= 1, not {repetitions}")
    parts, sizes = parts or PARTS[:-1], sizes or Sizes()
    out = Path(out) if out else results_dir() / "bench"
    check_target(out / "provenance.json")
    versions = {}
    if {"engine", "peers"} & set(parts):
        pythons = _peers() if "peers" in parts else {}
        report.write_engines(out, _engines(sizes.workload, repetitions, pythons))
        versions = {name: peers.PEERS[name] for name in pythons}
    if "aggregate" in parts:
        report.write_aggregate(out, _aggregate(sizes, repetitions))
    if "depth" in parts:
        report.write_depth(out, _depth(sizes, repetitions))
    report.write_provenance(out, sizes, versions)
    return out


def _peers() -> dict[str, Path]:
    """Return the Python interpreter of each peer that is or can be installed."""
    pythons = {}
    for name in progress(peers.PEERS, "installing peers"):
        try:
            pythons[name] = peers.peer_python(name)
        except FedexitError as error:
            print(f"fedexit: {error}; continuing without it", file=sys.stderr)
    return pythons


def _engines(workload: Workload, repetitions: int, pythons: dict[str, Path]) -> list[dict]:
    """Return a row per run: the engine's result with its name, kind, processes and repetition."""
    rows, failed = [], set()
    engines = [*ENGINES, *(engine for engine in PEER_ENGINES if engine.name in pythons)]
    for repetition, engine in _in_turn(engines, repetitions, "engines"):
        if engine in failed:
            continue
        try:
            answer = _launch_engine(engine, workload, pythons.get(engine.name))
        except FedexitError as error:
            if engine.name not in pythons:
                raise
            print(f"fedexit: peer {error}; continuing without it", file=sys.stderr)
            failed.add(engine)
            continue
        rows.append({"engine": engine.name, "kind": engine.kind, "processes": engine.processes} | answer)
        rows[-1]["repetition"] = repetition
    return rows


def _launch_engine(engine: Engine, workload: Workload, python: Path | None) -> dict:
    arguments = {"workload": asdict(replace(workload, kind=engine.kind)), "processes": engine.processes}
    ranks = engine.processes if engine.name == "pfl" else 1
    return launch(engine.name, arguments, python=python or sys.executable, ranks=ranks)


def _aggregate(sizes: Sizes, repetitions: int) -> list[dict]:
    """Return a row per run and way, with the threads and the repetition."""
    rows = []
    cells = [(way, threads) for threads in sorted({1, os.cpu_count() or 1}) for way in WAYS]
    for repetition, ((way, depths), threads) in _in_turn(cells, repetitions, "aggregation"):
        arguments = {"way": way, "depths": depths, "clients": sizes.models, "preset": sizes.preset}
        found = launch("aggregate", arguments, threads)["rows"]
        rows += [{**row, "threads": threads, "repetition": repetition} for row in found]
    return rows


def _depth(sizes: Sizes, repetitions: int) -> list[dict]:
    """Return a row per run, exit and use of the cache, with the repetition."""
    rows = []
    for repetition, _ in _in_turn(["depth"], repetitions, "depth"):
        found = launch("depth", {"preset": sizes.preset, "samples": sizes.samples})["rows"]
        rows += [{**row, "repetition": repetition} for row in found]
    return rows


def _in_turn(cells: Sequence, repetitions: int, desc: str) -> Iterable[tuple]:
    """Yield each of `cells` once, then each again, so that a slow minute of the machine affects all of them."""
    return progress([(repetition, cell) for repetition in range(repetitions) for cell in cells], desc)
