"""Tables, figure and provenance of `fedexit bench`."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from fedexit.bench.workload import same_weights

_QUANTITIES = {"round": "s", "first_round": "s", "startup": "s", "startup_and_first_round": "s", "peak_memory": "MB"}
_CELL = ["engine", "kind", "processes"]


def write_engines(out: Path, runs: Sequence[dict]) -> pd.DataFrame:
    """tables/engine.csv and figures/engine.png with its data: what each engine costs beside the bare loop.

    Per engine, kind of workload, number of processes and quantity: median, min, max over repetitions, and `ratio`, the
    median over repetitions of the quotient by the bare loop's of the same repetition with as many processes (at full
    depth; for empty rounds: empty ones). `round` is the median of a run's rounds but the first. `equal_weights` says
    whether every repetition ended with the bare loop's weights; if not, the row compares nothing. Returns the table.
    """
    long = pd.DataFrame([row for run in runs for row in _quantities(run, runs)])
    table = _summary(long, [*_CELL, "quantity", "unit"]).merge(
        long.groupby(_CELL, as_index=False)["equal_weights"].all()
    )
    _write(out / "tables" / "engine.csv", table)
    rounds = long[(long["quantity"] == "round") & (long["kind"] != "empty") & long["equal_weights"]]
    _engine_figure(out / "figures" / "engine.png", rounds[[*_CELL, "repetition", "value", "ratio"]])
    for row in table[~table["equal_weights"]].drop_duplicates(_CELL).itertuples():
        print(f"fedexit: {row.engine}, {row.kind}, ended with other weights; not comparable", file=sys.stderr)
    return table


def write_aggregate(out: Path, rows: Sequence[dict]) -> pd.DataFrame:
    """tables/aggregate.csv: GB/s of clients' bytes by way and threads, `ratio` to the limit of the same repetition."""
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
    """tables/depth.csv: seconds of a training step by exit; `ratio` to the deepest exit, and that of the MACs."""
    long = pd.DataFrame(rows)
    deepest = long[long["depth"] == long["depth"].max()].set_index(["cached", "repetition"])
    own = deepest.loc[pd.MultiIndex.from_frame(long[["cached", "repetition"]])]
    long = long.assign(value=long["seconds"], ratio=long["seconds"] / own["seconds"].to_numpy())
    long["macs_ratio"] = long["macs"] / own["macs"].to_numpy()
    cell = ["depth", "cached", "macs", "macs_ratio"]
    table = _summary(long.assign(unit="s"), [*cell, "unit"])
    _write(out / "tables" / "depth.csv", table)
    return table


def write_provenance(out: Path, sizes: object, peers: dict[str, str]) -> None:
    """provenance.json: versions, cores, system and what was measured; nothing that names the machine."""
    packages = ("fedexit", "torch", "transformers", "numpy")
    facts = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "peers": peers,
        "platform": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "sizes": asdict(sizes) if is_dataclass(sizes) else sizes,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "provenance.json").write_text(json.dumps(facts, indent=2) + "\n")


def _quantities(run: dict, runs: Sequence[dict]) -> list[dict]:
    """A row per quantity of one run, with its ratio to the bare loop and whether the weights are right."""
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
    """Median, min and max of `value` and the median `ratio` per `cell`, in the order of the rows."""
    return long.groupby(cell, as_index=False, sort=False).agg(
        median=("value", "median"), min=("value", "min"), max=("value", "max"), repetitions=("value", "size"),
        ratio=("ratio", "median"),
    )  # fmt: skip


def _engine_figure(path: Path, data: pd.DataFrame) -> None:
    """A mark per repetition: how long a round takes, as a multiple of the bare loop's."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    from fedexit.lab.looks import style

    style()
    clients = {"full": "all clients at exit 12", "mixed": "exits 3 and 9"}
    data = data.assign(label=data["engine"] + ", " + data["kind"].map(clients))
    data["label"] += ((data["engine"] == "fedexit") & (data["kind"] == "mixed")).map(
        {True: ", convolved once", False: ""}
    )
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.4 * data["label"].nunique()))
    marks = dict(hue="processes", style="processes", palette="colorblind", s=70, alpha=0.8)
    sns.scatterplot(data, x="ratio", y="label", ax=axis, **marks)
    axis.axvline(1, color="black", ls="--", lw=1)
    axis.set(
        xlabel="seconds of a round, as a multiple of the bare loop's\n(all at exit 12, as many processes)", ylabel=""
    )
    axis.set_xlim(left=0)
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    _write(path.with_suffix(".csv"), data.drop(columns="label"))


def _write(path: Path, table: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n", float_format="%.6g")
