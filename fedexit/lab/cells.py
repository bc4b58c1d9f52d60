"""Run one cell: train one model and measure its errors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch.utils.data import ConcatDataset

from fedexit.central.ctc_start import set_heads
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.data.batches import Example, collate
from fedexit.data.corpora import open_corpus
from fedexit.data.tasks.asr import played
from fedexit.data.tasks.contract import Clips, Task
from fedexit.data.text import spell
from fedexit.data.trials import trials_of
from fedexit.devices.policy import depths_of_round
from fedexit.devices.profiles import profiles
from fedexit.federated.clients import Client
from fedexit.federated.local_heads import Heads
from fedexit.federated.methods import find_method
from fedexit.federated.partition import device_of, make_clients, tier_of
from fedexit.federated.rounds import CURVE, Federation, drop_outs, evaluated, federate
from fedexit.lab import beam
from fedexit.lab.checks import check_cell, warn
from fedexit.lab.heterofl import federate_by_width, widths_for
from fedexit.lab.material import task_of, tiers_of
from fedexit.lab.own_heads import with_own_heads
from fedexit.lab.setting import CENTRAL, HOMOGENEOUS, YARDSTICKS, Cell, Setting
from fedexit.lab.spots import Spots, again, side_table
from fedexit.lab.verification import verify
from fedexit.lab.yardsticks import predicted_without_backbone
from fedexit.model.backbone import Backbone, load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import freezer
from fedexit.model.lora import with_lora
from fedexit.model.metrics import all_rates, error_rates, item_errors, predict
from fedexit.support.files import read_checked, write_checked
from fedexit.support.placement import Device, find_device
from fedexit.support.streams import numpy_stream

COLUMNS = ["method", "task", "seed", "round", "tier", "exit", "split", "metric", "value", "n"]
ITEMS = ["method", "task", "seed", "split", "exit", "item", "clip", "cluster", "tier", "metric", "errors", "n"]


class Measured(NamedTuple):
    """The results of cells, as tidy tables.

    errors: columns `COLUMNS`. They hold the error of every trained exit on dev during training (tier `all`) and on test
        after it, for all clips and for the devices of each tier. Where the task has held-out clips of the clients' own
        voices, these give the split `known`, before and after training. Where the corpus has a trial list, EER and
        minDCF give the split `trials`. Texts are also decoded by beam search. The exit of a yardstick is 0.
    ledger: one row per local round (`Federation.clients`); no rows for cells without clients.
    items: `split, exit, item, clip, cluster, tier, metric, errors, n` of each dev and test clip after training: `clip`
        is its id in the corpus, `cluster` its dialogue or speaker, `tier` that of the device of the cluster.
    spot: what a spot check compares: `round, weights, exit, clip, answer`, after round `SPOT_ROUND` and after the last.
        `weights` is the checksum of the trained model; the answers are those to the first `SPOT_CLIPS` dev clips. For
        `central` a round is an epoch. Yardsticks have no rows.
    """

    errors: pd.DataFrame
    ledger: pd.DataFrame
    items: pd.DataFrame
    spot: pd.DataFrame


def run_cell(
    cell: Cell, setting: Setting, state: Path, stop_after: int | None = None, device: Device = "cpu"
) -> Measured:
    """Run one cell, or resume it from its checkpoint with bit-identical results.

    Args:
        cell: the cell.
        setting: the options that it shares with the other cells of its grid.
        state: folder of its checkpoint.
        stop_after: stop after this round (or epoch) and return only the rows of `spot` until there.
        device: where the model is trained: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        FedexitError: as `check_cell`; the corpus cannot express the task; the training fails.
    """
    check_cell(cell, setting)
    task = task_of(cell, setting)
    place = find_device(device)
    warn(cell, setting, task, place)
    used = task.rows.query("split != 'public'")  # cells do not use the server's own clips
    clips = {
        split: Clips(task.corpus, used.query("split == @split"), setting.data.max_seconds)
        for split in ("train", "dev", "test", "known")
    }
    drawn = _drawn(clips["dev"], setting.study.dev_clips, task.name)
    if cell.method in YARDSTICKS:
        found = predicted_without_backbone(cell.method, {split: clips[split] for split in ("train", "dev", "test")})
        found["dev"] = found["dev"].iloc[drawn]
        return _measured(cell, task, setting, clips, found, [], pd.DataFrame(), pd.DataFrame())
    model = start(cell, setting, task, load_backbone(setting.model.backbone)).to(place)
    backbone = model.backbone  # its convolutions stay frozen; models of several widths (heterofl) have no backbone
    frozen = freezer(Clips(task.corpus, used, setting.data.max_seconds), backbone)
    parts = {split: frozen(own) for split, own in clips.items()}
    dev = [parts["dev"][place] for place in drawn]
    set_heads(model, setting.model.backbone, dev)
    before = _known_voices(model, parts, task, {}, 0)
    trained_on = _at_speeds(clips["train"], setting.data.speeds, frozen, backbone)
    spots = Spots(task.labels, dev, [clips["dev"].ids[place] for place in drawn], state / f"{cell.name}.spot.csv")
    train = _federate if cell.federated else _centralised
    result = train(cell, setting, task, model, trained_on, dev, state / f"{cell.name}.safetensors", spots, stop_after)
    if stop_after is not None:
        if cell.federated and not setting.federation.rounds:  # heads only: the first rounds are the last
            spots.last(0, result.model)
        nothing = pd.DataFrame()
        return Measured(nothing, nothing, nothing, spots.rows().assign(**_about(cell)))
    model, done = result.model, int(result.table["round"].max())
    spots.last(done, model)
    found = {"test": _predicted(model, parts, task, "test", result.heads), "dev": predict(model, dev)}
    found["dev"]["item"] = [drawn[item] for item in found["dev"]["item"]]
    after = _after(model, backbone, task, parts, found["test"], setting.data.max_seconds).assign(round=done)
    known = _known_voices(model, parts, task, result.heads, done)
    errors = [result.table.assign(split="dev"), after, before, known]
    return _measured(cell, task, setting, clips, found, errors, result.clients, spots.rows())


def _about(cell: Cell) -> dict[str, object]:
    return dict(method=cell.method, task=cell.task, seed=cell.seed)


def _measured(
    cell: Cell,
    task: Task,
    setting: Setting,
    clips: Mapping[str, Clips],
    found: Mapping[str, pd.DataFrame],
    errors: Sequence[pd.DataFrame],
    ledger: pd.DataFrame,
    spot: pd.DataFrame,
) -> Measured:
    """Return the tables of a cell, given its predictions by split and other tables of its errors.

    Without other tables the predictions give the errors, as round 0.
    """
    tiers, groups = tiers_of(task, setting, cell.seed), task.rows.set_index("id")["group"]
    parts = []
    for split, predictions in found.items():
        ids = [clips[split].ids[item] for item in predictions["item"]]
        owners = groups[ids].to_numpy()
        about = predictions[["item", "exit"]].assign(clip=ids, cluster=owners, split=split)
        about["tier"] = [tier_of(owner, tiers) for owner in owners]
        predictions = predictions.assign(tier=about["tier"])
        parts.append(item_errors(predictions).merge(about, on=["item", "exit"], sort=False))
        if not errors:
            errors = [all_rates(own, ["exit"]).assign(split=name, round=0) for name, own in found.items()]
        if split == "test":
            by_tier = all_rates(predictions, ["tier", "exit"]).assign(split=split, round=errors[0]["round"].max())
    rows = pd.concat([*errors, by_tier]).assign(**_about(cell))
    rows["tier"] = rows["tier"].fillna("all")
    items = pd.concat(parts, ignore_index=True).assign(**_about(cell))
    return Measured(rows[COLUMNS], ledger.assign(**_about(cell)), items[ITEMS], spot.assign(**_about(cell)))


def _at_speeds(train: Clips, speeds: Sequence[float], frozen: Callable, backbone: Backbone) -> Callable:
    """Return a function from some of the clips `train` to their features at every speed; `frozen` serves speed 1."""
    stores: dict[float, Callable] = {
        speed: frozen if speed == 1 else freezer(played(train, speed), backbone) for speed in speeds
    }
    return lambda clips: ConcatDataset(
        [store(clips if speed == 1 else played(clips, speed)) for speed, store in stores.items()]
    )


def _after(
    model: MultiExitModel, backbone: Backbone, task: Task, parts: Mapping, predictions: pd.DataFrame, seconds: float
) -> pd.DataFrame:
    """Return errors on all test clips, for texts also by beam search, and for voices also on the trial list."""
    rates = [all_rates(predictions).assign(split="test")]
    if task.head == "ctc" and beam.beam_search_available():
        searched = all_rates(predict(model, parts["test"], decode=beam.beam_decoder(_words(task), task.labels)))
        rates.append(searched.assign(metric=searched["metric"] + " beam", split="test"))
    if task.verification and (trials := trials_of(task.corpus)) is not None:
        ids = sorted({*trials["first"], *trials["second"]})
        clips = Clips(task.corpus, pd.DataFrame({"id": ids, "target": 0}), seconds)
        rates.append(verify(model, freezer(clips, backbone)(clips), ids, trials).assign(split="trials"))
    return pd.concat(rates)


def start(cell: Cell, setting: Setting, task: Task, backbone: Backbone) -> MultiExitModel:
    """Return the model before training: a copy of the layers of `backbone`, with one exit, or one per tier."""
    exits, shared = [cell.depth], False
    if cell.method not in (CENTRAL, HOMOGENEOUS):
        method = find_method(cell.method)
        exits, shared = method.exits(setting.model.depths), method.shared_head
    backbone = backbone.truncated(max(exits))
    if setting.model.lora:
        with_lora(backbone, setting.model.lora, seed=cell.seed)
    return MultiExitModel(backbone, task.labels, exits, head=setting.model.head or task.head, shared_head=shared)


def _predicted(
    model: MultiExitModel, parts: Mapping[str, Sequence[Example]], task: Task, split: str, heads: Heads
) -> pd.DataFrame:
    """Return the predictions of all exits for a split; clients with `heads` of their own use these for their clips."""
    predictions = predict(model, parts[split])
    if not heads:
        return predictions
    devices = task.rows.query("split == @split")["group"].map(device_of)
    return with_own_heads(model, predictions, parts[split], devices, heads)


def _known_voices(
    model: MultiExitModel, parts: Mapping[str, Sequence[Example]], task: Task, heads: Heads, number: int
) -> pd.DataFrame:
    """Return errors on held-out clips of the clients' own voices, where the task has them."""
    if not len(parts["known"]):
        return pd.DataFrame(columns=["exit"])
    return all_rates(_predicted(model, parts, task, "known", heads)).assign(split="known", round=number)


