"""The depth policy: from a device, a task and the moment to the depth L_i of a client (paper, sec. 2.2).

The paper says in words that a client's depth follows from its hardware (memory and compute set a "safe upper bound")
and from the task, and gives no formula. Ours: the deepest exit whose training memory fits, with a margin, and whose
round ends before a deadline; or the task's own best exit, chosen on dev, if that is shallower.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from scipy.stats import norm

from fedexit.clients import LocalTraining
from fedexit.costs import Device, client_costs
from fedexit.errors import FedexitError
from fedexit.exits import MultiExitModel
from fedexit.streams import numpy_stream

MIB = 2**20


@dataclass(frozen=True)
class Profile:
    """A device as the policy sees it: bytes `free` for training, speeds and power, joules of its full `battery`.

    `allowance`: joules that a round may take. Both are infinite on mains.
    """

    name: str
    free: float
    device: Device
    battery: float = math.inf
    allowance: float = math.inf


def device_table() -> pd.DataFrame:
    """The devices that ship with the package, one per class, smallest first; `source` says where each figure is from.

    Columns `device, example, memory_mib`, `free_share` (of the memory, beside the system and the libraries),
    `dense_gmacs` (10^9 MACs per second of dense algebra in single precision), `training_share` (of these, sustained in
    training), `down_mbit, up_mbit, watts` (busy), `battery_wh` (empty: on mains), `source`.
    """
    with (files("fedexit") / "devices.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def profiles() -> dict[str, Profile]:
    """The devices of `device_table` by name."""
    return {
        row.device: Profile(
            row.device,
            free=row.memory_mib * MIB * row.free_share,
            device=Device(
                1e9 * row.dense_gmacs * row.training_share, 1e6 * row.down_mbit, 1e6 * row.up_mbit, row.watts
            ),
            battery=math.inf if math.isnan(row.battery_wh) else 3600 * row.battery_wh,
        )
        for row in device_table().itertuples()
    }


class Need(NamedTuple):
    """What a local round to one exit needs: bytes of training `memory`, `sent` bytes one way, multiply-accumulates."""

    memory: float
    sent: float
    macs: float


def needs_by_exit(model: MultiExitModel, lengths: Sequence[int], training: LocalTraining) -> dict[int, Need]:
    """The needs of a client with clips of these `lengths`, for each exit of `model`, shallow first.

    Arguments and errors are those of `fedexit.costs.client_costs`, whose memory model is the one that is calibrated.
    """
    found = {}
    for depth in model.exits:
        costs = client_costs(model, depth, lengths, training)
        found[depth] = Need(costs["memory_training"], costs["bytes"], costs["macs_forward"] + costs["macs_backward"])
    return found


@dataclass(frozen=True)
class Calibration:
    """From the memory model to what a process really takes: `factor` times the model, and `constant` bytes."""

    factor: float = 1.0
    constant: float = 0.0

    def corrected(self, memory: float) -> float:
        """Bytes to expect where the model says `memory`."""
        return self.factor * memory + self.constant


def calibrate(measured: pd.DataFrame) -> Calibration:
    """The `Calibration` with the smallest squared relative errors on measured peaks of training.

    measured: columns `model_mib, measured_mib` (of `fedexit.costs.memory` and `fedexit.costs_probe.measured_memory`), a
    row per measurement. Neither term may be negative, so that small models are not promised less than nothing.
    Raises FedexitError for fewer than two sizes and for peaks that are not above 0.
    """
    modelled, peaks = (measured[name].to_numpy(float) for name in ("model_mib", "measured_mib"))
    if len(set(modelled)) < 2:
        raise FedexitError("a calibration needs measurements of two sizes at least; measure at another depth as well")
    if not (peaks > 0).all():
        raise FedexitError("a measured peak is not above 0 MiB; measure again")
    (factor, constant), _ = nnls(np.stack([modelled / peaks, 1 / peaks], axis=1), np.ones(len(peaks)))
    return Calibration(float(factor), float(constant) * MIB)


@dataclass(frozen=True)
class Dynamics:
    """How a device changes from round to round; all of it is assumed.

    Other programs take a share of memory and of speed, between none and `busiest`, which stays alike for some rounds
    (`persistence`, its correlation from one to the next). A battery is charged from a random hour on for the share
    `charging` of each day, and ends the day with a charge within `ends`; a round may take `round_share` of what is
    left, and anything on the charger. Raises FedexitError for what is no share, and ends that are not in order.
    """

    busiest: float = 0.6
    persistence: float = 0.8
    rounds_per_day: float = 24.0
    charging: float = 0.3
    ends: tuple[float, float] = (0.1, 0.6)
    round_share: float = 0.02

    def __post_init__(self) -> None:
        shares = (self.busiest, self.persistence, self.charging, *self.ends, self.round_share)
        if not all(0 <= share < 1 for share in shares) or min(self.rounds_per_day, self.charging) <= 0:
            raise FedexitError(f"shares must be in [0, 1), charging and rounds_per_day > 0, not {self}")
        if len(self.ends) != 2 or self.ends[0] > self.ends[1]:
            raise FedexitError(f"ends must be two shares, the smaller first, not {self.ends}")


@dataclass(frozen=True)
class Faults:
    """What goes wrong in a round, each with a probability of its own.

    `killed`: the process is ended, or the link lost. `surge`: after the choice another program takes `surge_share` of
    the free memory. `wrong_report`: the device reports `wrong_factor` times its free memory. The last two end a client
    only where its exit then does not fit.
    """

    killed: float = 0.0
    surge: float = 0.0
    wrong_report: float = 0.0
    surge_share: float = 0.5
    wrong_factor: float = 2.0

    def __post_init__(self) -> None:
        if not all(0 <= p <= 1 for p in (self.killed, self.surge, self.wrong_report, self.surge_share)):
            raise FedexitError(f"probabilities and surge_share must be in [0, 1], not {self}")
        if self.wrong_factor <= 0:
            raise FedexitError(f"wrong_factor must be > 0, not {self.wrong_factor}")


@dataclass(frozen=True)
class Policy:
    """How depths are chosen. `margin`: the share of the free memory that stays free; `deadline`: seconds of a round.

    `task_exit`: the exit that is best for the task, chosen on dev; without it the deepest counts. Without `dynamics` a
    device is always the same. Raises FedexitError for numbers that make no sense and an exit without needs.
    """

    needs: Mapping[int, Need]
    task_exit: int | None = None
    calibration: Calibration = field(default_factory=Calibration)
    margin: float = 0.2
    deadline: float = 600.0
    dynamics: Dynamics | None = None
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        if not self.needs or self.task_exit not in (None, *self.needs):
            known = ", ".join(map(str, self.needs)) or "none"
            raise FedexitError(f"the task's exit {self.task_exit} is not among those with needs: {known}")
        if not 0 <= self.margin < 1 or self.deadline <= 0:
            raise FedexitError(f"margin must be in [0, 1) and deadline > 0, not {self.margin} and {self.deadline}")


def round_seconds(need: Need, device: Device) -> float:
    """Seconds of a local round: receive, compute, send, one after the other."""
    link = 1 / device.down_bits_per_second + 1 / device.up_bits_per_second
    return need.macs / device.macs_per_second + 8 * need.sent * link


def obstacle(profile: Profile, need: Need, policy: Policy) -> str:
    """What keeps the device from an exit with this `need`: `memory`, `time`, `energy`, or nothing (empty)."""
    seconds = round_seconds(need, profile.device)
    if policy.calibration.corrected(need.memory) > (1 - policy.margin) * profile.free:
        return "memory"
    if seconds > policy.deadline:
        return "time"
    if math.isfinite(profile.allowance) and seconds * profile.device.watts > profile.allowance:
        return "energy"
    return ""


def largest_safe_exit(profile: Profile, policy: Policy) -> int | None:
    """The deepest exit that the device can train to, whatever the task wants; None where not even one fits."""
    return max((depth for depth, need in policy.needs.items() if not obstacle(profile, need, policy)), default=None)


def depth_for(profile: Profile, policy: Policy) -> int | None:
    """L_i: the device's largest safe exit or the task's own, whichever is shallower; None: it takes no part."""
    safe = largest_safe_exit(profile, policy)
    return safe if None in (safe, policy.task_exit) else min(safe, policy.task_exit)


def limit(profile: Profile, policy: Policy) -> str:
    """What sets the device's depth: the `task`, or what keeps it from the next exit: `memory`, `time`, `energy`."""
    chosen = depth_for(profile, policy) or 0
    deeper = [depth for depth in sorted(policy.needs) if depth > chosen]
    if not deeper or chosen == policy.task_exit:
        return "task"
    return obstacle(profile, policy.needs[deeper[0]], policy)


