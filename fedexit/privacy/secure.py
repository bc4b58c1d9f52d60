"""Aggregate by Eq. (1) without showing the server an individual update: pairwise masks over the holders of a layer.

Client i sends, for each weight that it holds, n_i L_i w_i and n_i L_i in fixed point modulo 2^64, plus masks:

    y_i = n_i L_i w_i + own mask of i + sum_{j > i} mask_ij - sum_{j < i} mask_ij      (i, j in S_l)

The masks of pairs cancel in the sum over S_l. When a client drops out, the others reveal the masks that they share with
it; those that arrived also reveal their own masks. A client reveals one of the two, never both, so an update that
arrives late stays hidden. This is the protocol of Bonawitz et al. (CCS 2017), layer by layer, without their secret
sharing: a client that vanishes after its upload, before it reveals, ends the round.

The server is honest but curious. Depths are public, each pair agrees on a secret beforehand, and clients do not collude
with the server. What remains visible: who took part, and the sums. The sums of n_i L_i of two depths differ by the
clients in between, so a tier with one client discloses its n_i (not its weights).
"""

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedexit.federated.aggregation import Aggregator, Update, client_weight
from fedexit.model.names import layer_of
from fedexit.support.errors import FedexitError

FRACTION_BITS = 24  # of the fixed point; 2^39 remains for the sum
_SEED_BYTES = 32


class Masked(NamedTuple):
    """The message of a client to the server. The server receives nothing else before the masks are revealed.

    client: its name.
    sums: n_i L_i w_i by weight, masked, of the shape of the weight, in uint64.
    totals: n_i L_i by weight, masked, of shape (1,), in uint64.
    """

    client: str
    sums: dict[str, np.ndarray]
    totals: dict[str, np.ndarray]


class Revealed(NamedTuple):
    """The seeds that a client reveals when the server has said whose message arrived.

    client: its name.
    own: the seed of its own masks.
    pairs: the seeds that it shares with clients whose message did not arrive, by their names.
    """

    client: str
    own: bytes
    pairs: dict[str, bytes]


def holders_of(updates: Mapping[str, Update]) -> dict[str, tuple[str, ...]]:
    """Return the names of the clients that hold each weight (S_l), sorted. `updates` are by client.

    Raises:
        FedexitError: fewer than two clients hold a weight.
    """
    found: dict[str, list[str]] = {}
    for client in sorted(updates):
        for name in _held(updates[client]):
            found.setdefault(name, []).append(client)
    holders = {name: tuple(clients) for name, clients in found.items()}
    check_holders(holders, updates)
    return holders


def check_holders(holders: Mapping[str, Collection[str]], arrived: Collection[str]) -> None:
    """Raise FedexitError for a weight that exactly one of the clients that `arrived` holds: its sum is that update."""
    for name, clients in holders.items():
        if len(left := sorted({*clients} & {*arrived})) == 1:
            where = f"layer {layer}" if (layer := layer_of(name)) else repr(name)
            raise FedexitError(
                f"only client {left[0]} holds {where}, so its sum would show that client's update; sample a second "
                "client of that depth, or lower the depth of this one"
            )


def pair_seeds(clients: Collection[str]) -> dict[str, dict[str, bytes]]:
    """Return a fresh secret per pair of clients, by client and partner. Devices would agree on it by their keys."""
    names = sorted(clients)
    found: dict[str, dict[str, bytes]] = {name: {} for name in names}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            found[one][other] = found[other][one] = secrets.token_bytes(_SEED_BYTES)
    return found


@dataclass(frozen=True)
class Participant:
    """A client of one secure round.

    name: its name.
    update: its update; it never leaves this object unmasked.
    holders: the clients that hold each weight, which is public (`holders_of`).
    pairs: the secrets that it shares with each other client (`pair_seeds`). Use them in one round only.
    own: the seed of its own masks.
    depth_exponent: g of Eq. (1).
    """

    name: str
    update: Update
    holders: Mapping[str, tuple[str, ...]]
    pairs: Mapping[str, bytes]
    own: bytes
    depth_exponent: float = 1.0

    def message(self) -> Masked:
        """Return the masked message. Raises FedexitError for numbers beyond the range of the fixed point."""
        check_holders(self.holders, self.pairs.keys() | {self.name})
        weight = client_weight(self.update, "layerwise", self.depth_exponent)
        sums, totals = {}, {}
        for name in _held(self.update):
            values = weight * self.update.weights[name].detach().cpu().double().numpy()
            sums[name] = self._masked(name, "sum", values)
            totals[name] = self._masked(name, "total", np.array([weight]))
        return Masked(self.name, sums, totals)

    def _masked(self, name: str, kind: str, values: np.ndarray) -> np.ndarray:
        found = encoded(values, len(self.holders[name]), f"client {self.name}: {name!r}")
        found += mask(self.own, name, kind, found.shape)
        for other in self.holders[name]:
            if other != self.name:
                found += _signed(self.name, other, mask(self.pairs[other], name, kind, found.shape))
        return found

    def reveal(self, arrived: Collection[str]) -> Revealed:
        """Return the seeds that remove the masks of the clients that `arrived`.

        Raises:
            FedexitError: the server says that this client's message did not arrive, or a layer would have one holder.
        """
        if self.name not in arrived:
            raise FedexitError(f"client {self.name} did not arrive, so it reveals no seed; leave it out of this round")
        check_holders(self.holders, arrived)
        return Revealed(self.name, self.own, {other: self.pairs[other] for other in self.pairs.keys() - {*arrived}})


