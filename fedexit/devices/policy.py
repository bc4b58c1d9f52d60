"""Choose the depth L_i of a client from its device, its task and the moment: the depth policy (paper, sec. 2.2).

The paper states that hardware (memory and compute set a "safe upper bound") and task decide a client's depth; it gives
no formula. Ours is the deepest exit whose training memory fits, with a margin, and whose round ends before a deadline.
If the task's best exit, chosen on dev, is shallower, it is taken instead.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pandas as pd

from fedexit.devices.dynamics import Dynamics, Faults, at_round
from fedexit.devices.fleet import Device
from fedexit.devices.profiles import Calibration, Profile
from fedexit.federated.clients import LocalTraining
from fedexit.federated.ledger import client_costs
from fedexit.federated.objectives import Objective
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


class Need(NamedTuple):
    """Resources of a local round to one exit."""

    memory: float  # bytes of training memory
    sent: float  # bytes that are sent, and received as well
    macs: float  # multiply-accumulates


def needs_by_exit(
    model: MultiExitModel,
    lengths: Sequence[int],
    training: LocalTraining,
    objective: Objective = Objective(),  # noqa: B008 (frozen)
) -> dict[int, Need]:
    """Return the needs of a client with clips of these `lengths`, for each exit of `model`, shallow first.

    Arguments and errors are those of `fedexit.federated.ledger.client_costs`.
    """
    if not len(lengths):
        raise FedexitError("a client without clips has no needs; give the length of at least one clip")
    found = {}
    for depth in model.exits:
        costs = client_costs(model, depth, lengths, training, objective=objective)
        found[depth] = Need(costs["memory_training"], costs["bytes"], costs["macs_forward"] + costs["macs_backward"])
    return found


@dataclass(frozen=True)
class Policy:
    """The rule by which depths are chosen. Raises FedexitError for numbers out of range and an exit without needs."""

    needs: Mapping[int, Need]  # resources by exit (`needs_by_exit`)
    task_exit: int | None = None  # best exit for the task, chosen on dev; None: the deepest
    calibration: Calibration = field(default_factory=Calibration)  # maps memory by the model to real memory
    margin: float = 0.2  # share of the free memory that stays free, in [0, 1)
    deadline: float = 600.0  # seconds of a round, > 0
    dynamics: Dynamics | None = None  # changes over rounds; None: a device is always the same
    faults: Faults = field(default_factory=Faults)  # probabilities of faults; by default 0

    def __post_init__(self) -> None:
        if not self.needs:
            raise FedexitError("needs is empty; give the needs of at least one exit")
        if self.task_exit not in (None, *self.needs):
            known = ", ".join(map(str, self.needs))
            raise FedexitError(f"the task's exit {self.task_exit} has no entry in needs; known: {known}")
        if not 0 <= self.margin < 1 or not self.deadline > 0:
            raise FedexitError(f"margin must be in [0, 1) and deadline > 0, not {self.margin} and {self.deadline}")


def round_seconds(need: Need, device: Device) -> float:
    """Return the seconds of a local round: receive, compute and send, one after the other."""
    link = 1 / device.down_bits_per_second + 1 / device.up_bits_per_second
    return need.macs / device.macs_per_second + 8 * need.sent * link


def obstacle(profile: Profile, need: Need, policy: Policy) -> str:
    """Return the resource that keeps the device from an exit: `memory`, `time`, `energy`, or "" for none."""
    seconds = round_seconds(need, profile.device)
    if policy.calibration.corrected(need.memory) > (1 - policy.margin) * profile.free:
        return "memory"
    if seconds > policy.deadline:
        return "time"
    if math.isfinite(profile.allowance) and seconds * profile.device.watts > profile.allowance:
        return "energy"
    return ""


def largest_safe_exit(profile: Profile, policy: Policy) -> int | None:
    """Return the deepest exit that the device can train to, for any task; None if no exit fits."""
    return max((depth for depth, need in policy.needs.items() if not obstacle(profile, need, policy)), default=None)


def depth_for(profile: Profile, policy: Policy) -> int | None:
    """Return L_i, the shallower of the device's largest safe exit and the task's exit; None if no exit fits."""
    safe = largest_safe_exit(profile, policy)
    return safe if safe is None or policy.task_exit is None else min(safe, policy.task_exit)


def limit(profile: Profile, policy: Policy) -> str:
    """Return the limit of the device's depth: the `task`, or `memory`, `time` or `energy` of the next exit."""
    chosen = depth_for(profile, policy) or 0
    deeper = [depth for depth in sorted(policy.needs) if depth > chosen]
    if not deeper or chosen == policy.task_exit:
        return "task"
    return obstacle(profile, policy.needs[deeper[0]], policy)


class Outcome(NamedTuple):
    """The outcome of a client's round."""

    chosen: int | None  # the depth that the policy chose
    done: int | None  # the depth of the update that arrives; None if none does
    why: str  # the reason: see `outcomes_of_round`


def outcomes_of_round(policy: Policy, devices: Mapping[str, Profile], number: int, seed: int) -> dict[str, Outcome]:
    """Return the outcome of round `number` for each client; `devices` are profiles by the client's name.

    `why` is `trained`, `no exit fits (memory)` (or time, or energy), `out of memory` or `killed`. The function is pure:
    the outcome of a client depends on no other client and on no earlier round.
    """
    return {client: _outcome(policy, client, profile, number, seed) for client, profile in devices.items()}


def depths_of_round(policy: Policy, devices: Mapping[str, Profile], number: int, seed: int) -> dict[str, int | None]:
    """Return the depth of each client's update in round `number`; None for no update. See `outcomes_of_round`."""
    return {client: outcome.done for client, outcome in outcomes_of_round(policy, devices, number, seed).items()}


def _outcome(policy: Policy, client: str, profile: Profile, number: int, seed: int) -> Outcome:
    faults = policy.faults
    if policy.dynamics:
        profile = at_round(profile, client, number, seed, policy.dynamics)
    wrong, surge, killed = numpy_stream(seed, "faults", client, number).random(3) < (
        faults.wrong_report,
        faults.surge,
        faults.killed,
    )
    reported = replace(profile, free=faults.wrong_factor * profile.free) if wrong else profile
    chosen = depth_for(reported, policy)
    if chosen is None:
        return Outcome(None, None, f"no exit fits ({limit(reported, policy)})")
    left = (1 - faults.surge_share if surge else 1) * profile.free
    if policy.calibration.corrected(policy.needs[chosen].memory) > left:
        return Outcome(chosen, None, "out of memory")
    return Outcome(chosen, None, "killed") if killed else Outcome(chosen, chosen, "trained")


def coverage(depths: Mapping[str, int | None], examples: Mapping[str, int], layers: int) -> pd.DataFrame:
    """Count the clients that train each layer: columns `layer`, `clients` (the size of S_l) and `effective`.

    `effective` is the number of equal clients whose mean would have the variance of that of S_l with the weights
    w = n_i L_i of Eq. (1): (sum of w)^2 / sum of w^2. It is 0 if no client trains the layer. examples: n_i by client.
    """
    rows = []
    for layer in range(1, layers + 1):
        weights = [examples[c] * d for c, d in depths.items() if d is not None and d >= layer]
        effective = sum(weights) ** 2 / sum(w * w for w in weights) if weights else 0.0
        rows.append((layer, len(weights), effective))
    return pd.DataFrame(rows, columns=["layer", "clients", "effective"])
