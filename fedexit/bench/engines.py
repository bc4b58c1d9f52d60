"""Run the workload with the bare loop, which is the lower limit, and with `federate`."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from typing import SupportsIndex

import torch
from torch import Tensor
from torch.multiprocessing import get_context

from fedexit.bench.workload import (
    LEARNING_RATE,
    SEED,
    Workload,
    build_client,
    build_clients,
    build_model,
    outcome,
    train_locally,
)
from fedexit.data.batches import Example, normalised
from fedexit.federated import rounds as federation
from fedexit.federated.aggregation import Update
from fedexit.federated.clients import Client, LocalTraining, RoundReport
from fedexit.federated.methods import find_method
from fedexit.model.backbone import Backbone
from fedexit.model.exits import MultiExitModel

_PATIENCE = 1800  # seconds that a process of the bare loop waits for another, in case that one has died


def bare(workload: Workload, processes: int, started: float) -> dict:
    """Run FedAvg with nothing around it: the lowest cost of `workload`.

    Each process trains its share of the clients and sums their weights. This process trains too and adds up the sums.

    Args:
        workload: what to train.
        processes: number of processes that train.
        started: `time.time()` when the process was requested.

    Returns:
        `startup` (seconds), `rounds` (seconds of each) and the `outcome`.
    """
    model = build_model(workload)
    weights = {name: tensor.clone().share_memory_() for name, tensor in model.trainable_weights().items()}
    sums = [{n: torch.zeros_like(t).share_memory_() for n, t in weights.items()} for _ in range(processes)]
    context = get_context("fork")  # the cheapest way to start a process
    barrier = context.Barrier(processes, timeout=_PATIENCE)
    shares = [range(first, workload.clients, processes) for first in range(processes)]
    others = [
        context.Process(target=_helper, args=(workload, model, share, weights, own, barrier), daemon=True)
        for share, own in zip(shares[1:], sums[1:], strict=True)
    ]
    for process in others:
        process.start()
    trainer = _Trainer(workload, model, shares[0])
    totals = _totals(workload, model)
    barrier.wait()
    startup, rounds = time.time() - started, []
    for number in range(1, workload.rounds + 1):
        since = time.perf_counter()
        barrier.wait()
        trainer.round(number, weights, sums[0])
        barrier.wait()
        for name, total in totals.items():
            weights[name].copy_(sum((own[name] for own in sums[1:]), sums[0][name])).div_(total)
        rounds.append(time.perf_counter() - since)
    for process in others:
        process.join()
    return {"startup": startup, "rounds": rounds, **outcome(workload, weights)}


class _Trainer:
    """A process's share of the clients, and a scratch model for each of their depths."""

    def __init__(self, workload: Workload, model: MultiExitModel, share: Sequence[int]):
        self.workload, self.clients = workload, [build_client(workload, number) for number in share]
        self.scratch = {depth: model.client_model(depth) for depth in {client.depth for client in self.clients}}

    def round(self, number: int, weights: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
        """Train each client from `weights` and add n_i times its weights to `sums`, which start from zero."""
        for tensor in sums.values():
            tensor.zero_()
        for client in self.clients:
            model = self.scratch[client.depth]
            model.load_weights(weights)
            train_locally(model, self.workload, client, number)
            for name, tensor in model.trainable_weights().items():
                sums[name].add_(tensor, alpha=len(client.data))


def _helper(
    workload: Workload, model: MultiExitModel, share: Sequence[int], weights: dict, sums: dict, barrier: Barrier
) -> None:
    trainer = _Trainer(workload, model, share)
    barrier.wait()
    for number in range(1, workload.rounds + 1):
        barrier.wait()
        trainer.round(number, weights, sums)
        barrier.wait()


def _totals(workload: Workload, model: MultiExitModel) -> dict[str, int]:
    """Return, for each weight that some client trains, the number of examples of those clients."""
    totals: dict[str, int] = {}
    names = {depth: list(model.client_model(depth).trainable_weights()) for depth in model.exits}
    for client in build_clients(workload):
        for name in names[client.depth]:
            totals[name] = totals.get(name, 0) + len(client.data)
    return totals


def fedexit(workload: Workload, processes: int, started: float) -> dict:
    """Run `federate` on `workload`. Arguments and result are those of `bare`, but `rounds` lacks the last round.

    In a `mixed` workload the output of the frozen convolutions is computed beforehand, as a part of `startup`. The
    first round begins with the call of `federate`.
    """
    model, clients = build_model(workload), build_clients(workload)
    if workload.kind == "mixed":
        clients = [replace(client, data=_convolved(client.data, model.backbone)) for client in clients]
    training = LocalTraining(1, workload.batch, LEARNING_RATE, LEARNING_RATE, clip_norm=float("inf"), optimiser="sgd")
    clock = _Clock(clients)
    startup, since = time.time() - started, time.perf_counter()
    method = find_method("masked")
    if workload.kind == "empty":
        method = replace(method, local_round=partial(_untrained, workload.samples))
    result = federation.federate(model, clock, method, workload.rounds, SEED, training=training, workers=processes)
    marks = [since, *clock.marks[1:]]
    rounds = [end - begin for begin, end in pairwise(marks)]
    if len(rounds) != workload.rounds - 1:
        raise AssertionError("`federate` no longer asks for its first client once a round: see `_Clock`")
    return {"startup": startup, "rounds": rounds, **outcome(workload, result.model.trainable_weights())}


class _Clock(list):
    """A list of clients that records the time whenever the first of them is read.

    `federate` reads it once at the start of each round, so its rounds can be timed without a hook. The end of the last
    round is not visible.
    """

    def __init__(self, clients: Sequence[Client]):
        super().__init__(clients)
        self.marks: list[float] = []

    def __getitem__(self, position: SupportsIndex) -> Client:  # type: ignore[override]
        if position == 0:
            self.marks.append(time.perf_counter())
        return super().__getitem__(position)


def _convolved(data: Sequence[Example], backbone: Backbone) -> list[Example]:
    clips = [(normalised(clip), label) for clip, label in data]
    return [(backbone.convolve(clip[None], torch.tensor([len(clip)]))[0], label) for clip, label in clips]


def _untrained(
    samples: int, model: MultiExitModel, weights: dict, client: Client, *_: object
) -> tuple[Update, RoundReport]:
    """Take the place of a local round: receive and send weights as it does, and train nothing."""
    model.load_weights(weights)
    sent = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    return Update(sent, len(client.data), client.depth), RoundReport(0.0, 0.0, [samples] * len(client.data))