def load(client: str, number: int, seed: int, dynamics: Dynamics) -> float:
    """Share of memory and speed that other programs take from `client` in round `number` (from 0 on).

    A first-order process of normal numbers, made uniform over 0 to `busiest`, from the stream (seed, "load", client).
    """
    steps = numpy_stream(seed, "load", client).standard_normal(number + 1)  # the same beginning for any `number`
    weights = dynamics.persistence ** np.arange(number, -1.0, -1.0)
    weights[1:] *= math.sqrt(1 - dynamics.persistence**2)
    return dynamics.busiest * float(norm.cdf((weights * steps).sum()))


def charge(client: str, number: int, seed: int, dynamics: Dynamics) -> tuple[float, bool]:
    """Share of its battery that `client` has in round `number` (from 0 on), and whether it is on the charger.

    From the streams (seed, "battery", client), its hour, and (seed, "battery", client, day), how the day ends.
    """
    hour = numpy_stream(seed, "battery", client).random()
    day, hour = divmod(number / dynamics.rounds_per_day + hour, 1)
    before, after = (numpy_stream(seed, "battery", client, d).uniform(*dynamics.ends) for d in (int(day) - 1, int(day)))
    if hour < dynamics.charging:
        return float(before + (1 - before) * hour / dynamics.charging), True
    return float(1 - (1 - after) * (hour - dynamics.charging) / (1 - dynamics.charging)), False


