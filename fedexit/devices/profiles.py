"""List device profiles, and calibrate the memory model by measured memory."""

import math
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from fedexit.devices.fleet import Device
from fedexit.support.errors import FedexitError

MIB = 2**20


@dataclass(frozen=True)
class Profile:
    """A device as the policy sees it."""

    name: str  # the class of the device
    free: float  # bytes that are free for training
    device: Device  # speeds and power
    battery: float = math.inf  # joules of the full battery; infinite on mains
    allowance: float = math.inf  # joules that a round may use

    def __post_init__(self) -> None:
        if any(map(math.isnan, (self.free, self.battery, self.allowance))):
            raise FedexitError(f"memory and energy of a device must be numbers, not {self}; leave out what is unknown")


def device_table() -> pd.DataFrame:
    """Return the devices that ship with the package, one per class, smallest first; `source` gives the sources.

    Columns `device, example, memory_mib`, `free_share` (of the memory, beside the system and the libraries),
    `dense_gmacs` (10^9 MACs per second of dense algebra in single precision), `training_share` (of these, sustained in
    training), `down_mbit, up_mbit, watts` (busy), `battery_wh` (empty: on mains), `source`.
    """
    with (files("fedexit.devices") / "devices.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def profiles() -> dict[str, Profile]:
    """Return the devices of `device_table` by name."""
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


@dataclass(frozen=True)
class Calibration:
    """A linear map from the memory model to the memory of a real process."""

    factor: float = 1.0  # times the model
    constant: float = 0.0  # plus so many bytes

    def __post_init__(self) -> None:
        if not (self.factor >= 0 and math.isfinite(self.factor) and math.isfinite(self.constant)):
            raise FedexitError(f"factor must be a number >= 0 and constant finite, not {self}")

    def corrected(self, memory: float) -> float:
        """Return the bytes to expect for `memory` bytes of the model."""
        return self.factor * memory + self.constant


def calibrate(measured: pd.DataFrame) -> Calibration:
    """Fit the `Calibration` with the smallest squared relative errors on measured peaks of training.

    Neither term is negative, so the expected memory of a small model is not negative either.

    Args:
        measured: One row per measurement, with the columns `model_mib` (`fedexit.model.costs.memory`) and
            `measured_mib` (`fedexit.devices.probe.measured_memory`).

    Raises FedexitError for fewer than two sizes and for peaks that are not above 0.
    """
    modelled, peaks = (measured[name].to_numpy(float) for name in ("model_mib", "measured_mib"))
    if len(set(modelled)) < 2:
        raise FedexitError("a calibration needs measurements of at least two sizes; measure at another depth as well")
    if not (peaks > 0).all():
        raise FedexitError("a measured peak is not above 0 MiB; measure again")
    (factor, constant), _ = nnls(np.stack([modelled / peaks, 1 / peaks], axis=1), np.ones(len(peaks)))
    return Calibration(float(factor), float(constant) * MIB)
