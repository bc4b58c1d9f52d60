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
    """Return Table 1: error in percent by setting and depth. In our rows all clients stop at the same exit."""
    theirs = published(1).assign(source=f"{REFERENCE}, Table 1", seeds="not given")
    main = _read(tables / "main.csv").rename(columns={"error": "value"})
    arms = main["arm"].str.extract(r"^(?P<setting>everyone|central) at (?P<depth>\d+)$")
    ours = main.assign(
        source=OURS, metric="error", setting=arms["setting"].map({"everyone": "federated", "central": "centralised"})
    )
    ours = ours[arms["depth"] == ours["exit"].astype(str)].rename(columns={"exit": "depth"})
    rows = pd.concat([theirs, ours.astype({"seeds": str})], ignore_index=True)
    index = ["source", "task", "metric", "setting", "seeds"]
    wide = rows.pivot_table(index=index, columns="depth", values="value", sort=False)
    return wide[sorted(wide)].rename(columns="exit {}".format).rename_axis(columns=None).reset_index()


def _by_setting(tables: Path) -> pd.DataFrame:
    """Return Table 2: error in percent at the exit of the strong clients, by setting; our fleets have four tiers."""
    theirs = published(2).rename(columns={"value": "percent"}).assign(source=f"{REFERENCE}, Table 2")
    main = _read(tables / "main.csv")
    ours = main[(main["exit"] == 12) & main["arm"].isin(_SETTINGS)].rename(columns={"error": "percent"})
    ours = ours.assign(setting=ours["arm"].map(_SETTINGS), metric="error", source=f"{OURS}, exit 12")
    rows = pd.concat([theirs, ours], ignore_index=True)
    tiers = {True: "3, 6, 9, 12", False: "3 and the best depth"}
    rows["tiers"] = rows["source"].str.startswith(OURS).map(tiers)
    rows.loc[rows["setting"] == "homogeneous", "tiers"] = "one"
    columns = ["source", "task", "metric", "setting", "tiers", "percent", "low", "high", "seeds"]
    return rows[columns].astype({"seeds": "Int64"})


def _memory(tables: Path) -> pd.DataFrame:
    """Return Table 3: memory by depth, and what depth 3 saves in percent; ours by the memory model."""
    theirs = published(3).assign(source=f"{REFERENCE}, Table 3", what="MB as published")
    held = _read(tables / "memory.csv")
    held = held[held["geometry"] == held["geometry"].iloc[0]].assign(source=f"{OURS}, memory model", task=_clips)
    ours = [held.assign(what=f"MiB, {kind}", memory_mb=held[kind]) for kind in ("forward", "training")]
    rows = pd.concat([theirs, *ours], ignore_index=True)
    wide = rows.pivot_table(index=["source", "task", "what"], columns="depth", values="memory_mb", sort=False)
    saved = 100 * (1 - wide[3] / wide[12])
    wide = wide.rename(columns="depth {}".format).rename_axis(columns=None)
    return wide.assign(**{"saved at depth 3, %": saved}).reset_index()


def _clips(held: pd.DataFrame) -> pd.Series:
    return held["geometry"] + ", clips of " + held["clip_seconds"].map("{:g}".format) + " s"
