"""Account for privacy: epsilon of T rounds of the Gaussian mechanism on a Poisson sample of the clients.

One round adds noise of standard deviation z times the sensitivity to a sum over clients, each of which takes part with
probability q on its own. A client's data is present or absent (add or remove one client). The hardest pair of outputs
is N(0, z^2) against (1 - q) N(0, z^2) + q N(1, z^2) (Mironov et al. 2019; Zhu et al. 2022), and L is the logarithm of
their ratio. T rounds add T independent L.

Three ways to epsilon at a given delta:

* `rdp_epsilon`: Renyi orders, in closed form. It is a bound, some percent above the exact value.
* `pld_epsilon`: the distribution of L on a grid, and its T-fold convolution by FFT. It is the one to report.
* `contour_epsilon`: no distribution at all; an integral over the moments of L at complex orders, found by quadrature.

The last two are independent of each other, and exact up to numerical error: they agree within 1 % (a test checks it).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln, log_ndtr, logsumexp

from fedexit.support.checks import whole_number
from fedexit.support.errors import FedexitError

_ORDERS = np.array([*range(2, 33), *range(36, 128, 8), *range(128, 513, 64)])
_POINTS = 2**17  # of the grid of `pld_epsilon`
_LARGEST = 200.0  # an epsilon beyond this protects nothing


class Mechanism(NamedTuple):
    """The noise of a federation.

    noise: z, the standard deviation of the noise over the sensitivity of one client, > 0.
    rounds: T, the number of rounds, >= 1.
    sampling: q, the probability that a client takes part in a round, in (0, 1].
    """

    noise: float
    rounds: int
    sampling: float = 1.0


def rdp_epsilon(mechanism: Mechanism, delta: float) -> float:
    """Return an upper bound of epsilon from integer Renyi orders (Mironov et al. 2019; Canonne et al. 2020, prop. 12).

    Args:
        mechanism: The noise, rounds and sampling.
        delta: Probability in (0, 1), usually below one over the number of clients.

    Raises:
        FedexitError: a value is out of range.

    Example:
        >>> rdp_epsilon(Mechanism(noise=1.0, rounds=1), delta=1e-5)
    """
    check_mechanism(mechanism, delta)
    orders = mechanism.rounds * np.array([_log_moment(mechanism, order) for order in _ORDERS]) / (_ORDERS - 1)
    found = orders + np.log1p(-1 / _ORDERS) - (np.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1)
    return max(0.0, float(found.min()))


def _log_moment(mechanism: Mechanism, order: int) -> float:
    """Return log E[(P/Q)^order] under Q = N(0, z^2), by the binomial sum."""
    noise, _, share = mechanism
    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    with np.errstate(divide="ignore"):
        absent = np.where(k < order, (order - k) * np.log1p(-share) if share < 1 else -np.inf, 0.0)
    return float(logsumexp(binomial + absent + k * np.log(share) + k * (k - 1) / (2 * noise**2)))


def pld_epsilon(mechanism: Mechanism, delta: float) -> float:
    """Return epsilon from the distribution of the privacy loss, convolved by FFT. Arguments and errors: `rdp_epsilon`.

    Each L is rounded to the nearest point of the grid. L beyond the grid counts as a certain loss of privacy.
    """
    bound, ways = rdp_epsilon(mechanism, delta), _on_grid(mechanism, delta)
    return max(_root(lambda epsilon, way=way: way(epsilon) - delta, bound + 1.0) for way in ways)  # type: ignore[misc]


def _on_grid(mechanism: Mechanism, delta: float) -> list[Callable[[float], float]]:
    """Return delta as a function of epsilon, near `delta`, when a client is removed and when one is added."""
    reach = rdp_epsilon(mechanism, 1e-6 * delta) + 1.0
    losses = np.linspace(-reach, reach, _POINTS, endpoint=False)
    ends = np.append(losses, reach) - (losses[1] - losses[0]) / 2
    found: list[Callable[[float], float]] = []
    for way in ("remove", "add"):
        masses = np.diff(_cumulative(mechanism, ends, way))
        beyond = mechanism.rounds * max(0.0, 1 - masses.sum())  # on either side of the grid: it counts as lost
        total = np.fft.fftshift(np.fft.ifft(np.fft.fft(np.fft.ifftshift(masses)) ** mechanism.rounds).real).clip(0)
        found.append(partial(_delta, losses, total, beyond))
    return found


def _delta(losses: np.ndarray, masses: np.ndarray, beyond: float, epsilon: float) -> float:
    above = losses > epsilon
    return float(beyond + (masses[above] * -np.expm1(epsilon - losses[above])).sum())


def _cumulative(mechanism: Mechanism, losses: np.ndarray, way: str) -> np.ndarray:
    """Return the probability that L of one round is at most each of `losses`."""
    noise, _, share = mechanism
    signed = losses if way == "remove" else -losses
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(np.expm1(signed) / share + 1)  # of the two Gaussians, where the loss is reached
    x = np.where(np.isnan(ratio), -np.inf, ratio) * noise**2 + 0.5
    x = np.where(signed > 500, noise**2 * (signed - np.log(share)) + 0.5, x)  # where exp would overflow
    below = np.exp(log_ndtr(x / noise))
    if way == "add":  # L falls in x, under N(0, z^2)
        return np.exp(log_ndtr(-x / noise))
    return (1 - share) * below + share * np.exp(log_ndtr((x - 1) / noise))


def contour_epsilon(mechanism: Mechanism, delta: float) -> float:
    """Return epsilon by an integral along a vertical line of complex orders. Arguments and errors: `rdp_epsilon`.

    With K(s) = T log E[exp(s L)], and any t > 0,

        delta(epsilon) = 1/(2 pi) * integral over u of exp(K(s) - s epsilon) / (s (s + 1)),  s = t + i u.

    Alghamdi et al. (ICML 2023) found it. The line passes where the integrand is smallest on the real axis.
    """
    bound = rdp_epsilon(mechanism, delta)
    return max(0.0, *(_on_contour(mechanism, delta, way, bound) for way in ("remove", "add")))


def _on_contour(mechanism: Mechanism, delta: float, way: str, bound: float) -> float:
    loss, log_weight = _quadrature(mechanism, way)
    spread = float(np.sqrt(mechanism.rounds * np.average(loss**2, weights=np.exp(log_weight))))
    lines = np.geomspace(0.05, 400.0, 120)
    on_axis = mechanism.rounds * logsumexp(lines[:, None] * loss + log_weight, axis=1)
    u = np.linspace(0, 12 / spread, 400)  # the integrand falls like a Gaussian of this width

    def excess(epsilon: float) -> float:
        place = np.argmin(on_axis - lines * epsilon - np.log(lines * (lines + 1)))
        line, top = lines[place], on_axis[place]
        tilted = np.exp(line * loss + log_weight - top / mechanism.rounds)
        means = np.exp(1j * u[:, None] * loss) @ tilted  # E[exp(s L)] over its value on the axis
        s = line + 1j * u
        values = (means**mechanism.rounds * np.exp(-1j * u * epsilon) / (s * (s + 1))).real
        return float(np.exp(top - line * epsilon) * np.trapezoid(values, u) / np.pi - delta)

    return _root(excess, bound + 1.0)


def _quadrature(mechanism: Mechanism, way: str) -> tuple[np.ndarray, np.ndarray]:
    """Return L at the points of a fine grid of outputs, and the logarithms of their probabilities."""
    noise, _, share = mechanism
    reach = 14 * noise
    x = np.linspace(-reach, 1 + reach, 1501)
    absent = -(x**2) / (2 * noise**2)
    present = np.logaddexp(np.log1p(-share) if share < 1 else -np.inf, np.log(share) + (2 * x - 1) / (2 * noise**2))
    loss, weight = (present, absent + present) if way == "remove" else (-present, absent)
    return loss, weight - logsumexp(weight)


def _root(excess: Callable[[float], float], high: float) -> float:
    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, high, xtol=1e-7))


def noise_for(epsilon: float, delta: float, rounds: int, sampling: float = 1.0) -> float:
    """Return the smallest z at which `rounds` rounds cost at most `epsilon`, by `pld_epsilon`, to 0.1 %.

    Raises:
        FedexitError: a value is out of range.

    Example:
        >>> noise_for(epsilon=3.0, delta=1e-3, rounds=20, sampling=0.5)
    """
    if not 0.01 <= epsilon <= _LARGEST:
        raise FedexitError(f"epsilon must be from 0.01 to {_LARGEST:g}, not {epsilon}")
    check_mechanism(Mechanism(1.0, rounds, sampling), delta)

    def missed(log_noise: float) -> float:
        """Return the logarithm of delta at `epsilon`, over the allowed one."""
        mechanism = Mechanism(math.exp(log_noise), rounds, sampling)
        return math.log(max(way(epsilon) for way in _on_grid(mechanism, delta)) + 1e-300) - math.log(delta)

    low = high = 0.0
    while missed(high) > 0:
        high += 1.0
    while low > -4 and missed(low) <= 0:
        low -= 1.0
    return math.exp(brentq(missed, low, high, xtol=1e-4) + 2e-4) if missed(low) > 0 else math.exp(low)


def check_mechanism(mechanism: Mechanism, delta: float) -> None:
    """Raise FedexitError for a value out of range."""
    noise, rounds, share = mechanism
    whole_number(rounds, "rounds", 1)
    for name, value, fits, wanted in (
        ("noise", noise, 0 < noise < float("inf"), "> 0"),
        ("sampling", share, 0 < share <= 1, "in (0, 1]"),
        ("delta", delta, 0 < delta < 1, "in (0, 1)"),
    ):
        if not fits:
            raise FedexitError(f"{name} must be {wanted}, not {value}")
