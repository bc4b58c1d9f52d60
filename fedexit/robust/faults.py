"""Let some clients of a federation fail or attack, for experiments on robust rules. Not for real federations."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedexit.federated.aggregation import Update
from fedexit.federated.clients import Client, RoundReport
from fedexit.federated.workers import Round, Stream, Transport, Work
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError

FAULTS: dict[str, str] = {
    "nan": "sends NaN",
    "scaled": "sends ten times its step",
    "stale": "sends its first update in every round",
    "labels": "trains on shuffled labels",
    "reversed": "sends minus ten times its step",
    "collusion": "sends, like its accomplices, minus the sum of their steps",
}
"""What a faulty or hostile client does, by name. `labels` is a fault of the data: shuffle the targets of its clips."""
_TIMES = {"scaled": 10.0, "reversed": -10.0}


def sent(fault: str, old: Tensor, own: Tensor, first: Tensor, plot: Sequence[Tensor]) -> Tensor:
    """Return what a client sends for one weight.

    Args:
        fault: A name in `FAULTS`; any other text changes nothing.
        old: The global weight.
        own: The weight after the client's training.
        first: The weight that it sent in its first round.
        plot: The weight after training, of each accomplice of a `collusion`.
    """
    if fault == "nan":
        return torch.full_like(own, torch.nan)
    if fault == "stale":
        return first
    if fault == "collusion":
        return old - torch.stack([other - old for other in plot]).sum(dim=0)
    return old + _TIMES[fault] * (own - old) if fault in _TIMES else own


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
    _first: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # by client and weight

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

    def _changed(
        self, old: Mapping[str, Tensor], found: list[tuple[Client, Update, RoundReport]]
    ) -> Iterator[tuple[Client, Update, RoundReport]]:
        plot = [update.weights for client, update, _ in found if self.faults.get(client.name) == "collusion"]
        for client, update, report in found:
            weights = {}
            for name, own in update.weights.items():
                first = self._first.setdefault((client.name, name), own)
                others = [other[name] for other in plot if name in other]
                weights[name] = sent(self.faults.get(client.name, ""), old[name], own, first, others)
            yield client, replace(update, weights=weights), report


def _copied(update: Update) -> Update:
    return replace(update, weights={name: tensor.clone() for name, tensor in update.weights.items()})
