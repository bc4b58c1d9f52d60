"""Set up the tables of the paper on its corpora, with its rounds, partitions, exits and tiers (profile `paper`).

The paper states the tasks, their corpora, the partitions, the rounds, the exits and the two tiers. All else is open.
Our choice for each open point is in `OPEN_CHOICES`, and its number in `ROWS` or `setting_of_row`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fedexit.central.fine_tuning import Recipe
from fedexit.data.places import place_of
from fedexit.federated.clients import LocalTraining
from fedexit.lab.cells import Measured
from fedexit.lab.grid import run_grids
from fedexit.lab.inference import error_rates
from fedexit.lab.layouts import ROWS as COUNTS
from fedexit.lab.paper import published
from fedexit.lab.paper_sizes import BASES
from fedexit.lab.setting import (
    CENTRAL,
    HOMOGENEOUS,
    Cell,
    DataPart,
    FederationPart,
    ModelPart,
    Setting,
    StudyPart,
)
from fedexit.model.backbone import PRESETS, load_backbone
from fedexit.runner.manifest import load_manifest, select
from fedexit.support.errors import FedexitError
from fedexit.support.paths import project_root
from fedexit.support.placement import Device

NOTEBOOK = "20_paper_tables"
EXITS, SHALLOW = (3, 6, 9, 12), 3
Grids = Mapping[str, tuple[list[Cell], Setting]]  # the models of each row, and the setting that they share
HETEROGENEOUS = {  # method: its name in Table 2; the paper has no row for the masked reading of FedAvg
    "stale": "heterogeneous FedAvg",
    "masked": "heterogeneous FedAvg, masked",
    "layerwise": "heterogeneous layer-wise",
}


@dataclass(frozen=True)
class Row:
    """One task of the paper's tables.

    task: name in `fedexit.data.tasks.TASKS`.
    corpus: the paper's corpus.
    partition: how clips are divided among clients, from the paper.
    rounds: rounds of a federation, from the paper.
    best: depth of the high-resource clients in Table 2, from the paper.
    seconds: clips are cut to this length.
    fraction: share of the clients per round.
    batch_size: clips per update.
    head_rate: learning rate of the heads.
    head: head in place of the task's own.
    """

    task: str
    corpus: str
    partition: str
    rounds: int
    best: int
    seconds: float
    fraction: float
    batch_size: int
    head_rate: float = 1e-2
    head: str = ""


ROWS = {
    "KWS-12": Row("kws12", "speech_commands", "group", 1000, 6, 1.0, 0.012, 16),
    "KWS-35": Row("kws35", "speech_commands", "group", 1000, 6, 1.0, 0.012, 16),
    "ASR": Row("transcription", "librispeech", "group", 100, 9, 36.0, 0.1, 4, 1e-3, "ctc-bilstm"),
    "ER": Row("er", "iemocap", "group", 50, 9, 10.0, 0.5, 8),
    "SID": Row("sid", "voxceleb1", "iid", 200, 9, 8.0, 0.02, 8),
}
OPEN_CHOICES = {
    "what FedAvg does with layers that a client never trained": "both readings are run: `stale` and `masked`",
    "heads": "one per exit, averaged over the clients that trained it",
    "local loss": "at the exit L_i only, as in the paper",
    "depth exponent g": "1, as in the paper",
    "parts outside the layers": "convolutions frozen; projection and positions averaged over all sampled clients",
    "a layer that no sampled client trained": "keeps its weights",
    "exit that is evaluated": "that of the high-resource clients, as the paper's column; exit 3 beside it",
    "which exit is best": "the paper's: 6 for KWS, 9 for ASR, ER and SID",
    "initialisation": "facebook/wav2vec2-base; HuBERT and WavLM base by the parameter `backbone`",
    "clients": "one per training speaker; SID: as many and as large as the speakers, with shuffled clips",
    "fraction of the clients per round": "about 25 clients: 1.2 % of KWS, 10 % of ASR, 2 % of SID; half of ER",
    "local epochs (1 to 3 in the paper)": "1",
    "optimiser and learning rate": "Adam, 1e-4 for the backbone; heads 1e-2, of ASR 1e-3; constant over the rounds",
    "batch size": "16 clips of KWS, 8 of ER and SID, 4 of ASR",
    "length of clips": "cut after 1 s (KWS), 36 s (ASR, which cuts nothing), 10 s (ER), 8 s (SID)",
    "sequence module and decoder of ASR": "a bidirectional LSTM as wide as the backbone; greedy decoding",
    "passes of central training": "as many as those of the federation: rounds x fraction x local epochs, at least 1",
    "unknown words of KWS-12": "as many per split as a command has clips on average",
    "training part of LibriSpeech": "all clips whose split is train in the manifest",
    "folds of IEMOCAP": "the split of the manifest, the same for all seeds",
    "seeds (none in the paper)": "5, the fewest for which our rule of inference gives verdicts",
}


def setting_of_row(row: Row, backbone: str, corpus: str = "", **changes: object) -> Setting:
    """Return the setting that all models of a row share, so that Tables 1 and 2 share the models that both need.

    Args:
        row: one of `ROWS`.
        backbone: the start of training.
        corpus: name or folder in place of the paper's corpus.
        changes: fields of `Row` with other values, such as `rounds=1` to try a table.
    """
    row = replace(row, **changes)  # type: ignore[arg-type]
    training = LocalTraining(batch_size=row.batch_size, learning_rate=1e-4, head_learning_rate=row.head_rate)
    central = Recipe(
        epochs=max(1, round(row.rounds * row.fraction * training.epochs)),
        batch_size=row.batch_size,
        learning_rate=training.learning_rate,
        head_learning_rate=row.head_rate,
        weight_decay=0.0,
        label_smoothing=0.0,
        crop=None,
    )
    return Setting(
        DataPart(corpus or row.corpus, row.seconds, min_clips=1),
        FederationPart(row.rounds, row.partition, row.fraction, training, evaluations=10),
        ModelPart(backbone, (SHALLOW, row.best), head=row.head),
        StudyPart(central, dev_clips=1000, evaluations=10),
    )


def cells_of_row(row: Row, table: int, seeds: Sequence[int]) -> list[Cell]:
    """Return the models of one row of Table 1 or 2. The homogeneous models of Table 2 are among those of Table 1."""
    if table == 1:
        arms = [(method, depth) for method in (CENTRAL, HOMOGENEOUS) for depth in EXITS]
    else:
        arms = [(HOMOGENEOUS, row.best), *((method, 0) for method in HETEROGENEOUS)]
    return [Cell(row.task, method, seed, depth) for method, depth in arms for seed in seeds]


def grids_of(
    rows: Sequence[str], tables: Sequence[int], seeds: Sequence[int], backbone: str, corpora: Sequence[str], rounds: int
) -> Grids:
    """Return the models of the tables by row, each once, with the setting of the row.

    Args:
        rows: names of `ROWS`.
        tables: 1, 2 or both.
        seeds: seeds of the models.
        backbone: the start of training.
        corpora: name or folder of the corpus of each row; empty for the paper's.
        rounds: rounds of a federation; 0 for the paper's.

    Raises:
        FedexitError: an unknown row or table, no seeds, or another number of corpora than of rows.
    """
    if unknown := [name for name in rows if name not in ROWS]:
        raise FedexitError(f"unknown row {unknown[0]!r} of the paper's tables; known: {', '.join(ROWS)}")
    if not rows or not tables or set(tables) - {1, 2} or not seeds:
        raise FedexitError(
            f"rows, tables and seeds are {list(rows)}, {list(tables)} and {list(seeds)}; give at least one of each, "
            "and tables 1 or 2 (Table 3 needs no training)"
        )
    if corpora and len(corpora) != len(rows):
        raise FedexitError(f"there are {len(corpora)} corpora for {len(rows)} rows; give one per row, or none")
    changes = {"rounds": rounds} if rounds else {}
    grids: dict[str, tuple[list[Cell], Setting]] = {}
    for name, corpus in zip(rows, corpora or [""] * len(rows), strict=True):
        row = ROWS[name]
        every = [cell for table in tables for cell in cells_of_row(row, table, seeds)]
        grids[name] = list(dict.fromkeys(every)), setting_of_row(row, backbone, corpus, **changes)
    return grids


def grids_in(profile: str, notebooks: list[str], overrides: Mapping[str, object]) -> tuple[Grids, list[int]]:
    """Return the models and the tables that `NOTEBOOK` has in a profile of nbs_ci.yml.

    Args:
        profile: name of the profile.
        notebooks: notebooks that are to run; empty for all.
        overrides: parameters with other values.

    Returns:
        As `grids_of`, and the numbers of the tables. Both are empty if `NOTEBOOK` is not to run.

    Raises:
        FedexitError: as `select` and `grids_of`; a parameter has an unknown name.
    """
    chosen = [one for one in select(load_manifest(project_root()), profile, notebooks) if one.id == NOTEBOOK]
    if not chosen:
        return {}, []
    given = chosen[0].profiles[profile].parameters
    if unknown := sorted(set(overrides) - set(given)):
        raise FedexitError(f"{NOTEBOOK}: unknown parameter {unknown[0]}; its parameters: {', '.join(sorted(given))}")
    how = ("workers", "device", "tflops")
    given = {name: value for name, value in {**given, **overrides}.items() if name not in how}
    grids = grids_of(**given)  # type: ignore[arg-type]
    return grids, given["tables"]  # type: ignore[return-value]


def check_ready(grids: Grids) -> None:
    """Raise FedexitError that says how to get the first corpus or backbone that is missing. Nothing is computed."""
    for name, (_, setting) in grids.items():
        try:
            place_of(setting.data.corpus)
        except FedexitError as error:
            raise FedexitError(f"row {name} of the paper's tables: {error} (more in data/README.md)") from None
    for backbone in {setting.model.backbone for _, setting in grids.values()} - set(PRESETS):
        try:
            load_backbone(backbone)
        except FedexitError as error:
            if backbone not in BASES:
                raise
            raise FedexitError(
                f"backbone {backbone} is not in the cache of this machine and cannot be downloaded; run `hf download "
                f"{backbone}` where there is a network, or copy its folder here and give it: -p backbone=FOLDER"
            ) from error


def measure(grids: Grids, state: Path, workers: int = 1, device: Device = "cpu") -> dict[str, Measured]:
    """Train the models of the rows, or resume, and return their tables by row.

    Args:
        grids: from `grids_of`.
        state: folder of the models in the making.
        workers: processes; they change no result.
        device: where the models are trained: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        FedexitError: as `check_ready`, before the first model, and as `run_grids`.
    """
    check_ready(grids)
    return dict(run_grids(dict(grids), state, workers, device=device))  # type: ignore[arg-type]


def beside_paper(found: Mapping[str, Measured], grids: Grids, table: int) -> pd.DataFrame:
    """Return our numbers beside those of Table 1 or 2, in percent.

    Args:
        found: from `measure`.
        grids: what was measured.
        table: 1 or 2.

    Returns:
        Columns `task, metric, setting, depth, ours, low, high, seeds, paper`. `depth` is the exit that answers. `low`
        and `high` limit the 95 % interval of `ours`; EER, one seed and one speaker have none. `paper` is empty where
        the paper has no number: exit 3 of mixed depths, and the masked reading of FedAvg.
    """
    parts = []
    for name, measured in found.items():
        best = grids[name][1].model.depths[-1]
        wanted = {(cell.method, cell.depth) for cell in cells_of_row(replace(ROWS[name], best=best), table, [0])}
        rates = pd.concat([_rates(name, measured), _equal_error_rates(measured)], ignore_index=True)
        keep = [(row.method, 0 if row.method in HETEROGENEOUS else row.exit) in wanted for row in rates.itertuples()]
        parts.append(rates[keep])
    ours = pd.concat(parts, ignore_index=True)
    names = {CENTRAL: "centralised", HOMOGENEOUS: "federated" if table == 1 else "homogeneous", **HETEROGENEOUS}
    ours = ours.assign(setting=ours["method"].map(names)).rename(columns={"exit": "depth", "error": "ours"})
    theirs = published(table).rename(columns={"value": "paper"})
    if table == 2:  # its column is the exit of the high-resource clients
        theirs = theirs.assign(depth=theirs["task"].map(_best_exits()))
    both = ours.merge(theirs[["task", "setting", "depth", "paper"]], how="left", on=["task", "setting", "depth"])
    return both[["task", "metric", "setting", "depth", "ours", "low", "high", "seeds", "paper"]]


def _best_exits() -> dict[str, int]:
    """Return the exit of each task in Table 2, by the paper's name of the task."""
    known = {name: row.best for name, row in ROWS.items()}
    return known | {"ASR-clean": known["ASR"], "ASR-other": known["ASR"], "ASV": known["SID"]}