def _drawn(dev: Clips, size: int, task: str) -> list[int]:
    """Return the positions of at most `size` dev clips, the same for every cell of the task."""
    return sorted(int(index) for index in numpy_stream("dev", task).permutation(len(dev))[:size])


def _centralised(
    cell: Cell, setting: Setting, task: Task, model: MultiExitModel, trained_on: Callable, dev: list[Example],
    checkpoint: Path, spots: Spots, stop_after: int | None,
) -> Federation:  # fmt: skip
    """Fine-tune the model on the clips of all clients; its curve has epochs as rounds."""
    recipe, file = setting.study.central, checkpoint.with_suffix(".curve.csv")  # for a run that resumes later
    rows = []
    if checkpoint.is_file():
        rows = side_table(read_checked(file, again(file)), CURVE, file).to_numpy().tolist()
    due = _due(recipe.epochs, setting.study.evaluations)

    def on_epoch(number: int, trained: MultiExitModel) -> bool:
        if number in due:
            rows.extend(evaluated(trained, dev, number))
            write_checked(file, _curve(rows).to_csv(index=False))
        spots.early(number, recipe.epochs, trained)
        return number == stop_after

    train = trained_on(Clips(task.corpus, task.rows.query("split == 'train'"), setting.data.max_seconds))
    fine_tune(model, train, [cell.depth], recipe, cell.seed, checkpoint, on_epoch)
    return Federation(model, _curve(rows), pd.DataFrame())


