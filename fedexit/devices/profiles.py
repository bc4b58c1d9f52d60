"""Device profiles and the calibration of predicted round times."""

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
    with (files("fedexit.devices") / "devices.csv").open(encoding="utf-8") as file:
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

    measured: columns `model_mib, measured_mib` (of `fedexit.model.costs.memory` and
    `fedexit.devices.probe.measured_memory`), a
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
