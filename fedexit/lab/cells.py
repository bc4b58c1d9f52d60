"""Run one cell: train one model and measure its errors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
from fedexit.federated.rounds import Federation, drop_outs, federate
from fedexit.lab import beam
from fedexit.lab.checks import check_cell, warn
from fedexit.lab.heterofl import federate_by_width, widths_for
from fedexit.lab.material import groups_tested, task_of, tiers_of
from fedexit.lab.own_heads import with_own_heads
from fedexit.lab.setting import CENTRAL, HOMOGENEOUS, Cell, Setting
from fedexit.lab.verification import verify
from fedexit.model.backbone import Backbone, load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import freezer
from fedexit.model.lora import with_lora
from fedexit.model.metrics import all_rates, error_rates, item_errors, predict
from fedexit.support.streams import numpy_stream

COLUMNS = ["method", "task", "seed", "round", "tier", "exit", "split", "metric", "value", "n"]


class Measured(NamedTuple):
    """The results of cells, as tidy tables.

    errors: columns `COLUMNS`. They hold the error of every trained exit on dev during training (tier `all`) and on test
        after it, for all clips and for the devices of each tier. Where the task has held-out clips of the clients' own
        voices, these give the split `known`, before and after training. Where the corpus has a trial list, EER and
        minDCF give the split `trials`. Texts are also decoded by beam search.
    ledger: one row per local round (`Federation.clients`); no rows for central cells.
    items: `exit, item, metric, errors, n` of each test clip, for paired intervals.
    """

    errors: pd.DataFrame
    ledger: pd.DataFrame
    items: pd.DataFrame


def run_cell(cell: Cell, setting: Setting, state: Path) -> Measured:
    """Run one cell, or resume it from its checkpoint with bit-identical results.

    Args:
        cell: the cell.
        setting: the options that it shares with the other cells of its grid.
        state: folder of its checkpoint.

    Raises:
        FedexitError: as `check_cell`; the corpus cannot express the task; the training fails.
    """
    check_cell(cell, setting)
    seconds, checkpoint = setting.data.max_seconds, state / f"{cell.name}.safetensors"
    task = task_of(cell, setting)
    warn(cell, setting, task)
    tiers = tiers_of(task, setting, cell.seed)
    model = _start(cell, setting, task)
    backbone = model.backbone  # its convolutions stay frozen; models of several widths (heterofl) have no backbone
    used = task.rows.query("split != 'public'")  # cells do not use the server's own clips
    frozen = freezer(Clips(task.corpus, used, seconds), backbone)
    clips = {s: Clips(task.corpus, used.query("split == @s"), seconds) for s in ("train", "dev", "test", "known")}
    parts = {split: frozen(own) for split, own in clips.items()}
    trained_on = _at_speeds(clips["train"], setting.data.speeds, frozen, backbone)
    dev = _drawn(parts["dev"], setting.study.dev_clips, task.name)
    set_heads(model, setting.model.backbone, dev)
    before = _known_voices(model, parts, task, {}, 0)
    if cell.method == CENTRAL:
        fine_tune(model, trained_on(clips["train"]), [cell.depth], setting.study.central, cell.seed, checkpoint)
        done, ledger, heads = setting.study.central.epochs, pd.DataFrame(), {}
        curve = all_rates(predict(model, dev)).assign(round=done)
    else:
        depths = dict.fromkeys(tiers, cell.depth) if cell.method == HOMOGENEOUS else tiers
        federation = setting.federation
        dealt = federation.partition, setting.data.min_clips, seconds, cell.seed, federation.alpha
        clients = make_clients(task, depths, *dealt)
        clients = [replace(client, data=trained_on(client.data)) for client in clients]
        result = _federate(cell, setting, model, clients, dev, checkpoint)
        model, done, ledger, curve = result.model, federation.rounds, result.clients, result.table
        heads = result.heads
    predictions = _predicted(model, parts, task, "test", heads)
    predictions["tier"] = [tier_of(group, tiers) for group in groups_tested(task)[predictions["item"]]]
    by_tier = all_rates(predictions, ["tier", "exit"]).assign(split="test", round=done)
    after = _after(model, backbone, task, parts, predictions, seconds).assign(round=done)
    known = _known_voices(model, parts, task, heads, done)
    errors = pd.concat([curve.assign(split="dev"), after, before, known, by_tier])
    about = dict(method=cell.method, task=cell.task, seed=cell.seed)
    errors = errors.assign(**about, tier=errors["tier"].fillna("all"))
    return Measured(errors[COLUMNS], ledger.assign(**about), item_errors(predictions).assign(**about))


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


def _start(cell: Cell, setting: Setting, task: Task) -> MultiExitModel:
    """Return the model before training: with one exit, or one per tier."""
    exits, shared = [cell.depth], False
    if cell.method not in (CENTRAL, HOMOGENEOUS):
        method = find_method(cell.method)
        exits, shared = method.exits(setting.model.depths), method.shared_head
    backbone = load_backbone(setting.model.backbone).truncated(max(exits))
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


def _drawn(dev: Sequence[Example], size: int, task: str) -> list[Example]:
    """Return at most `size` dev clips, the same for every cell of the task."""
    chosen = sorted(numpy_stream("dev", task).permutation(len(dev))[:size])
    return [dev[int(index)] for index in chosen]


def _federate(
    cell: Cell, setting: Setting, model: MultiExitModel, clients: list[Client], dev: list[Example], checkpoint: Path
) -> Federation:
    plan, depths = setting.federation, _depths(setting, clients, cell.seed)
    if find_method(cell.method).narrow:
        widths = widths_for(setting.model.depths, model.backbone)
        return federate_by_width(model, clients, widths, plan.rounds, cell.seed, plan.fraction, plan.training, dev, dev)
    return federate(
        model,
        clients,
        method=cell.method,
        rounds=plan.rounds,
        seed=cell.seed,
        fraction=plan.fraction,
        training=plan.training,
        dev=dev,
        evaluate_every=max(1, plan.rounds // plan.evaluations),
        checkpoint=checkpoint,
        depths=depths,
        regime=plan.regime,
    )


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
