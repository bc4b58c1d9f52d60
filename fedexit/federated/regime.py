"""Train over the rounds so that a federation converges: heads first, falling rates, an averaged model.

The paper is silent about all three, and the defaults leave them out.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from fedexit.data.batches import collate
from fedexit.federated.aggregation import Aggregator, Update
from fedexit.federated.clients import Client, LocalTraining, RoundReport, at_share, optimiser_of, take_step
from fedexit.federated.ledger import heads_costs, ledger_row
from fedexit.federated.objectives import Objective, objective_loss
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import head_name
from fedexit.model.training import for_training
from fedexit.support.errors import FedexitError
from fedexit.support.progress import progress
from fedexit.support.settings import check_fields
from fedexit.support.streams import numpy_stream

_STATISTICS_BATCH = 32  # clips whose pooled statistics are computed together
Costs = dict[tuple[str, bool], dict]  # of rounds of heads, by client and whether it is the client's first


@dataclass(frozen=True)
class Regime:
    """Options of training over the rounds. Raises FedexitError for a value of another type or out of range."""

    heads_rounds: Annotated[int, Field(ge=0)] = 0  # rounds before the first, in which only heads learn
    falling_rates: bool = False  # learning rates fall to zero along half a cosine over the rounds
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the evaluated exponential average; 0: the last model

    def __post_init__(self) -> None:
        check_fields(self)

    def share(self, number: int, rounds: int) -> float:
        """Return the share of the full learning rates in round `number` (from 1) of `rounds`."""
        return (1 + math.cos(math.pi * (number - 1) / rounds)) / 2 if self.falling_rates else 1.0


def check_regime(regime: Regime, model: MultiExitModel) -> None:
    """Raise FedexitError unless `regime` is a `Regime`, and the heads of `model` can learn alone if it says so."""
    if not isinstance(regime, Regime):
        raise FedexitError(f"regime must be a Regime, not a {type(regime).__name__}")
    if regime.heads_rounds and model.head != "pooled":
        raise FedexitError(
            f"heads_rounds={regime.heads_rounds} needs heads on pooled statistics, not {head_name(model.head)}; CTC "
            "heads come with their start (`fedexit ctc`), so take 0"
        )


def update_average(average: dict[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """Move the exponential `average` of the global model, in place, towards the `weights` after a round."""
    for name, tensor in weights.items():
        average[name] = average[name].lerp(tensor, 1 - decay) if name in average else tensor.clone()


@contextmanager
def as_average(model: MultiExitModel, average: dict[str, Tensor]) -> Iterator[None]:
    """Give `model` the weights of the `average` inside the block; an empty average changes nothing."""
    last = {name: tensor.clone() for name, tensor in model.trainable_weights().items()} if average else {}
    if average:
        model.load_weights(average)
    try:
        yield
    finally:
        if average:
            model.load_weights(last)


def train_heads(
    model: MultiExitModel,
    regime: Regime,
    sampled: Callable[[int], Sequence[Client]],
    training: LocalTraining,
    seed: int,
) -> list[dict]:
    """Train the heads of `model` in `regime.heads_rounds` rounds on the frozen backbone; return the ledger's rows.

    A client trains the heads of all exits up to L_i, with the mean of their losses, whatever the method, so all methods
    can start from the same heads. The server averages each head by Eq. (1). A client runs its clips through the
    backbone once and keeps their pooled statistics. The rounds are numbered up to 0, before round 1.

    Args:
        model: the global model, with heads on pooled statistics.
        regime: the number of rounds, and whether rates fall.
        sampled: returns the clients of a round.
        training: options of local training.
        seed: names the random streams.
    """
    model.eval()  # dropout would make the statistics depend on what ran before
    heads = {f"heads.{name}": parameter.detach() for name, parameter in model.heads.named_parameters()}
    known: dict[str, Statistics] = {}
    costs: Costs = {}
    rows: list[dict] = []
    for place in progress(range(1, regime.heads_rounds + 1), "heads"):
        number, local = place - regime.heads_rounds, at_share(training, regime.share(place, regime.heads_rounds))
        server = Aggregator(heads, layers=model.backbone.layers)
        for client in sampled(number):
            update, row = round_of_heads(model, client, number, training, local, seed, known, costs)
            server.add(update)
            rows.append(row)
        for name, tensor in server.result().items():
            heads[name].copy_(tensor)
    return rows


def round_of_heads(
    model: MultiExitModel, client: Client, number: int, training: LocalTraining, local: LocalTraining, seed: int,
    known: dict[str, "Statistics"], costs: Costs,
) -> tuple[Update, dict]:  # fmt: skip
    """Train the heads of `client` in round `number` at the rates of `local`; return its update and its ledger row.

    The first round of a client adds its statistics to `known`. `costs` keeps its costs, by name and for that round.
    """
    since, first = time.perf_counter(), client.name not in known
    if first:
        known[client.name] = pooled_statistics(model, client, training)
    read = known[client.name]
    update, loss = _trained_heads(model, client.depth, read, local, (seed, "heads", number, client.name))
    report = RoundReport(loss, time.perf_counter() - since, read.lengths, read.cached)
    if (client.name, first) not in costs:
        costs[client.name, first] = heads_costs(model, client.depth, report, training, first)
    return update, ledger_row(number, client, report, costs[client.name, first])


class Statistics(NamedTuple):
    """Hold the pooled statistics that the heads of a client read.

    Attributes:
        by_exit: standardised pooled statistics (N, 2D) at each exit up to L_i.
        targets: labels or numbers (N,), or 0 and 1 for each of several labels (N, labels).
        lengths: lengths of the clips in samples, or in frames if `cached`.
        cached: whether the clips are frozen features.
    """

    by_exit: dict[int, Tensor]
    targets: Tensor
    lengths: list[int]
    cached: bool


@torch.no_grad()
def pooled_statistics(model: MultiExitModel, client: Client, training: LocalTraining) -> Statistics:
    """Run the clips of `client` through the frozen backbone up to L_i and return what its heads read."""
    exits = [exit for exit in model.exits if exit <= client.depth]
    device, found, targets = next(model.parameters()).device, {exit: list[Tensor]() for exit in exits}, list[Tensor]()
    clips = [client.data[index] for index in range(len(client.data))]
    lengths = [clip.shape[-1] for clip, _ in clips]
    order = sorted(range(len(clips)), key=lambda index: lengths[index])
    with for_training(model.backbone, training.bfloat16):
        for start in range(0, len(order), _STATISTICS_BATCH):
            batch, sizes, own = collate([clips[index] for index in order[start : start + _STATISTICS_BATCH]])
            targets.append(own.to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=training.bfloat16):
                states, frames = model.states(batch, sizes, exits)
            for exit in exits:
                head = model.head_at(exit)
                found[exit].append((head.reads(states[exit].float(), frames) - head.centre) / head.scale)
    back = torch.tensor(order).argsort()
    by_exit = {exit: torch.cat(parts)[back] for exit, parts in found.items()}
    return Statistics(by_exit, torch.cat(targets)[back], lengths, clips[0][0].dim() == 2)


def _trained_heads(
    model: MultiExitModel, depth: int, read: Statistics, training: LocalTraining, stream: tuple
) -> tuple[Update, float]:
    """Train copies of the heads on a client's statistics; return its update and the mean loss of the last epoch."""
    places = {exit: f"heads.{'shared' if model.shared_head else exit}.linear." for exit in read.by_exit}
    own = {
        places[exit] + part: parameter.detach().clone().requires_grad_()
        for exit in places
        for part, parameter in model.head_at(exit).get_submodule("linear").named_parameters()
    }
    optimiser = optimiser_of([(list(own.values()), training.head_learning_rate)], training)
    losses: list[float] = []
    for epoch in range(training.epochs):
        losses.clear()
        order = torch.from_numpy(numpy_stream(*stream, epoch).permutation(len(read.targets)))
        for batch in order.split(training.batch_size):
            logits = {
                exit: nn.functional.linear(read.by_exit[exit][batch], own[place + "weight"], own[place + "bias"])
                for exit, place in places.items()
            }
            loss = objective_loss(logits, read.targets[batch], Objective(losses="all"), model.targets)
            optimiser.zero_grad()
            loss.backward()
            take_step(optimiser, training)
            losses.append(loss.item() * len(batch))
    weights = {name: tensor.detach() for name, tensor in own.items()}
    return Update(weights, len(read.targets), depth), sum(losses) / len(read.targets)