class SecureServer:
    """Add masked messages and remove the masks from the sums.

    Args:
        global_weights: the current weights by name.
        holders: the clients that hold each weight (`holders_of`).
    """

    def __init__(self, global_weights: Mapping[str, Tensor], holders: Mapping[str, tuple[str, ...]]):
        self.global_weights, self.holders = global_weights, holders
        self.arrived: list[str] = []
        self._sums: dict[tuple[str, str], np.ndarray] = {}

    def receive(self, message: Masked) -> None:
        """Add a message. Raises FedexitError for a client's second message and for other weights than it holds."""
        held = {name for name, clients in self.holders.items() if message.client in clients}
        if message.client in self.arrived or not held or {*message.sums} != held or {*message.totals} != held:
            raise FedexitError(f"client {message.client} sent twice, or weights that it does not hold; leave it out")
        self.arrived.append(message.client)
        for kind, values in (("sum", message.sums), ("total", message.totals)):
            for name, masked in values.items():
                self._sums[name, kind] = self._sums.get((name, kind), np.uint64(0)) + masked

    def result(self, revealed: Sequence[Revealed]) -> dict[str, Tensor]:
        """Return the new global weights. A weight that nobody sent is returned as the same tensor object.

        Raises:
            FedexitError: a client that arrived has not revealed its seeds, or it alone holds a layer.
        """
        if missing := {*self.arrived} ^ {one.client for one in revealed}:
            raise FedexitError(f"client {min(missing)} has sent, but not revealed its seeds; repeat the round")
        check_holders(self.holders, self.arrived)
        return {name: self._mean(name, old, revealed) for name, old in self.global_weights.items()}

    def _mean(self, name: str, old: Tensor, revealed: Sequence[Revealed]) -> Tensor:
        if (name, "sum") not in self._sums:
            return old
        total, mean = (self._unmasked(name, kind, revealed) for kind in ("total", "sum"))
        return torch.from_numpy(mean / total).to(old)

    def _unmasked(self, name: str, kind: str, revealed: Sequence[Revealed]) -> np.ndarray:
        found = self._sums[name, kind].copy()
        for one in revealed:
            if one.client in self.holders[name]:
                found -= mask(one.own, name, kind, found.shape)
                for other in one.pairs.keys() & {*self.holders[name]}:
                    found -= _signed(one.client, other, mask(one.pairs[other], name, kind, found.shape))
        return found.view(np.int64) / 2.0**FRACTION_BITS


def _held(update: Update) -> list[str]:
    return [name for name in update.weights if (layer_of(name) or 0) <= update.depth]


def _signed(one: str, other: str, values: np.ndarray) -> np.ndarray:
    return values if one < other else np.uint64(0) - values


def mask(seed: bytes, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return uniform numbers of `shape` in uint64, made by SHAKE-256 from the seed, the weight's name and `kind`."""
    count = int(np.prod(shape, dtype=int))
    stream = hashlib.shake_256(seed + f"{kind}:{name}".encode()).digest(8 * count)
    return np.frombuffer(stream, "<u8").astype(np.uint64).reshape(shape)


def encoded(values: np.ndarray, clients: int, owner: str) -> np.ndarray:
    """Return `values` in fixed point as uint64, modulo 2^64.

    Raises:
        FedexitError: the sum over so many `clients` could leave the range, or a value is not finite.
    """
    limit = 2.0 ** (62 - FRACTION_BITS) / clients
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= limit:
        raise FedexitError(f"{owner} times n_i L_i is {largest:.3g}; at most {limit:.3g} fits: cap n_i")
    return np.rint(values * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)


def tolerance(updates: Sequence[Update], depth_exponent: float = 1.0) -> float:
    """Return the largest error of a secure mean by the fixed point, for a layer that all `updates` hold.

    Each product is rounded by at most half a unit: |S_l| 2^-25 / sum n_i L_i. Float32 weights add their own rounding.
    """
    weights = [client_weight(update, "layerwise", depth_exponent) for update in updates]
    return len(weights) * 2.0 ** -(FRACTION_BITS + 1) / sum(weights)


def secure_mean(
    global_weights: Mapping[str, Tensor],
    updates: Mapping[str, Update],
    dropped: Collection[str] = (),
    depth_exponent: float = 1.0,
) -> dict[str, Tensor]:
    """Return the average of Eq. (1) by a whole secure round in this process.

    The masks are fresh in each call and cancel exactly, so equal updates give bit-identical results.

    Args:
        global_weights: The current weights by name.
        updates: The update of each client by its name.
        dropped: Clients that agree on masks and then send nothing.
        depth_exponent: g of Eq. (1).

    Raises:
        FedexitError: as `aggregate`, and for a layer with a single holder, also after drop-outs.

    Example:
        >>> secure_mean(weights, {"ann": one, "ben": other})
    """
    known = Aggregator(global_weights, depth_exponent=depth_exponent)
    for update in updates.values():
        known.check(update)
    holders, pairs = holders_of(updates), pair_seeds(updates)
    server = SecureServer(global_weights, holders)
    clients = {
        name: Participant(name, update, holders, pairs[name], secrets.token_bytes(_SEED_BYTES), known.depth_exponent)
        for name, update in updates.items()
    }
    for name in clients.keys() - {*dropped}:
        server.receive(clients[name].message())
    return server.result([clients[name].reveal(server.arrived) for name in server.arrived])


def secure_rule(global_weights: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
    """Return the average of Eq. (1) of a round by secure aggregation: a rule for `Method(rule=secure_rule)`.

    Raises:
        FedexitError: as `secure_mean`.
    """
    return secure_mean(global_weights, {f"{place:06d}": update for place, update in enumerate(updates)})
