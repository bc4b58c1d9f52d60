"""Write the tables, the figure and the provenance of `fedexit bench`."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd

import fedexit
from fedexit.bench.workload import Sizes, same_weights
from fedexit.lab.figures import engine
from fedexit.lab.looks import style
from fedexit.support.extras import extra
from fedexit.support.files import replacing, write_text

with extra("notebooks"):
    import matplotlib.pyplot as plt

_QUANTITIES = {"round": "s", "first_round": "s", "startup": "s", "startup_and_first_round": "s", "peak_memory": "MB"}
_CELL = ["engine", "kind", "processes"]
# they compute the weights, the times and memory, and the tables
_PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pandas", "psutil")


def write_engines(out: Path, runs: Sequence[dict]) -> pd.DataFrame:
    """Write tables/engine.csv and figures/engine.png with its data, and return the table.

    There is a row per engine, kind of workload, number of processes and quantity, with these columns:

    - `median`, `min`, `max` over repetitions. The quantity `round` is the median of a run's rounds after the first.
    - `ratio`: the value divided by that of the bare loop at full depth, in the same repetition with the same number of
      processes; the median over repetitions. Empty rounds are compared with empty rounds.
    - `equal_weights`: every repetition ended with the bare loop's weights. If not, the row is not comparable.
    """
    long = pd.DataFrame([row for run in runs for row in _quantities(run, runs)])
    table = _summary(long, [*_CELL, "quantity", "unit"]).merge(
        long.groupby(_CELL, as_index=False)["equal_weights"].all()
    )
    _write(out / "tables" / "engine.csv", table)
    rounds = long[(long["quantity"] == "round") & (long["kind"] != "empty") & long["equal_weights"]]
    _engine_figure(out / "figures" / "engine.png", rounds[[*_CELL, "repetition", "value", "ratio"]])
    for row in table[~table["equal_weights"]].drop_duplicates(_CELL).itertuples():
        print(f"fedexit: {row.engine}, {row.kind}, ended with other weights; do not compare it", file=sys.stderr)
    return table


def write_aggregate(out: Path, rows: Sequence[dict]) -> pd.DataFrame:
    """Write tables/aggregate.csv and return it: GB/s by way and threads, and `ratio` to the limit."""
    long = pd.DataFrame(rows)
    limits = long[long["way"] == "limit"].set_index(["threads", "repetition"])["gb_per_s"]
    own = pd.MultiIndex.from_frame(long[["threads", "repetition"]])
    long = long.assign(value=long["gb_per_s"], ratio=long["gb_per_s"] / limits.reindex(own).to_numpy())
    cell = ["way", "depths", "clients", "threads"]
    extra = long.groupby(cell, as_index=False, sort=False)["extra_mb"].median()
    table = _summary(long.assign(unit="GB/s"), [*cell, "unit"]).merge(extra)
    _write(out / "tables" / "aggregate.csv", table)
    return table


def write_depth(out: Path, rows: Sequence[dict]) -> pd.DataFrame:
    """Write tables/depth.csv and return it: seconds of a training step by exit.

    `ratio` and `macs_ratio` divide the seconds and the multiply-accumulates by those of the deepest exit.
    """
    long = pd.DataFrame(rows)
    deepest = long[long["depth"] == long["depth"].max()].set_index(["cached", "repetition"])
    own = deepest.loc[pd.MultiIndex.from_frame(long[["cached", "repetition"]])]
    long = long.assign(value=long["seconds"], ratio=long["seconds"] / own["seconds"].to_numpy())
    long["macs_ratio"] = long["macs"] / own["macs"].to_numpy()
    cell = ["depth", "cached", "macs", "macs_ratio"]
    table = _summary(long.assign(unit="s"), [*cell, "unit"])
    _write(out / "tables" / "depth.csv", table)
    return table


def write_provenance(out: Path, sizes: Sizes, peers: dict[str, str]) -> None:
    """Write provenance.json: versions, cores, system and sizes, but nothing that identifies the machine."""
    facts = {
        "python": platform.python_version(),
        "packages": {"fedexit": fedexit.__version__} | {name: version(name) for name in _PACKAGES},
        "peers": peers,
        "platform": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "sizes": asdict(sizes),
    }
    write_text(out / "provenance.json", json.dumps(facts, indent=2) + "\n")


def _quantities(run: dict, runs: Sequence[dict]) -> list[dict]:
    """Return a row per quantity of one run, with its ratio to the bare loop and a check of its weights."""
    peers = [other for other in runs if other["engine"] == "bare" and other["repetition"] == run["repetition"]]
    kind = "empty" if run["kind"] == "empty" else "full"
    floor = next((o for o in peers if (o["kind"], o["processes"]) == (kind, run["processes"])), None)
    right = next(other for other in peers if other["kind"] == run["kind"])
    equal = same_weights(run, right, run["kind"])
    mine, least = _values(run), _values(floor) if floor else {}
    about = {name: run[name] for name in [*_CELL, "repetition"]}
    return [
        {**about, "quantity": name, "unit": unit, "value": mine[name], "equal_weights": equal}
        | {"ratio": mine[name] / least[name] if least else float("nan")}
        for name, unit in _QUANTITIES.items()
    ]


def _values(run: dict) -> dict[str, float]:
    first, *later = run["rounds"]
    return {
        "round": pd.Series(later).median(),
        "first_round": first,
        "startup": run["startup"],
        "startup_and_first_round": run["startup"] + first,
        "peak_memory": run["peak_mb"],
    }


def _summary(long: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """Return median, min and max of `value` and the median `ratio` per `cell`, in the order of the rows."""
    return long.groupby(cell, as_index=False, sort=False).agg(
        median=("value", "median"), min=("value", "min"), max=("value", "max"), repetitions=("value", "size"),
        ratio=("ratio", "median"),
    )  # fmt: skip


def _engine_figure(path: Path, data: pd.DataFrame) -> None:
    """Draw the time of a round as a multiple of the bare loop's, and write its data."""
    style()
    figure = engine(data)
    with replacing(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    _write(path.with_suffix(".csv"), data)


def _write(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