def at_round(profile: Profile, client: str, number: int, seed: int, dynamics: Dynamics) -> Profile:
    """The device as it is in round `number`: less memory and speed under load, an allowance from its battery."""
    left = 1 - load(client, number, seed, dynamics)
    level, plugged = charge(client, number, seed, dynamics)
    device = replace(profile.device, macs_per_second=left * profile.device.macs_per_second)
    allowance = math.inf if plugged else dynamics.round_share * level * profile.battery
    return replace(profile, free=left * profile.free, device=device, allowance=allowance)


class Outcome(NamedTuple):
    """A client's round: the depth that was `chosen`, the depth whose update arrives (`done`), and `why`."""

    chosen: int | None
    done: int | None
    why: str


def outcomes_of_round(policy: Policy, devices: Mapping[str, Profile], number: int, seed: int) -> dict[str, Outcome]:
    """What becomes of each client in round `number`; `devices` are the clients' own, by the client's name.

    `why` is `trained`, `no exit fits (memory)` (or time, or energy), `out of memory` or `killed`. A pure function of
    its arguments: a client's round depends on no other client, and on no earlier round.
    """
    return {client: _outcome(policy, client, profile, number, seed) for client, profile in devices.items()}


def depths_of_round(policy: Policy, devices: Mapping[str, Profile], number: int, seed: int) -> dict[str, int | None]:
    """The depth of each client's update in round `number`, None for those without one. See `outcomes_of_round`."""
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
    """Who trains each layer: columns `layer`, `clients` (the size of S_l) and `effective`.

    examples: n_i by client. `effective` is the number of equal clients whose mean would be as steady as that of S_l
    with the weights n_i L_i of Eq. (1): (sum of w)^2 / sum of w^2; 0 where nobody trains the layer.
    """
    rows = []
    for layer in range(1, layers + 1):
        weights = [examples[c] * d for c, d in depths.items() if d is not None and d >= layer]
        effective = sum(weights) ** 2 / sum(w * w for w in weights) if weights else 0.0
        rows.append((layer, len(weights), effective))
    return pd.DataFrame(rows, columns=["layer", "clients", "effective"])
