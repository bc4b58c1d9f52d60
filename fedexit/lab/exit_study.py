"""Measure what early exit saves and what it costs: one model per task with the loss at all exits.

The paper (sec. 2.1) says that inference may stop early, but does not measure it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedexit.central.ctc_start import set_heads
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.data.batches import Example, collate
from fedexit.data.tasks.contract import Clips, Task, majority_error
from fedexit.lab.layouts import ROWS
from fedexit.model.backbone import load_backbone
from fedexit.model.costs import clip_macs
from fedexit.model.early_exit import RULES, run
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import freezer
from fedexit.model.metrics import answers, forward, item_errors
from fedexit.support.processes import one_thread
from fedexit.support.streams import numpy_stream


class Stopped(NamedTuple):
    """The places at which clips stop by a rule.

    rows: rows of `taken`.
    threshold: the threshold of the rule.
    """

    rows: pd.DataFrame
    threshold: float


def train_and_score(
    task: Task, backbone: str, exits: Sequence[int], recipe: Recipe, seconds: float, limit: int | None, seed: int,
    folder: Path,
) -> pd.DataFrame:  # fmt: skip
    """Fine-tune one model with the loss at all `exits`, write it to `folder`, and score its dev and test clips.

    An interrupted run resumes after its last whole epoch.

    Args:
        task: the task.
        backbone: name of the backbone.
        exits: exits of the model.
        recipe: how to train.
        seconds: clips are cut after this many seconds.
        limit: largest number of clips of each split; None takes all.
        seed: draws heads and batches.
        folder: folder of the checkpoint and the model.

    Returns:
        The table of `scored` with `task`, `seed`, `split`, `clip` (its id) and `guess`: the error rate of the most
        frequent label, or of an empty transcript.
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
    """Return the clips of a `split` of `task`, cut after `seconds`; at most `limit` of them, drawn at random."""
    rows = task.rows.query("split == @split")
    drawn = sorted(numpy_stream("early exit", task.name, split).permutation(len(rows))[:limit])
    return Clips(task.corpus, rows.iloc[drawn], seconds)


def totals(rows: pd.DataFrame) -> dict[str, float]:
    """Summarise `rows` of `taken`, of one model or several, against always running to the deepest exit.

    Returns:
        `error`, the error rate; `extra`, how much higher it is than that of the deepest exit; `saved`, the share of
        multiply-accumulates that is saved; `saved_layers`, the same without the convolutions, which every exit needs.
    """
    layers, deepest_layers = (rows[name] - rows["convolutions"] for name in ("macs", "deepest_macs"))
    return {
        "error": rows["errors"].sum() / rows["n"].sum(),
        "extra": (rows["errors"].sum() - rows["deepest_errors"].sum()) / rows["n"].sum(),
        "saved": 1 - rows["macs"].sum() / rows["deepest_macs"].sum(),
        "saved_layers": 1 - layers.sum() / deepest_layers.sum(),
    }


def by_way(many: pd.DataFrame, alone: pd.DataFrame, stopped: Mapping[str, Stopped]) -> pd.DataFrame:
    """Return errors and work of each way to use two models: `totals`, `macs` per clip and `way`.

    Here `saved` is against the way that takes most work.

    Args:
        many: clips of the model with several exits (`scored`): the ways `fixed`, one per exit, and `oracle`.
        alone: clips of a model with one exit: the way `dedicated`.
        stopped: for each rule where the clips of `many` stop (`at_work`).
    """
    ways = [(FIXED, taken(many, FIXED, exit)) for exit in sorted(many["exit"].unique())]
    ways.append(("dedicated", taken(alone, FIXED, alone["exit"].max())))
    ways += [*((rule, own.rows) for rule, own in stopped.items()), ("oracle", oracle(many))]
    table = pd.DataFrame([totals(rows) | {"macs": rows["macs"].mean()} for _, rows in ways])
    return table.assign(way=[way for way, _ in ways], saved=1 - table["macs"] / table["macs"].max())


def swept_rules(many: pd.DataFrame) -> pd.DataFrame:
    """Return `sweep` of all rules, with `error`, `macs` per clip, and the rule as `way`."""
    curves = [sweep(many, rule).assign(way=rule) for rule in RULES]
    table = pd.concat(curves, ignore_index=True)
    return table.assign(error=table["errors"] / table["n"], macs=table["macs"] / table["clips"])


