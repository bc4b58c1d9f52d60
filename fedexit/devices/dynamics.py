"""How devices change over rounds: load, battery and faults."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from fedexit.devices.profiles import Profile
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


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
