"""Put the tables of the paper beside ours; the first column says whose number a row holds."""

from pathlib import Path

import pandas as pd

from fedexit.lab.paper import REFERENCE, published
from fedexit.support.errors import FedexitError

TABLES = {"1": "10_depth_by_task", "2": "11_heterogeneous_depth", "3": "12_cost_of_depth"}
OURS = "fedexit (this project)"
# the paper's names of the arms of notebook 11
_SETTINGS = {
    "everyone at 12": "homogeneous",
    "stale": "heterogeneous FedAvg",
    "masked": "heterogeneous FedAvg, masked",
    "Eq. (1)": "heterogeneous layer-wise",
}


def counterpart(number: str, results: Path) -> pd.DataFrame:
    """Return Table 1, 2 or 3 of the paper with our rows below it.

    The column `source` keeps them apart. Tasks, corpora and backbones differ: compare directions, not numbers.

    Args:
        number: "1", "2" or "3".
        results: folder of the results of a profile.

    Raises:
        FedexitError: our notebook has not run in this profile.
    """
    makers = {"1": _by_depth, "2": _by_setting, "3": _memory}
    return makers[number](results / TABLES[number] / "tables")


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        notebook = path.parent.parent.name
        raise FedexitError(f"no table {path.stem} of {notebook} in this profile; make it with --rerun")
    return pd.read_csv(path)


def _by_depth(tables: Path) -> pd.DataFrame:
    """Return Table 1: error by setting and depth. Our rows are exits on which all clients stop."""
    theirs = published(1).pivot_table(index=["task", "metric", "setting"], columns="depth", values="value", sort=False)
    main = _read(tables / "main.csv")
    arms = main["arm"].str.extract(r"^(?P<setting>everyone|central) at (?P<depth>\d+)$")
    ours = main.assign(setting=arms["setting"].map({"everyone": "federated", "central": "centralised"}))
    ours = ours[arms["depth"].eq(ours["exit"].astype(str))].assign(metric="error")
    ours = ours.pivot_table(index=["task", "metric", "setting"], columns="exit", values="error", sort=False)
    both = {f"{REFERENCE}, Table 1": theirs, OURS: ours}
    rows = pd.concat([wide[sorted(wide)].reset_index().assign(source=name) for name, wide in both.items()])
    return rows[["source", "task", "metric", "setting", *sorted(ours)]].rename(columns="exit {}".format, inplace=False)


def _by_setting(tables: Path) -> pd.DataFrame:
    """Return Table 2: error at the exit of the strong clients, by setting; our fleets have four tiers."""
    theirs = published(2).rename(columns={"value": "percent"}).assign(source=f"{REFERENCE}, Table 2", tiers="3 and best")
    main = _read(tables / "main.csv")
    deep = main[(main["exit"] == 12) & main["arm"].isin(_SETTINGS)].rename(columns={"error": "percent"})
    ours = deep.assign(setting=deep["arm"].map(_SETTINGS), metric="error", source=f"{OURS}, exit 12", tiers="3, 6, 9, 12")
    columns = ["source", "task", "metric", "setting", "tiers", "percent", "low", "high", "seeds"]
    rows = pd.concat([theirs, ours], ignore_index=True)
    return rows[columns].astype({"seeds": "Int64"})


def _memory(tables: Path) -> pd.DataFrame:
    """Return Table 3: memory by depth in MiB, and the saving of depth 3 in percent; ours by the memory model."""
    theirs = published(3).rename(columns={"memory_mb": "MiB"}).assign(source=f"{REFERENCE}, Table 3", what="as published")
    held = _read(tables / "memory.csv")
    held = held[held["geometry"] == held["geometry"].iloc[0]]
    ours = [
        held.assign(source=f"{OURS}, model", what=kind, MiB=held[kind], task=_clips(held)) for kind in ("forward", "training")
    ]
    rows = pd.concat([theirs, *ours], ignore_index=True)
    wide = rows.pivot_table(index=["source", "task", "what"], columns="depth", values="MiB", sort=False)
    wide["saved at depth 3, %"] = 100 * (1 - wide[3] / wide[12])
    return wide.rename(columns=lambda name: f"depth {name}" if isinstance(name, int) else name).reset_index()


def _clips(held: pd.DataFrame) -> pd.Series:
    return held["geometry"] + ", clips of " + held["clip_seconds"].map("{:g}".format) + " s"