def _rates(name: str, measured: Measured) -> pd.DataFrame:
    """Return the error rate on test of each method and exit of a row; texts count words in each part of LibriSpeech."""
    items = measured.items.query("split == 'test' and metric in ('error', 'WER')")
    items = items.drop(columns="item").rename(columns={"clip": "item"}).assign(task=name)
    if name == "ASR":  # the id of a clip begins with its part, such as test-other
        other = items["item"].str.contains("-other/", regex=False)
        items["task"] = other.map({True: "ASR-other", False: "ASR-clean"})
    by = ["task", "metric", "exit"]
    rows = items.assign(arm=items["method"])[[*by, *COUNTS]]
    alone = rows.groupby([*by, "arm"])["cluster"].transform("nunique") < 2
    rates = [error_rates(rows[~alone], by)] if not alone.all() else []
    if alone.any():  # one speaker gives no interval
        one = rows[alone].groupby([*by, "arm"], sort=False)
        sums = one[["errors", "n"]].sum().assign(seeds=one["seed"].nunique()).reset_index()
        rates.append(sums.assign(error=100 * sums["errors"] / sums["n"]))
    return pd.concat(rates, ignore_index=True).rename(columns={"arm": "method"})


def _equal_error_rates(measured: Measured) -> pd.DataFrame:
    """Return the mean EER over seeds of each method and exit, as task ASV; no rows without a trial list."""
    trials = measured.errors.query("split == 'trials' and metric == 'EER'")
    rates = trials.groupby(["method", "exit"], sort=False)["value"].agg(["mean", "size"]).reset_index()
    return rates.assign(task="ASV", metric="EER", error=100 * rates.pop("mean"), seeds=rates.pop("size"))
