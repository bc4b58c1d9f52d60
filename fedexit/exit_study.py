"""What early exit saves, at what cost: a model per task with the loss at all exits, its errors, work and time.

The paper (sec. 2.1) says that inference may stop early, and measures nothing of it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedexit.audio import one_thread
from fedexit.backbone import load_backbone
from fedexit.central import Recipe, fine_tune
from fedexit.clients import collate
from fedexit.ctc_start import set_heads
from fedexit.early_exit import run, scored, taken
from fedexit.exits import MultiExitModel
from fedexit.frozen import freezer
from fedexit.metrics import majority_error
from fedexit.statistics import Pairs
from fedexit.streams import numpy_stream
from fedexit.tasks import Clips, Task


def train_and_score(
    task: Task, backbone: str, exits: Sequence[int], recipe: Recipe, seconds: float, limit: int | None, seed: int,
    folder: Path,
) -> pd.DataFrame:  # fmt: skip
    """Fine-tune one model with the loss at all `exits`, write it to `folder`, and score its dev and test clips.

    The table of `scored` with `task`, `seed`, `split`, `clip`, its id, and `guess`: the error of always giving the most
    frequent label, or of saying nothing. A run that was stopped goes on after its last whole epoch.
    """
    parts = {split: held(task, split, seconds, limit) for split in ("train", "dev", "test")}
    model = MultiExitModel(load_backbone(backbone, seed), task.labels, exits, seed, task.head)
    features = {split: freezer(clips, model.backbone)(clips) for split, clips in parts.items()}
    train = features["train"]
    set_heads(model, backbone, [train[index] for index in range(min(200, len(train)))])
    fine_tune(model, train, exits, recipe, seed, folder / "checkpoint.safetensors")
    model.save_pretrained(folder)
    tables = []
    for split in ("dev", "test"):
        clips = parts[split]
        table = scored(model, features[split], [len(clip) for clip, _ in clips])
        guess = majority_error(clips.targets) if task.head == "pooled" else 1.0
        tables.append(table.assign(split=split, clip=[clips.ids[item] for item in table["item"]], guess=guess))
    return pd.concat(tables, ignore_index=True).assign(task=task.name, seed=seed)


def held(task: Task, split: str, seconds: float, limit: int | None) -> Clips:
    """Clips of a `split` of `task`, cut after `seconds`; no more than `limit` of them, drawn."""
    rows = task.rows.query("split == @split")
    drawn = sorted(numpy_stream("early exit", task.name, split).permutation(len(rows))[:limit])
    return Clips(task.corpus, rows.iloc[drawn], seconds)


def totals(rows: pd.DataFrame) -> dict[str, float]:
    """What `rows` of `taken`, of one model or several, come to, against always running to the deepest exit.

    `error`; `extra`, by how much it is higher; the shares of multiply-accumulates `saved`, and `saved_layers`, without
    the convolutions, which every exit needs.
    """
    layers, deepest_layers = (rows[name] - rows["convolutions"] for name in ("macs", "deepest_macs"))
    return {
        "error": rows["errors"].sum() / rows["n"].sum(),
        "extra": (rows["errors"].sum() - rows["deepest_errors"].sum()) / rows["n"].sum(),
        "saved": 1 - rows["macs"].sum() / rows["deepest_macs"].sum(),
        "saved_layers": 1 - layers.sum() / deepest_layers.sum(),
    }


def against_deepest(rows: pd.DataFrame) -> Pairs:
    """`rows` of `taken` (`seed, clip` and counts) beside the deepest exit's, for an interval of `totals`' `extra`."""
    counts = rows.assign(more=rows["errors"] - rows["deepest_errors"]).set_index(["seed", "clip"])[["more", "n"]]
    wide = counts.unstack("clip", fill_value=0)
    return Pairs(wide["more"].to_numpy(float), wide["n"].to_numpy(float))


def totals_by(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """`totals` of each group of `rows` with the same `keys`, in their order."""
    groups = rows.groupby(list(keys), sort=False)
    return pd.DataFrame([dict(zip(keys, key, strict=True)) | totals(own) for key, own in groups])


def sweep(table: pd.DataFrame, rule: str, steps: int = 12) -> pd.DataFrame:
    """What `rule` gives at thresholds from lax to strict, spread evenly over its values.

    Columns `step` and the sums `errors, n, macs, clips`.
    """
    values = table.loc[table["exit"] < table["exit"].max(), rule].replace(-math.inf, math.nan)
    rows = []
    for step, threshold in enumerate([*values.quantile(np.linspace(0, 1, steps)), math.inf]):
        stopped = taken(table, rule, threshold)
        rows.append((step, stopped["errors"].sum(), stopped["n"].sum(), stopped["macs"].sum(), len(stopped)))
    return pd.DataFrame(rows, columns=["step", "errors", "n", "macs", "clips"])


@torch.no_grad()
def latencies(
    model: MultiExitModel, clips: Sequence[Tensor], thresholds: Mapping[str, float], repetitions: int
) -> pd.DataFrame:
    """Seconds of each clip (T,) on its own, on one thread, by each way to run it: `item, way, exit, seconds`.

    A way is `exit 3` (always to there, asking its head alone), and so on, or one of the rules in `thresholds`. They
    take turns, so that a slow moment of the machine hits all; after one turn to warm up, the median counts.
    """
    rows = []
    with one_thread():
        for item, clip in enumerate(clips):
            ways = {f"exit {exit}": partial(_run_to, model, clip, exit) for exit in model.exits}
            ways |= {rule: partial(run, model, clip, rule, threshold) for rule, threshold in thresholds.items()}
            exits = [way()[0] for way in ways.values()]
            turns = [[_seconds(way) for way in ways.values()] for _ in range(repetitions)]
            rows += zip([item] * len(ways), ways, exits, np.median(turns, axis=0), strict=True)
    return pd.DataFrame(rows, columns=["item", "way", "exit", "seconds"])


def _run_to(model: MultiExitModel, clip: Tensor, exit: int) -> tuple[int, Tensor]:
    waveforms, lengths, _ = collate([(clip, 0)])
    return exit, model(waveforms, lengths, [exit])[exit]


def _seconds(function: Callable) -> float:
    since = time.perf_counter()
    function()
    return time.perf_counter() - since
