"""What `fedexit bench` runs: every measurement in a process of its own, what is compared in turn, repeated."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fedexit.bench import peers, report
from fedexit.bench.aggregate import WAYS
from fedexit.bench.child import launch
from fedexit.bench.workload import Workload
from fedexit.support.errors import FedexitError
from fedexit.support.paths import results_dir
from fedexit.support.progress import progress

PARTS = ("engine", "aggregate", "depth", "peers")


@dataclass(frozen=True)
class Engine:
    """One row of the comparison: an engine, a kind of workload and how many processes train."""

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


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `samples` at 16 kHz of a clip of the part `depth`. The defaults take some 15 minutes."""

    workload: Workload = field(default_factory=Workload)
    preset: str = "base"
    models: int = 10
    samples: int = 32_000


def bench(
    parts: Sequence[str] = (), repetitions: int = 3, out: str | Path | None = None, sizes: Sizes | None = None
) -> Path:
    """Measure `parts` (default all but `peers`), write tables and a figure to the folder `out`, and return it.

    `engine`: seconds of a round; `aggregate`: GB/s of the server; `depth`: seconds of a step by exit; `peers`: `engine`
    with pfl-research and Flower in turn, each installed when it is missing. `out` is results/bench by default.
    Raises FedexitError for an unknown part, fewer than one repetition, and a measurement that fails; a peer that cannot
    be installed or run is named on stderr and left out.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise FedexitError(f"unknown part {unknown[0]!r} of the benchmark; known: {', '.join(PARTS)}")
    if repetitions < 1:
        raise FedexitError(f"repetitions must be >= 1, not {repetitions}")
    parts, sizes = parts or PARTS[:-1], sizes or Sizes()
    out = Path(out) if out else results_dir() / "bench"
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
    """Peers that are there or could be installed, with their Python."""
    pythons = {}
    for name in progress(peers.PEERS, "installing peers"):
        try:
            pythons[name] = peers.peer_python(name)
        except FedexitError as error:
            print(f"fedexit: {error}; going on without it", file=sys.stderr)
    return pythons


def _engines(workload: Workload, repetitions: int, pythons: dict[str, Path]) -> list[dict]:
    """A row per run: what the engine returned, with its name, kind, processes and repetition."""
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
            print(f"fedexit: peer {error}; going on without it", file=sys.stderr)
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
    """A row per run and way, with the threads and the repetition."""
    rows = []
    cells = [(way, threads) for threads in sorted({1, os.cpu_count() or 1}) for way in WAYS]
    for repetition, ((way, depths), threads) in _in_turn(cells, repetitions, "aggregation"):
        arguments = {"way": way, "depths": depths, "clients": sizes.models, "preset": sizes.preset}
        found = launch("aggregate", arguments, threads)["rows"]
        rows += [{**row, "threads": threads, "repetition": repetition} for row in found]
    return rows


def _depth(sizes: Sizes, repetitions: int) -> list[dict]:
    """A row per run, exit and cache, with the repetition."""
    rows = []
    for repetition, _ in _in_turn(["depth"], repetitions, "depth"):
        found = launch("depth", {"preset": sizes.preset, "samples": sizes.samples})["rows"]
        rows += [{**row, "repetition": repetition} for row in found]
    return rows


def _in_turn(cells: Sequence, repetitions: int, desc: str) -> Iterable[tuple]:
    """Each of `cells` once, then each again: a slow minute of the machine hits them all alike."""
    return progress([(repetition, cell) for repetition in range(repetitions) for cell in cells], desc)
