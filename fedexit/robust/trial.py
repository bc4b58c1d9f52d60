"""Try rules against faults on frozen statistics: only heads learn, all clients side by side, so a round takes ms.

A client of depth L_i trains the heads of all exits up to L_i, each by gradient descent on the error of all its clips
together. Its head is a group of its own, so S_l of exit e are the clients that are at least as deep as e.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from fedexit.federated.regime import Statistics
from fedexit.robust.faults import FAULTS, sent
from fedexit.robust.rules import ByLayer
from fedexit.robust.scores import norms_and_cosines
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream, seeded

Heads = dict[int, Tensor]  # (labels, 2D + 1) by exit: weights and bias


@dataclass(frozen=True)
class Fleet:
    """The statistics of clients with the same number of clips.

    names: the clients.
    depths: the depth of each.
    reads: what the heads of an exit read, with a one for the bias (holders, clips, 2D + 1), by exit.
    targets: labels (clients, clips).
    labels: number of labels.
    """

    names: Sequence[str]
    depths: Sequence[int]
    reads: Mapping[int, Tensor]
    targets: Tensor
    labels: int

    def holders(self, exit: int) -> list[int]:
        """Return the places of the clients that train the head of an exit."""
        return [place for place, depth in enumerate(self.depths) if depth >= exit]


def fleet_of(known: Mapping[str, Statistics], depths: Mapping[str, int], labels: int) -> Fleet:
    """Return the fleet of clients with these statistics and depths.

    Raises:
        FedexitError: two clients have other numbers of clips.
    """
    if len({len(read.targets) for read in known.values()}) != 1:
        raise FedexitError("clients of a trial need equal numbers of clips; cut their statistics to the smallest")
    exits = sorted({exit for read in known.values() for exit in read.by_exit})
    reads = {
        exit: torch.stack([with_one(read.by_exit[exit]) for name, read in known.items() if depths[name] >= exit])
        for exit in exits
    }
    targets = torch.stack([read.targets for read in known.values()])
    return Fleet(list(known), [depths[name] for name in known], reads, targets, labels)


def with_one(reads: Tensor) -> Tensor:
    """Return statistics (..., 2D) with a one at the end of each row, for the bias."""
    return nn.functional.pad(reads, (0, 1), value=1.0)


def tried(
    fleet: Fleet, rule: ByLayer, faults: Mapping[str, str], rounds: int, rate: float, seed: int = 0
) -> tuple[Heads, pd.DataFrame]:
    """Train the heads of a fleet in which some clients fail or attack.

    Args:
        fleet: The clients.
        rule: A rule of `fedexit.robust.rules`; `Capped(cap=0)` is Eq. (1).
        faults: A name in `FAULTS` by client.
        rounds: Number of rounds.
        rate: Learning rate of the clients' gradient step.
        seed: Seed of the first heads and of the shuffled labels.

    Returns:
        The heads, and a ledger for `fedexit.robust.scores.culprits`. Updates with NaN are refused, as by a guard.

    Raises:
        FedexitError: an unknown fault.
    """
    if unknown := {*faults.values()} - FAULTS.keys():
        raise FedexitError(f"unknown fault {min(unknown)!r}; known: {', '.join(FAULTS)}")
    given, targets = [faults.get(name, "") for name in fleet.names], fleet.targets.clone()
    for place, fault in enumerate(given):
        if fault == "labels":
            order = numpy_stream(seed, "labels", fleet.names[place]).permutation(targets.shape[1])
            targets[place] = targets[place][torch.from_numpy(order)]
    with seeded(seed, "heads"):
        heads = {exit: 0.01 * torch.randn(fleet.labels, reads.shape[2]) for exit, reads in fleet.reads.items()}
    first: dict[tuple[int, int], Tensor] = {}
    rows: list[dict[str, object]] = []
    for number in range(1, rounds + 1):
        about: list[dict[str, object]] = [{"round": number, "client": name, "refused": ""} for name in fleet.names]
        for exit, old in heads.items():
            places = fleet.holders(exit)
            own = stepped(old, fleet.reads[exit], targets[places], rate)
            plot = [one for place, one in zip(places, own, strict=True) if given[place] == "collusion"]
            arrived = torch.stack(
                [
                    sent(given[place], old, one, first.setdefault((exit, place), one), plot)
                    for place, one in zip(places, own, strict=True)
                ]
            )
            changes = (arrived - old).flatten(1)
            good = changes.isfinite().all(dim=1)
            kept = [place for place, fine in zip(places, good.tolist(), strict=True) if fine]
            for place in {*places} - {*kept}:
                about[place]["refused"] = "not finite"
            shares = torch.tensor([float(fleet.depths[place]) for place in kept])  # equal n_i
            heads[exit] = old + rule.combined(changes[good], shares).view_as(old)
            for place, norm, cosine in zip(kept, *norms_and_cosines(changes[good]), strict=True):
                about[place] |= {f"norm head {exit}": norm, f"cosine head {exit}": cosine}
        rows += about
    return heads, pd.DataFrame(rows)


def stepped(old: Tensor, reads: Tensor, targets: Tensor, rate: float) -> Tensor:
    """Return the head `old` after one gradient step of each client (holders, labels, 2D + 1)."""
    wrong = torch.softmax(reads @ old.T, dim=2) - nn.functional.one_hot(targets, len(old))
    return old - rate * (wrong.transpose(1, 2) @ reads) / reads.shape[1]


def head_errors(heads: Heads, read: Statistics) -> pd.DataFrame:
    """Return the errors of heads on the statistics of clips with labels, in percent: `exit, value, n`."""
    rows = []
    for exit, head in heads.items():
        wrong = (with_one(read.by_exit[exit]) @ head.T).argmax(dim=1) != read.targets
        rows.append((exit, 100 * float(wrong.double().mean()), len(read.targets)))
    return pd.DataFrame(rows, columns=["exit", "value", "n"])
