"""Checks of a federation before its first round: numbers, clients, clips and memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import psutil
import torch
from torch.utils.data import ConcatDataset

from fedexit.data.batches import Example, check_example
from fedexit.data.tasks.contract import Clips
from fedexit.data.text import frames_needed
from fedexit.federated.clients import Client, LocalTraining
from fedexit.federated.ledger import client_costs
from fedexit.federated.objectives import Objective
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import FrozenFeatures
from fedexit.support.checks import whole_number
from fedexit.support.errors import FedexitError


def check_run(
    clients: Sequence[Client], rounds: int, fraction: float, workers: int = 1, evaluate_every: int = 1
) -> None:
    """Raise FedexitError for an empty federation, names that are not different texts, and numbers out of range."""
    if not clients:
        raise FedexitError("a federation needs at least one client; the list is empty")
    for client in clients:
        if not isinstance(client, Client):
            raise FedexitError(f"clients must be a list of Client, not of {type(client).__name__}")
        if not isinstance(client.name, str) or not client.name or not isinstance(client.tier, str):
            found = f"{client.name!r} and {client.tier!r}"
            raise FedexitError(f"a client's name and tier must be texts, and the name not empty; they are {found}")
    names = [client.name for client in clients]
    if len(set(names)) < len(names):
        raise FedexitError(f"client {next(n for n in names if names.count(n) > 1)} is listed twice; names must differ")
    for name, number in (("rounds", rounds), ("workers", workers), ("evaluate_every", evaluate_every)):
        whole_number(number, name, 1)
    if not 0 < fraction <= 1:
        raise FedexitError(f"fraction must be in (0, 1], not {fraction}")


def check_depths(model: MultiExitModel, clients: Sequence[Client]) -> None:
    """Raise FedexitError for a client whose depth is not an exit of `model`."""
    for client in clients:
        whole_number(client.depth, f"depth of client {client.name}", 1)
        if client.depth not in model.exits:
            known = ", ".join(map(str, model.exits))
            raise FedexitError(f"client {client.name} asks for exit {client.depth}; the model has {known}")


def check_data(
    model: MultiExitModel,
    clients: Sequence[Client],
    dev: Sequence[Example],
    training: LocalTraining,
    objective: Objective,
) -> None:
    """Check every clip and target of `clients` and `dev`, and the memory of the largest batch at each depth.

    Clips of a corpus and stored features are checked by their lengths; other clips are read once. Raises FedexitError
    for a model with one label, a client without clips, a clip or target out of range (see `check_example`), a clip
    shorter than one frame, a text too long for its clip (CTC), and a batch that needs more memory than is available.
    """
    if model.head == "pooled" and len(set(model.labels)) < 2:
        raise FedexitError(f"the model has {len(set(model.labels))} label(s), so there is nothing to learn; give two")
    longest: dict[int, tuple[int, Client, bool]] = {}
    for client in clients:
        lengths, cached = _checked(model, client.data, f"client {client.name}", spells=True)
        if not lengths:
            raise FedexitError(f"client {client.name} has no clips; leave it out of the federation")
        longest[client.depth] = max(longest.get(client.depth, (0,)), (max(lengths), client, cached), key=lambda x: x[0])
    _checked(model, dev, "dev", spells=False)
    for depth, (length, client, cached) in longest.items():
        batch = [length] * min(training.batch_size, len(client.data))
        need = client_costs(model, depth, batch, training, cached, objective)["memory_training"]
        free = psutil.virtual_memory().available
        if next(model.parameters()).device.type == "cpu" and need > free:
            size = f"{length} frames" if cached else f"{length / 16_000:.0f} s"
            raise FedexitError(
                f"client {client.name}: a batch of {len(batch)} clips of {size} needs {need / 1e9:.1f} GB of memory to "
                f"train exit {depth}, and {free / 1e9:.1f} GB are free; cut the clips or lower batch_size"
            )


def _checked(model: MultiExitModel, data: Sequence[Example], owner: str, spells: bool) -> tuple[list[int], bool]:
    """Return the lengths of all clips, and whether they are features, after checking them against `model`."""
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise FedexitError(f"data of {owner} are a {type(data).__name__}; give a list of pairs (waveform, target)")
    lengths, channels, targets = [list(column) for column in zip(*_measured(data, owner), strict=True)] or [[], [], []]
    cached = any(channels[:1])
    frames = lengths if cached else model.backbone.frame_lengths(torch.tensor(lengths, dtype=torch.long)).tolist()
    for position, target in enumerate(targets):
        name = f"{owner}, clip {position}"
        if channels[position] not in (0, model.backbone.channels):
            width = model.backbone.channels
            raise FedexitError(
                f"{name} has {channels[position]} channels; give a mono waveform, or features of {width}"
            )
        if channels[position] != channels[0]:
            raise FedexitError(f"{name} is not of the same kind as clip 0; give only waveforms, or only features")
        if frames[position] < 1:
            raise FedexitError(f"{name} is shorter than one frame ({lengths[position]} samples); leave it out")
        codes = _check_target(model, target, name)
        if spells and model.head != "pooled" and (need := frames_needed(codes)) > frames[position]:
            raise FedexitError(
                f"{name} has {frames[position]} frames, and its text of {len(codes)} characters needs {need} (CTC); "
                "shorten the text or leave the clip out"
            )
    return lengths, cached


def _check_target(model: MultiExitModel, target: object, name: str) -> list[int]:
    """Return the target as a list of codes, after checking it against the labels of `model`."""
    labels, codes = len(model.labels), np.asarray(target)
    if model.head == "pooled":
        if codes.ndim or not 0 <= codes < labels:
            raise FedexitError(f"{name} has target {target!r}; give the index of a label, 0 to {labels - 1}")
        return [int(codes)]
    if codes.ndim != 1 or not ((codes > 0) & (codes <= labels)).all():
        raise FedexitError(f"{name} has target {target!r}; give a text's character ids, each from 1 to {labels}")
    return codes.tolist()


def _measured(data: Sequence[Example], owner: str, start: int = 0) -> Iterator[tuple[int, int, object]]:
    """Yield length, channels (0 for a waveform) and target of each clip. The first clip is number `start`."""
    if isinstance(data, ConcatDataset):
        for part in data.datasets:
            yield from _measured(part, owner, start)
            start += len(part)
    elif isinstance(data, Clips | FrozenFeatures):
        for length, target in zip(data.lengths, data.targets, strict=True):
            yield length, data.channels, target
    else:
        for position in range(len(data)):
            example = data[position]
            check_example(example, f"{owner}, clip {start + position}")
            clip, target = example
            yield clip.shape[-1], len(clip) if clip.dim() == 2 else 0, target
