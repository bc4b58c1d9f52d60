"""One model of an experiment's grid, from its task and its start to its errors: a cell."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch.utils.data import ConcatDataset

from fedexit.central.ctc_start import set_heads
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.data.batches import Example, collate
from fedexit.data.corpora import open_corpus
from fedexit.data.tasks import make_task
from fedexit.data.tasks.asr import played
from fedexit.data.tasks.contract import Clips, Task
from fedexit.data.text import spell
from fedexit.data.trials import trials_of
from fedexit.devices.policy import depths_of_round
from fedexit.devices.profiles import profiles
from fedexit.federated.clients import Client, LocalTraining
from fedexit.federated.heterofl import federate_by_width, widths_for
from fedexit.federated.local_heads import Heads, with_own_heads
from fedexit.federated.methods import find_method
from fedexit.federated.partition import assign_depths, client_groups, device_of, make_clients, tier_of
from fedexit.federated.rounds import Federation, drop_outs, federate
from fedexit.lab.setting import CENTRAL, HOMOGENEOUS, Cell, Setting, check_cell
from fedexit.model.backbone import Backbone, load_backbone
from fedexit.model.ctc import beam_decoder
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import freezer
from fedexit.model.lora import with_lora
from fedexit.model.metrics import all_rates, error_rates, item_errors, predict, verify
from fedexit.model.training import lacks_bfloat16
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

COLUMNS = ["method", "task", "seed", "round", "tier", "exit", "split", "metric", "value", "n"]


class Measured(NamedTuple):
    """What cells give, as tidy tables.

    errors: `COLUMNS`: every trained exit on dev as training goes (tier `all`), on test after it, for all clips and for
    each tier's devices; on held-out clips of the clients' own voices (split `known`, before and after) where the task
    has them; EER and minDCF (split `trials`) where the corpus has a trial list; by beam search too for texts. ledger:
    a row per local round (`Federation.clients`). items: `exit, item, metric, errors, n` of each test clip, for
    paired intervals.
    """

    errors: pd.DataFrame
    ledger: pd.DataFrame
    items: pd.DataFrame


def run_cell(cell: Cell, setting: Setting, state: Path) -> Measured:
    """Run one cell, or go on with it from its checkpoint in the folder `state`.

    Raises FedexitError as `check_cell`, for a task that the corpus cannot express and as the training.
    """
    check_cell(cell, setting)
    _warn_of_bfloat16(setting.central if cell.method == CENTRAL else setting.training)
    seconds, checkpoint = setting.max_seconds[cell.task], state / f"{cell.name}.safetensors"
    task = task_of(cell, setting)
    tiers = tiers_of(task, setting, cell.seed)
    model = _start(cell, setting, task)
    backbone = model.backbone  # its convolutions stay what they are; heterofl's models of several widths have none
    heard = task.rows.query("split != 'public'")  # the server's own clips are no cell's
    frozen = freezer(Clips(task.corpus, heard, seconds), backbone)
    clips = {s: Clips(task.corpus, heard.query("split == @s"), seconds) for s in ("train", "dev", "test", "known")}
    parts = {split: frozen(own) for split, own in clips.items()}
    trained_on = _at_speeds(clips["train"], setting.speeds, frozen, backbone)
    dev = _drawn(parts["dev"], setting.dev_clips, task.name)
    set_heads(model, setting.backbone, dev)
    before = _known_voices(model, parts, task, {}, 0)
    if cell.method == CENTRAL:
        fine_tune(model, trained_on(clips["train"]), [cell.depth], setting.central, cell.seed, checkpoint)
        done, ledger, heads = setting.central.epochs, pd.DataFrame(), {}
        curve = all_rates(predict(model, dev)).assign(round=done)
    else:
        depths = dict.fromkeys(tiers, cell.depth) if cell.method == HOMOGENEOUS else tiers
        dealt = setting.partition[cell.task], setting.min_clips, seconds, cell.seed, setting.alpha
        clients = make_clients(task, depths, *dealt)
        clients = [replace(client, data=trained_on(client.data)) for client in clients]
        result = _federate(cell, setting, model, clients, dev, checkpoint)
        model, done, ledger, curve = result.model, setting.rounds[cell.task], result.clients, result.table
        heads = result.heads
    predictions = _answers(model, parts, task, "test", heads)
    predictions["tier"] = [tier_of(group, tiers) for group in groups_tested(task)[predictions["item"]]]
    by_tier = all_rates(predictions, ["tier", "exit"]).assign(split="test", round=done)
    after = _after(model, backbone, task, parts, predictions, seconds).assign(round=done)
    known = _known_voices(model, parts, task, heads, done)
    errors = pd.concat([curve.assign(split="dev"), after, before, known, by_tier])
    about = dict(method=cell.method, task=cell.task, seed=cell.seed)
    errors = errors.assign(**about, tier=errors["tier"].fillna("all"))
    return Measured(errors[COLUMNS], ledger.assign(**about), item_errors(predictions).assign(**about))


def _warn_of_bfloat16(training: LocalTraining | Recipe) -> None:
    if training.bfloat16 and lacks_bfloat16():
        warnings.warn("this processor lacks bfloat16, and training in it is very slow; leave it off", stacklevel=2)


def tiers_of(task: Task, setting: Setting, seed: int) -> dict[str, int]:
    """Depth by device."""
    devices = [device_of(group) for group in client_groups(task, setting.min_clips)]
    return assign_depths(devices, setting.depths, seed, setting.shares)


def groups_tested(task: Task) -> np.ndarray:
    """The group of each test clip."""
    return task.rows.query("split == 'test'")["group"].to_numpy()


def _at_speeds(train: Clips, speeds: Sequence[float], frozen: Callable, backbone: Backbone) -> Callable:
    """What makes of some of the clips `train` their features at every speed; `frozen` does it for speed 1."""
    stores = {speed: frozen if speed == 1 else freezer(played(train, speed), backbone) for speed in speeds}
    return lambda clips: ConcatDataset(
        [store(clips if speed == 1 else played(clips, speed)) for speed, store in stores.items()]
    )


def _after(
    model: MultiExitModel, backbone: Backbone, task: Task, parts: Mapping, predictions: pd.DataFrame, seconds: float
) -> pd.DataFrame:
    """Errors on all test clips; of texts with a dictionary as well; of the trial list, if voices were told apart."""
    rates = [all_rates(predictions).assign(split="test")]
    if task.head == "ctc":
        searched = all_rates(predict(model, parts["test"], decode=beam_decoder(_words(task))))
        rates.append(searched.assign(metric=searched["metric"] + " beam", split="test"))
    if task.name in ("voice", "speaker") and (trials := trials_of(task.corpus)) is not None:
        ids = sorted({*trials["first"], *trials["second"]})
        clips = Clips(task.corpus, pd.DataFrame({"id": ids, "target": 0}), seconds)
        rates.append(verify(model, freezer(clips, backbone)(clips), ids, trials).assign(split="trials"))
    return pd.concat(rates)


def task_of(cell: Cell, setting: Setting) -> Task:
    """The cell's task. Raises FedexitError when one of the splits is empty."""
    seconds = setting.max_seconds[cell.task]
    options = ({"fold": cell.seed} if setting.folds else {}) | ({"max_seconds": seconds} if cell.task == "asr" else {})
    task = make_task(cell.task, _opened(setting.corpus), **options)
    for split in ("train", "dev", "test"):
        if split not in set(task.rows["split"]):
            raise FedexitError(f"corpus {task.corpus.name} has no clips of split {split} for task {task.name}")
    return task


