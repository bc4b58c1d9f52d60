"""Predict what a federation costs on each device of a fleet, before it runs: depth, memory, time and bytes."""

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from fedexit.devices.policy import Policy, coverage, depth_for, depths_of_round, limit, needs_by_exit, round_seconds
from fedexit.devices.profiles import Calibration, Profile, profiles
from fedexit.federated.clients import LocalTraining
from fedexit.federated.methods import Method, find_method
from fedexit.federated.resuming import Depths
from fedexit.flower.fleet import Node
from fedexit.model.exits import MultiExitModel
from fedexit.support.checks import whole_number
from fedexit.support.errors import FedexitError


def plan(
    nodes: Sequence[Node],
    model: MultiExitModel,
    rounds: int,
    seconds: float = 3.0,
    training: LocalTraining | None = None,
    method: str | Method = "layerwise",
    calibration: Calibration | None = None,
    deadline: float = 600.0,
) -> pd.DataFrame:
    """Predict the costs of each client of a fleet: a row per client, in the fleet's order.

    Args:
        nodes: The fleet; `device` names a profile for each (`fedexit.devices.profiles.profiles`).
        model: The global model.
        rounds: Number of rounds, >= 1.
        seconds: Length of a clip.
        training: Options of local training.
        method: Its objective decides which heads a client trains and sends.
        calibration: Maps the memory of the cost model to that of real processes.
        deadline: Seconds of a round.

    Returns:
        `client, device, registered` (depth in the fleet file), `safe` (deepest exit that the device can train, 0 for
        none), `depth` (the shallower of both), `limit` (what keeps it from the next exit: memory, time, energy, or
        fleet), `memory` in bytes, `seconds` per round, `bytes` per round in both directions, `bytes_total` of all
        rounds, and `straggler` (whether it is the slowest of a round). Clients without a safe exit have depth 0.

    Raises:
        FedexitError: a client without a known device, a depth that is not an exit, and values out of range.

    Example:
        >>> plan(read_fleet("fleet.csv"), model, rounds=20)
    """
    whole_number(rounds, "rounds", 1)
    rows = []
    for node, profile, policy in _policies(nodes, model, seconds, training, method, calibration, deadline):
        safe = depth_for(profile, policy) or 0
        depth = min(safe, node.depth)
        depth = max((exit for exit in model.exits if exit <= depth), default=0)
        why = "fleet" if safe >= node.depth else limit(profile, policy)
        need = policy.needs.get(depth)
        costs = (policy.calibration.corrected(need.memory), round_seconds(need, profile.device)) if need else (0, 0.0)
        sent = 2 * need.sent if need else 0
        rows.append([node.client, node.device, node.depth, safe, depth, why, *costs, sent, sent * rounds])
    columns = ["client", "device", "registered", "safe", "depth", "limit", "memory", "seconds", "bytes", "bytes_total"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(straggler=(table["seconds"] == table["seconds"].max()) & (table["depth"] > 0))


def layers_trained(table: pd.DataFrame, nodes: Sequence[Node], layers: int) -> pd.DataFrame:
    """Return `coverage` of a `plan`: for each layer the number of clients that train it, which may be 0."""
    depths: Mapping[str, int | None] = {row.client: row.depth or None for row in table.itertuples()}
    return coverage(depths, {node.client: node.examples for node in nodes}, layers)


def summary(table: pd.DataFrame, layers: pd.DataFrame, rounds: int) -> str:
    """Return the totals of a plan for the whole fleet: time, bytes, straggler, layers and clients that do not train."""
    slowest = table.loc[table["seconds"].idxmax()]
    lines = [
        f"{rounds} rounds take {rounds * slowest['seconds'] / 60:.1f} min and send "
        f"{table['bytes_total'].sum() / 1e6:.1f} MB in both directions together.",
        f"The slowest of a round is {slowest['client']} ({slowest['device']}): {slowest['seconds']:.1f} s.",
    ]
    if untrained := layers.loc[layers["clients"] == 0, "layer"].tolist():
        lines.append(f"Nobody trains layers {', '.join(map(str, untrained))}: add a stronger device, or cut the model.")
    if idle := table.loc[table["depth"] == 0, "client"].tolist():
        lines.append(f"No exit fits {', '.join(idle)}: leave them out, or take a smaller model or batch.")
    return "\n".join(lines)


def depths_by_policy(nodes: Sequence[Node], model: MultiExitModel, training: LocalTraining, seed: int) -> Depths:
    """Return a function for `federate(depths=...)`: each round's depths by policy, at most those of the fleet file."""
    parts = list(_policies(nodes, model, 3.0, training, "layerwise", None, 600.0))
    return partial(_depths_of, parts, model.exits, seed)


def _depths_of(parts: list, exits: Sequence[int], seed: int, number: int) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for node, profile, policy in parts:
        depth = depths_of_round(policy, {node.client: profile}, number, seed)[node.client]
        found[node.client] = max((exit for exit in exits if exit <= min(depth or 0, node.depth)), default=None)
    return found


def _policies(
    nodes: Sequence[Node],
    model: MultiExitModel,
    seconds: float,
    training: LocalTraining | None,
    method: str | Method,
    calibration: Calibration | None,
    deadline: float,
) -> list[tuple[Node, Profile, Policy]]:
    """Return each node with the profile of its device and its policy, whose needs depend on its number of clips."""
    known, training, objective = profiles(), training or LocalTraining(), find_method(method).objective
    if not 0 < seconds < float("inf"):
        raise FedexitError(f"the length of a clip must be > 0 seconds, not {seconds}")
    needs: dict[int, Policy] = {}
    parts = []
    for node in nodes:
        if node.device not in known:
            what = f"unknown device {node.device!r}" if node.device else "no device is named"
            raise FedexitError(f"client {node.client}: {what} (column device); known: {', '.join(known)}")
        if node.depth not in model.exits:
            raise FedexitError(f"client {node.client} has depth {node.depth}; the model has exits {model.exits}")
        if node.examples not in needs:
            found = needs_by_exit(model, [round(16_000 * seconds)] * node.examples, training, objective)
            needs[node.examples] = Policy(found, calibration=calibration or Calibration(), deadline=deadline)
        parts.append((node, known[node.device], needs[node.examples]))
    return parts
