"""Let some clients of a federation fail or attack, for experiments on robust rules. Not for real federations."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor, nn

from fedexit.federated.aggregation import Update
from fedexit.federated.clients import Client, RoundReport, at_share
from fedexit.federated.regime import Statistics, round_of_heads
from fedexit.federated.workers import Round, Stream, Transport, Work
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

Weights = Mapping[str, Tensor]
FAULTS: dict[str, str] = {
    "nan": "sends NaN",
    "scaled": "sends ten times its step",
    "stale": "sends its first update in every round",
    "reversed": "sends minus ten times its step",
    "collusion": "sends, like its accomplices, minus the sum of their steps",
}
"""What a faulty or hostile client does, by name. Random labels are a fault of the data: see `with_random_labels`."""
_TIMES = {"scaled": 10.0, "reversed": -10.0}


@dataclass
class Faulty:
    """Change the updates of some clients; a transport around another one.

    inner: trains the clients.
    faults: a name in `FAULTS` by client.

    Raises FedexitError for an unknown fault.

    Example:
        >>> federate_guarded(model, clients, transport=Faulty(local_rounds, {"ann": "reversed"}))
    """

    inner: Transport
    faults: Mapping[str, str]
    _first: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # the first updates of stale clients

    def __post_init__(self) -> None:
        if unknown := {*self.faults.values()} - FAULTS.keys():
            raise FedexitError(f"unknown fault {min(unknown)!r}; known: {', '.join(FAULTS)}")

    @contextmanager
    def __call__(self, model: MultiExitModel, clients: Sequence[Client], work: Work) -> Iterator[Round]:
        """Give the function of a round: see `fedexit.federated.workers.local_rounds`."""
        with self.inner(model, clients, work) as run:

            def faulty(drawn: Iterable[Client], stream: Stream, share: float = 1.0) -> Iterator:
                found = [(client, _copied(update), report) for client, update, report in run(drawn, stream, share)]
                yield from self._changed(model.trainable_weights(), found)

            yield faulty

    def _changed(self, old: Weights, found: list[tuple[Client, Update, RoundReport]]) -> Iterator:
        plot = [update for client, update, _ in found if self.faults.get(client.name) == "collusion"]
        for client, update, report in found:
            weights = self._sent(self.faults.get(client.name, ""), client.name, old, update.weights, plot)
            yield client, replace(update, weights=weights), report

    def _sent(self, fault: str, client: str, old: Weights, own: Weights, plot: Sequence[Update]) -> Weights:
        if fault == "nan":
            return {name: torch.full_like(tensor, torch.nan) for name, tensor in own.items()}
        if fault == "stale":
            return self._first.setdefault(client, dict(own))
        if fault == "collusion":
            return {name: old[name] - _sum_of_steps(name, old, plot) for name in own}
        if fault in _TIMES:
            return {name: old[name] + _TIMES[fault] * (tensor - old[name]) for name, tensor in own.items()}
        return own


def _copied(update: Update) -> Update:
    return replace(update, weights={name: tensor.clone() for name, tensor in update.weights.items()})


def _sum_of_steps(name: str, old: Weights, plot: Sequence[Update]) -> Tensor:
    steps = [update.weights[name] - old[name] for update in plot if name in update.weights]
    return torch.stack(steps).sum(dim=0)


class FrozenHeads:
    """Train heads alone on statistics that were computed once: a transport for a model with a frozen backbone.

    A round of twenty clients takes a tenth of a second. The method's objective must have the losses of all exits.

    known: the pooled statistics of each client (`fedexit.federated.regime.pooled_statistics`).
    """

    def __init__(self, known: Mapping[str, Statistics]):
        self.known = dict(known)
        self._costs: dict[tuple[str, bool], dict] = {}

    @contextmanager
    def __call__(self, model: MultiExitModel, clients: Sequence[Client], work: Work) -> Iterator[Round]:
        """Give the function of a round: see `fedexit.federated.workers.local_rounds`. Raises FedexitError as stated."""
        if any(".linear." not in name for name in model.trainable_weights()) or work.objective.losses != "all":
            raise FedexitError('only linear heads can learn alone: freeze the rest, and take Objective("all")')

        def run(drawn: Iterable[Client], stream: Stream, share: float = 1.0) -> Iterator:
            local, (seed, _, number, *_) = at_share(work.training, share), stream
            for client in drawn:
                about = int(number), work.training, local, int(seed), self.known, self._costs
                update, row = round_of_heads(model, client, *about)
                read = self.known[client.name]
                yield client, update, RoundReport(row["loss"], row["seconds"], read.lengths, read.cached)

        yield run


def with_random_labels(read: Statistics, seed: int) -> Statistics:
    """Return statistics whose targets are shuffled among the clips."""
    order = numpy_stream(seed, "random labels").permutation(len(read.targets))
    return read._replace(targets=read.targets[torch.from_numpy(order)])


def head_errors(model: MultiExitModel, read: Statistics) -> pd.DataFrame:
    """Return the error of the heads on statistics of clips with labels, in percent: `exit, value, n`."""
    rows = []
    for exit, reads in read.by_exit.items():
        linear = model.head_at(exit).get_submodule("linear")
        logits = nn.functional.linear(reads, linear.weight, linear.bias)  # type: ignore[arg-type]  # of a Linear
        wrong = (logits.argmax(dim=1) != read.targets).double().mean()
        rows.append((exit, 100 * float(wrong), len(read.targets)))
    return pd.DataFrame(rows, columns=["exit", "value", "n"])


