"""Step from the global weights towards the clients' average: FedAdam, and the contract of a server of your own.

A server of your own is an object with `step(weights, averages, moments)`. `weights` and `averages` are copies of the
global weights and their average, by name; a weight that no client trained is the same tensor object in both. It returns
the new weights, all of them by name. What it must remember, it keeps as tensors by name in the dict `moments`, which is
empty at first: checkpoints store that dict and nothing else of the server.

Example:
    >>> class Half:
    ...     def step(self, weights, averages, moments):
    ...         return {name: (old + averages[name]) / 2 for name, old in weights.items()}
    >>> federate(model, clients, method=Method("half", server=Half()))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from fedexit.federated.aggregation import checked_weights
from fedexit.support.errors import FedexitError
from fedexit.support.settings import Positive, check_fields


class Server(Protocol):
    """An object that steps towards the average: see the contract above."""

    def step(
        self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], moments: dict[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return the new weights."""


def stepped(
    server: Server, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], moments: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the new weights of `server`. Raises FedexitError when it does not keep its contract."""
    owner = f"server {type(server).__name__}"
    found = checked_weights(server.step(weights, averages, moments), weights, owner)
    for name, value in moments.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FedexitError(f"{owner} keeps a {type(value).__name__} as moment {name!r}; keep tensors by name")
    return found


MOMENTS = ("first:", "second:")  # prefixes of their names


@dataclass(frozen=True)
class FedAdam:
    """FedAdam (Reddi et al., ICLR 2021, alg. 2). The change d = average - w takes the place of a gradient.

        m = beta1 m + (1 - beta1) d,  v = beta2 v + (1 - beta2) d^2,  w = w + learning_rate * m / (sqrt(v) + tau)

    As in the paper there is no bias correction, and m = v = 0 at first. Reddi et al. tune learning_rate and tau by
    task. Ours make the first steps about as large as those of averaging, at a client's usual change of 1e-3 per round.
    """

    learning_rate: Positive = 1e-2
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Positive = 1e-3

    def __post_init__(self) -> None:
        check_fields(self)

    def step(
        self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], moments: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the new weights, and replace the entries `first:name` (m) and `second:name` (v) of `moments`.

        A weight that no client trained (its average is the same tensor object) keeps its value and its moments.
        """
        new = dict(averages)
        for name, old in weights.items():
            if averages[name] is old:
                continue
            change = averages[name] - old
            first = (1 - self.beta1) * change + self.beta1 * moments.get(f"first:{name}", 0.0)
            second = (1 - self.beta2) * change.square() + self.beta2 * moments.get(f"second:{name}", 0.0)
            moments |= {f"first:{name}": first, f"second:{name}": second}
            new[name] = old + self.learning_rate * first / (second.sqrt() + self.tau)
        return new