def at_equal_error(dev: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return `totals` on test of each rule that makes no more errors on dev than the deepest exit: `rule, threshold`.

    The last rule is `fixed`: the shallowest exit for all clips. `dev` and `test` are tables of `scored`.
    """
    limits: dict[str, float] = {rule: threshold_for(dev, rule, 0) for rule in RULES}
    limits[FIXED] = fixed_exit_for(dev, 0)
    rows = [{"rule": rule, "threshold": limit} | totals(taken(test, rule, limit)) for rule, limit in limits.items()]
    return pd.DataFrame(rows)


def stop_shares(stopped: Mapping[str, Stopped], exits: Sequence[int]) -> pd.DataFrame:
    """Return the share of clips that stop at each exit: `rule` and the columns `exit 3` and so on.

    Args:
        stopped: for each name of a rule where clips stop (`at_work`).
        exits: the exits of the model.
    """
    shares = {
        rule: own.rows["exit"].value_counts(normalize=True).reindex(exits, fill_value=0)
        for rule, own in stopped.items()
    }
    wide = pd.DataFrame(shares).T
    wide.columns = [f"exit {exit}" for exit in exits]
    return wide.rename_axis("rule").reset_index()


def sweep(table: pd.DataFrame, rule: str, steps: int = 12) -> pd.DataFrame:
    """Return the results of `rule` at thresholds from lax to strict, spread evenly over its values.

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
    """Measure the seconds of each clip (T,) alone, on one thread, for each way to run it.

    Args:
        model: the model.
        clips: waveforms (T,) at 16 kHz.
        thresholds: threshold of each rule.
        repetitions: number of turns. The ways take turns, so that a slow moment of the machine affects all of them.
            After one turn to warm up, the median counts.

    Returns:
        Columns `item, way, exit, seconds`. A way is a rule, or `exit 3` (always to exit 3, with its head alone).
    """
    rows: list[tuple] = []
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


FIXED = "fixed"  # all clips stop at one exit, which is set before run time


def scored(model: MultiExitModel, data: Sequence[Example], samples: Sequence[int]) -> pd.DataFrame:
    """Return the errors of every exit on every clip, and their costs: one row per clip and exit, sorted.

    Args:
        model: the model.
        data: the clips.
        samples: length of each clip in samples at 16 kHz.

    Returns:
        Columns `item, exit`; `errors` out of `n` labels or characters (`metric`); one column of confidence per rule of
        `RULES`; and multiply-accumulates. Of these, `convolutions` are the frozen convolutions, `macs_alone` all work
        if only this exit's head runs, and `macs_early` all work if the heads of shallower exits run as well.
    """
    predicted, sure = [], []
    for group, outputs, targets in forward(model, data):
        seen = []
        for depth, logits in outputs.items():
            seen.append(logits)
            pairs = answers(logits, targets, model.labels, kind=model.targets)
            predicted += [(item, depth, *pair) for item, pair in zip(group, pairs, strict=True)]
            rules = {name: rule(seen, model.labels).tolist() for name, rule in RULES.items()}
            sure.append(pd.DataFrame({"item": group, "exit": depth, **rules}))
    errors = item_errors(pd.DataFrame(predicted, columns=["item", "exit", "predicted", "label"])).query(
        "metric != 'WER'"
    )
    where = ["item", "exit"]
    return errors.merge(pd.concat(sure), on=where).merge(_work(model, samples), on=where).sort_values(where)


def _work(model: MultiExitModel, samples: Sequence[int]) -> pd.DataFrame:
    rows = []
    for item, length in enumerate(samples):
        heads = 0
        for depth in model.exits:
            bare = clip_macs(model.backbone, length, depth)
            asked = clip_macs(model.backbone, length, depth, model.head_at(depth)).trained
            heads += asked - bare.trained
            rows.append((item, depth, bare.frozen, bare.frozen + asked, bare.frozen + bare.trained + heads))
    return pd.DataFrame(rows, columns=["item", "exit", "convolutions", "macs_alone", "macs_early"])


def stops(sure: np.ndarray, threshold: float) -> np.ndarray:
    """Return the position (N,) of the first exit that is at least `threshold` confident (N, exits), else the last."""
    enough = sure >= threshold
    enough[:, -1] = True
    return enough.argmax(1)


def threshold_for(dev: pd.DataFrame, rule: str, points: float) -> float:
    """Return the threshold for `rule` that makes at most `points` (of 100) more errors on `dev` than the deepest exit.

    The search goes from the strictest threshold, which saves least, to laxer ones, and ends at the first that costs
    more. The laxest that happens to look good on dev would be too optimistic (fixed-sequence testing: Angelopoulos et
    al. 2021, "Learn then test"). The result is inf if only the deepest exit is good enough. `dev` is a table of
    `scored`.
    """
    sure, errors = _by_exit(dev, rule), _by_exit(dev, "errors")
    allowed = errors[:, -1].sum() + points / 100 * _by_exit(dev, "n")[:, 0].sum()
    early, clips, found = sure[:, :-1], np.arange(len(errors)), math.inf
    for threshold in np.unique(early[np.isfinite(early)])[::-1]:
        if errors[clips, stops(sure, threshold)].sum() > allowed:
            break
        found = float(threshold)
    return found


def threshold_at_work(dev: pd.DataFrame, rule: str, macs: float) -> float:
    """Return the strictest threshold for `rule` whose mean work per clip on `dev` is at most `macs`.

    The result is -inf, so that every clip stops at the first exit, if any other threshold takes more work. `dev` is a
    table of `scored`.
    """
    sure, work = _by_exit(dev, rule), _by_exit(dev, "macs_early")
    clips, found = np.arange(len(work)), -math.inf
    for threshold in [*np.unique(sure[np.isfinite(sure)]), math.inf]:
        if work[clips, stops(sure, threshold)].mean() > macs:
            break
        found = float(threshold)
    return found


def at_work(dev: pd.DataFrame, test: pd.DataFrame, macs: float) -> dict[str, Stopped]:
    """Return for each rule where the clips of `test` stop at the threshold for `macs` on dev (`threshold_at_work`)."""
    limits = {rule: threshold_at_work(dev, rule, macs) for rule in RULES}
    return {rule: Stopped(taken(test, rule, limit), limit) for rule, limit in limits.items()}


def as_arm(rows: pd.DataFrame, arm: str, exit: int, clips: pd.DataFrame) -> pd.DataFrame:
    """Return rows of `taken` as test rows of the arm `arm` at `exit`, like those of `reports.test_rows`.

    `clips` are the rows of the task, with the `group` of each `id`; the group becomes the cluster.
    """
    groups = clips.set_index("id")["group"]
    owned = rows.assign(arm=arm, exit=exit, cluster=rows["clip"].map(groups), item=rows["clip"])
    return owned[["task", "exit", *ROWS]]


def fixed_exit_for(dev: pd.DataFrame, points: float) -> int:
    """Return the shallowest exit that makes at most `points` (of 100) more errors on `dev` than the deepest."""
    sums = dev.groupby("exit")[["errors", "n"]].sum()
    return int(sums.index[sums["errors"] <= sums["errors"].iloc[-1] + points / 100 * sums["n"]][0])


def taken(table: pd.DataFrame, rule: str, threshold: float) -> pd.DataFrame:
    """Return the row of `scored` at which each clip stops.

    Adds `macs`, the work of the clip, and `deepest_errors` and `deepest_macs` for always running to the deepest exit.
    """
    return _taken(table, stops(_by_exit(table, rule), threshold), "macs_alone" if rule == FIXED else "macs_early")


def oracle(table: pd.DataFrame) -> pd.DataFrame:
    """Return the upper bound that uses the true errors: a clip stops at its shallowest best exit, with one head."""
    return _taken(table, _by_exit(table, "errors").argmin(1), "macs_alone")


def _taken(table: pd.DataFrame, stop: np.ndarray, work: str) -> pd.DataFrame:
    clips, exits = np.arange(len(stop)), table["exit"].nunique()
    deepest = table.iloc[clips * exits + exits - 1]
    return table.iloc[clips * exits + stop].assign(
        macs=lambda rows: rows[work],
        deepest_errors=deepest["errors"].to_numpy(),
        deepest_macs=deepest["macs_alone"].to_numpy(),
    )


def _by_exit(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column of `scored` as (clips, exits). For the rule `fixed` the depth of an exit is its confidence."""
    return table["exit" if column == FIXED else column].to_numpy().reshape(-1, table["exit"].nunique())
