"""Inspect the update of a client: refuse, with one line, whatever does not fit what the server knows of that client."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedexit.federated.aggregation import Aggregator, Update
from fedexit.federated.clients import Client, RoundReport
from fedexit.support.checks import misfits, whole_number
from fedexit.support.errors import FedexitError, first_line


@dataclass
class Inspector:
    """Check the updates of one round.

    Args:
        number: The round.
        drawn: The clients that take part, at their depths in this round.
        weights: The global weights by name.
        layers: The layers of the model, the bound of L_i.
        held: Returns the names of the weights that a client of a depth sends. None for local rounds that choose layers
            themselves (FedRA): they may send any global weights, at any depth within the model.

    Example:
        >>> inspector = Inspector(1, clients, model.trainable_weights(), 12, held=None)
        >>> inspector.check("ann", update)
    """

    number: int
    drawn: Sequence[Client]
    weights: Mapping[str, Tensor]
    layers: int
    held: Callable[[int], set[str]] | None
    accepted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._clients = {client.name: client for client in self.drawn}
        self._known = Aggregator(self.weights, layers=self.layers)

    def check(self, client: str, update: object, number: int | None = None, report: object = None) -> None:
        """Accept an update.

        Args:
            client: The name of the sender.
            update: What it sent.
            number: The round that the sender states; None if the transport knows it.
            report: Its report, if there is one.

        Raises:
            FedexitError: the round or the client is another one, the client has sent an update before, n_i, L_i, the
                names, types or shapes are not those of the client, a value is not finite, or the report does not fit.
        """
        self._check_sender(client, number)
        try:
            self._check_update(self._clients[client], update)
            if report is not None:
                check_report(report, self._clients[client])
        except FedexitError:
            raise
        except Exception as error:  # a client may send anything
            raise FedexitError(f"an update cannot be read: {first_line(error)}; leave its client out") from error
        self.accepted.add(client)

    def _check_sender(self, client: object, number: object) -> None:
        if number is not None and whole_number(number, "the round of an update") != self.number:
            raise FedexitError(f"an update is for round {number}, not {self.number}; train from the newest weights")
        if not isinstance(client, str) or client not in self._clients:
            raise FedexitError(f"client {client!r:.80} was not sampled in round {self.number}; wait for the next one")
        if client in self.accepted:
            raise FedexitError(f"client {client} has sent its update of round {self.number} already; send it once")

    def _check_update(self, client: Client, update: object) -> None:
        if isinstance(update, Update) and isinstance(update.weights, Mapping):
            for name, tensor in update.weights.items():
                _check_tensor(name, tensor, self.weights.get(name))
        self._known.check(update)  # type: ignore[arg-type]  # it checks the type
        assert isinstance(update, Update)
        if update.examples > len(client.data):
            raise FedexitError(f"n_i of an update is {update.examples}; its client has {len(client.data)} clips")
        if not update.weights:
            raise FedexitError("an update holds no weights; send those that its client trained")
        if self.held is None:
            return
        if update.depth != client.depth:
            raise FedexitError(f"depth L_i of an update is {update.depth}; the server gave its client {client.depth}")
        own = self.held(client.depth)
        if wrong := misfits(own - update.weights.keys(), update.weights.keys() - own):
            raise FedexitError(f"an update of depth {client.depth} has other weights than its client holds: {wrong}")


def _check_tensor(name: object, tensor: object, old: Tensor | None) -> None:
    """Raise FedexitError for a tensor without values in memory, or of another type than the global weight `old`."""
    if isinstance(tensor, Tensor) and old is not None:
        if tensor.layout != torch.strided or tensor.is_meta:
            raise FedexitError(f"an update's {name!r} is a sparse or empty tensor; send all its values")
        if tensor.dtype != old.dtype:
            raise FedexitError(f"an update's {name!r} is of type {tensor.dtype}; the global model's is {old.dtype}")


def check_report(report: object, client: Client) -> None:
    """Raise FedexitError for a report whose loss or time is not finite, or whose lengths are not those of n_i clips."""
    if not isinstance(report, RoundReport):
        raise FedexitError(f"a report is a {type(report).__name__}; give a RoundReport")
    for name, value in (("loss", report.loss), ("time", report.seconds)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FedexitError(f"the {name} in a report is {value!r:.40}: the client diverged; lower its learning rate")
    if len(report.lengths) != len(client.data):
        raise FedexitError(f"a report has {len(report.lengths)} lengths; its client has {len(client.data)} clips")
    for length in report.lengths:
        whole_number(length, "the length of a clip in a report", 1)
