"""Simulate how devices change over rounds: load, battery and faults."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from fedexit.devices.profiles import Profile
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


@dataclass(frozen=True)
class Dynamics:
    """Changes of a device from round to round. All values are assumptions.

    Other programs take a share of memory and speed. A battery is charged each day from a random hour on; while it
    charges, energy is not limited. Raises FedexitError for shares outside [0, 1) and ends that are not in order.
    """

    busiest: float = 0.6  # largest share of memory and speed that other programs take
    persistence: float = 0.8  # correlation of that share between consecutive rounds
    rounds_per_day: float = 24.0  # > 0
    charging: float = 0.3  # share of the day on the charger, > 0
    ends: tuple[float, float] = (0.1, 0.6)  # range of the charge at the end of a day, smaller number first
    round_share: float = 0.02  # share of the charge that one round may use

    def __post_init__(self) -> None:
        shares = (self.busiest, self.persistence, self.charging, *self.ends, self.round_share)
        if not all(0 <= share < 1 for share in shares) or not (self.rounds_per_day > 0 and self.charging > 0):
            raise FedexitError(f"shares must be in [0, 1), charging and rounds_per_day > 0, not {self}")
        if len(self.ends) != 2 or self.ends[0] > self.ends[1]:
            raise FedexitError(f"ends must be two shares, the smaller first, not {self.ends}")


@dataclass(frozen=True)
class Faults:
    """Probabilities of faults in a round. A surge or a wrong report ends a client only if its exit then does not fit.

    Raises FedexitError for numbers out of range.
    """

    killed: float = 0.0  # the process is killed, or the link is lost
    surge: float = 0.0  # after the choice of the depth, another program takes memory
    wrong_report: float = 0.0  # the device reports a wrong amount of free memory
    surge_share: float = 0.5  # share of the free memory that a surge takes
    wrong_factor: float = 2.0  # reported memory over free memory, > 0

    def __post_init__(self) -> None:
        if not all(0 <= p <= 1 for p in (self.killed, self.surge, self.wrong_report, self.surge_share)):
            raise FedexitError(f"probabilities and surge_share must be in [0, 1], not {self}")
        if not self.wrong_factor > 0:
            raise FedexitError(f"wrong_factor must be > 0, not {self.wrong_factor}")


def load(client: str, number: int, seed: int, dynamics: Dynamics) -> float:
    """Return the share of memory and speed that other programs take from `client` in round `number` (from 0).

    It is a first-order process of normal numbers, mapped to a uniform distribution over 0 to `busiest`. Its stream is
    (seed, "load", client).
    """
    steps = numpy_stream(seed, "load", client).standard_normal(number + 1)  # the same beginning for any `number`
    weights = dynamics.persistence ** np.arange(number, -1.0, -1.0)
    weights[1:] *= math.sqrt(1 - dynamics.persistence**2)
    return dynamics.busiest * float(norm.cdf((weights * steps).sum()))


def charge(client: str, number: int, seed: int, dynamics: Dynamics) -> tuple[float, bool]:
    """Return the charge of `client`'s battery in round `number` (from 0), and whether it is on the charger.

    The stream (seed, "battery", client) gives the hour, the stream (seed, "battery", client, day) the charge at the end
    of a day.
    """
    hour = numpy_stream(seed, "battery", client).random()
    day, hour = divmod(number / dynamics.rounds_per_day + hour, 1)
    before, after = (numpy_stream(seed, "battery", client, d).uniform(*dynamics.ends) for d in (int(day) - 1, int(day)))
    if hour < dynamics.charging:
        return float(before + (1 - before) * hour / dynamics.charging), True
    return float(1 - (1 - after) * (hour - dynamics.charging) / (1 - dynamics.charging)), False


def at_round(profile: Profile, client: str, number: int, seed: int, dynamics: Dynamics) -> Profile:
    """Return the device in round `number`: with less memory and speed under load, and the energy that it may use."""
    left = 1 - load(client, number, seed, dynamics)
    level, plugged = charge(client, number, seed, dynamics)
    device = replace(profile.device, macs_per_second=left * profile.device.macs_per_second)
    allowance = math.inf if plugged else dynamics.round_share * level * profile.battery
    return replace(profile, free=left * profile.free, device=device, allowance=allowance)