def _curve(rows: list[list]) -> pd.DataFrame:
    """Return the curve of a central model. An epoch that a resumed run measured again counts once."""
    whole = {"round": int, "exit": int, "n": int}
    return pd.DataFrame(rows, columns=CURVE).drop_duplicates(["round", "exit", "metric"], keep="last").astype(whole)


def _due(rounds: int, evaluations: int) -> set[int]:
    """Return the rounds that are evaluated: the start, the last one, and others evenly between them."""
    every = max(1, rounds // evaluations)
    return {number for number in range(rounds + 1) if number % every == 0 or number == rounds}


def _federate(
    cell: Cell, setting: Setting, task: Task, model: MultiExitModel, trained_on: Callable, dev: list[Example],
    checkpoint: Path, spots: Spots, stop_after: int | None,
) -> Federation:  # fmt: skip
    """Train the model by the federation of the cell."""
    plan, tiers = setting.federation, tiers_of(task, setting, cell.seed)
    depths = dict.fromkeys(tiers, cell.depth) if cell.method == HOMOGENEOUS else tiers
    dealt = plan.partition, setting.data.min_clips, setting.data.max_seconds, cell.seed, plan.alpha
    clients = [replace(client, data=trained_on(client.data)) for client in make_clients(task, depths, *dealt)]

    def on_round(number: int, trained: MultiExitModel, curve: pd.DataFrame) -> bool:
        spots.early(number, plan.rounds, trained)
        return number == stop_after

    about: dict[str, Any] = {
        "rounds": plan.rounds,
        "seed": cell.seed,
        "fraction": plan.fraction,
        "training": plan.training,
        "dev": dev,
        "evaluate_every": max(1, plan.rounds // plan.evaluations),
        "regime": plan.regime,
        "on_round": on_round,
    }
    if (method := find_method(cell.method)).narrow:
        widths = widths_for(setting.model.depths, model.backbone)
        return federate_by_width(model, clients, widths, unlabelled=dev, ranked=method.ranked, **about)
    changing = _depths(setting, clients, cell.seed)
    return federate(model, clients, cell.method, checkpoint=checkpoint, depths=changing, **about)


def _depths(setting: Setting, clients: Sequence[Client], seed: int) -> Callable[[int], Mapping] | None:
    """Return the function that gives the depths of a round, where the setting changes them."""
    plan = setting.federation
    if plan.policy is not None:
        own, known = dict(zip(setting.model.depths, plan.fleet, strict=True)), profiles()
        devices = {client.name: known[own[client.depth]] for client in clients}
        return partial(depths_of_round, plan.policy, devices, seed=seed)
    if plan.drop_out:
        return partial(drop_outs, [client.name for client in clients], plan.drop_out, seed)
    return None


def _words(task: Task) -> list[str]:
    """Return the words of the texts that may be used for training."""
    texts = task.rows.query("split in ('train', 'public')")["target"]
    return sorted({word for target in texts for word in spell(target, task.labels).split()})


def fine_tuned_error(
    corpus: str,
    rows: pd.DataFrame,
    split: tuple[np.ndarray, np.ndarray, np.ndarray],
    label: str,
    backbone: str,
    exit: int,
    recipe: Recipe,
    seconds: float,
    seed: int,
    checkpoint: Path,
) -> tuple[float, float]:
    """Fine-tune `backbone` to predict the column `label` and return its error on dev and on test.

    Args:
        corpus: name of the corpus.
        rows: rows of its manifest, with `label`.
        split: positions in `rows` of the train, dev and test clips.
        label: column to predict.
        backbone: name of the backbone.
        exit: exit that is trained.
        recipe: how to train.
        seconds: clips are cut after this many seconds.
        seed: draws heads, batches and the weights of a preset.
        checkpoint: file that keeps the state after every epoch.
    """
    names, opened = sorted(rows[label].unique()), open_corpus(corpus)
    rows = rows.assign(target=[names.index(value) for value in rows[label]])
    model = MultiExitModel(load_backbone(backbone, seed=seed).truncated(exit), names, [exit], seed)
    frozen = freezer(Clips(opened, rows, seconds), model.backbone)
    train, *held_out = (frozen(Clips(opened, rows.iloc[part], seconds)) for part in split)
    features, frames, _ = collate([held_out[0][index] for index in range(min(200, len(held_out[0])))])
    model.standardise(features, frames)
    fine_tune(model, train, [exit], recipe, seed, checkpoint)
    return tuple(error_rates(predict(model, part))["value"].item() for part in held_out)