_opened = cache(open_corpus)  # all of a manifest is checked, which is a second of every cell


def _start(cell: Cell, setting: Setting, task: Task) -> MultiExitModel:
    """The model before training: one exit, or one per tier."""
    exits, shared = [cell.depth], False
    if cell.method not in (CENTRAL, HOMOGENEOUS):
        method = find_method(cell.method)
        exits, shared = method.exits(setting.depths), method.shared_head
    backbone = load_backbone(setting.backbone).truncated(max(exits))
    if setting.lora:
        with_lora(backbone, setting.lora, seed=cell.seed)
    return MultiExitModel(backbone, task.labels, exits, head=setting.head or task.head, shared_head=shared)


def _answers(
    model: MultiExitModel, parts: Mapping[str, Sequence[Example]], task: Task, split: str, heads: Heads
) -> pd.DataFrame:
    """What all exits say of the clips of a split, clients' own people answered by the `heads` that they kept."""
    predictions = predict(model, parts[split])
    if not heads:
        return predictions
    devices = task.rows.query("split == @split")["group"].map(device_of)
    return with_own_heads(model, predictions, parts[split], devices, heads)


def _known_voices(
    model: MultiExitModel, parts: Mapping[str, Sequence[Example]], task: Task, heads: Heads, number: int
) -> pd.DataFrame:
    """Errors on what is held out of the clients' own clips, where the task has such."""
    if not len(parts["known"]):
        return pd.DataFrame(columns=["exit"])
    return all_rates(_answers(model, parts, task, "known", heads)).assign(split="known", round=number)


def _drawn(dev: Sequence[Example], size: int, task: str) -> list[Example]:
    chosen = sorted(numpy_stream("dev", task).permutation(len(dev))[:size])
    return [dev[int(index)] for index in chosen]


def _federate(
    cell: Cell, setting: Setting, model: MultiExitModel, clients: list[Client], dev: list[Example], checkpoint: Path
) -> Federation:
    rounds, depths = setting.rounds[cell.task], _depths(setting, clients, cell.seed)
    if find_method(cell.method).narrow:
        widths = widths_for(setting.depths, model.backbone)
        return federate_by_width(
            model, clients, widths, rounds, cell.seed, setting.fraction, setting.training, dev, dev
        )
    return federate(
        model,
        clients,
        method=cell.method,
        rounds=rounds,
        seed=cell.seed,
        fraction=setting.fraction,
        training=setting.training,
        dev=dev,
        evaluate_every=max(1, rounds // setting.evaluations),
        checkpoint=checkpoint,
        depths=depths,
    )


def _depths(setting: Setting, clients: Sequence[Client], seed: int) -> Callable[[int], Mapping] | None:
    """What `federate` asks in each round, where the setting changes depths."""
    if setting.policy is not None:
        own, known = dict(zip(setting.depths, setting.fleet, strict=True)), profiles()
        devices = {client.name: known[own[client.depth]] for client in clients}
        return lambda number: depths_of_round(setting.policy, devices, number, seed)
    if setting.drop_out:
        return partial(drop_outs, [client.name for client in clients], setting.drop_out, seed)
    return None


def _words(task: Task) -> list[str]:
    """The words of the texts that may be trained on."""
    texts = task.rows.query("split in ('train', 'public')")["target"]
    return sorted({word for target in texts for word in spell(target).split()})


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
    """Error on dev and on test of `backbone`, fine-tuned to `exit` to tell the column `label` of a corpus's `rows`.

    split: positions in `rows` of train, dev and test; clips are cut after `seconds`.
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
