"""Compute the time and energy of each local round on simulated devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from fedexit.model.costs import clip_macs, held_weights, memory, sizes_by_layer
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError


@dataclass(frozen=True)
class Device:
    """A simulated device."""

    macs_per_second: float  # multiply-accumulates per second in training
    down_bits_per_second: float  # speed of its link, towards the device
    up_bits_per_second: float  # speed of its link, away from the device
    watts: float = float("nan")  # power when busy; NaN if unknown

    def __post_init__(self) -> None:
        speeds = self.macs_per_second, self.down_bits_per_second, self.up_bits_per_second
        if not all(speed > 0 for speed in speeds):
            raise FedexitError(f"a device's speeds must be > 0, not {self}")


def on_devices(ledger: pd.DataFrame, devices: Mapping[str, Device], rounds: Sequence[str] = ("round",)) -> pd.DataFrame:
    """Return the ledger of a federation (`Federation.clients`) with its times on simulated devices.

    It adds `device_seconds` (a client receives, computes and sends, one after the other), `idle_seconds` (until the
    slowest client of its round is done) and `joules` (NaN where the power is unknown). devices: the device of each
    tier; rounds: the columns that identify a round. Raises FedexitError for a tier without a device.
    """
    if missing := set(ledger["tier"]) - set(devices):
        raise FedexitError(f"no device is given for tier {min(missing)!r}; known: {', '.join(devices)}")
    columns = {
        field.name: ledger["tier"].map({t: getattr(d, field.name) for t, d in devices.items()})
        for field in fields(Device)
    }
    busy = (ledger["macs_forward"] + ledger["macs_backward"]) / columns["macs_per_second"]
    busy += 8 * ledger["bytes"] * (1 / columns["down_bits_per_second"] + 1 / columns["up_bits_per_second"])
    ledger = ledger.assign(device_seconds=busy, joules=busy * columns["watts"])
    slowest = ledger.groupby(list(rounds))["device_seconds"].transform("max")
    return ledger.assign(idle_seconds=slowest - busy)


def costs_by_depth(model: MultiExitModel, samples: int, batch: int) -> pd.DataFrame:
    """Return the costs of a client that trains to each exit, one row per exit.

    A training step reads a `batch` of clips of `samples` at 16 kHz. Columns: `depth`; `parameters`, `bytes` (sent one
    way); `macs_frozen, macs_forward, macs_backward` of a step (forward without the frozen convolutions); bytes of
    memory: `forward`, `training`, and the parts of the latter: `weights, gradients, optimiser, activations` (the rest).
    """
    rows = []
    for depth in model.exits:
        sent = sizes_by_layer(held_weights(model.trainable_weights(), [depth]))[["parameters", "bytes"]].sum()
        macs = clip_macs(model.backbone, samples, depth, model.head_at(depth))
        held = memory(model, samples, batch, depth)
        fixed = {name: getattr(held, name) for name in ("weights", "gradients", "optimiser")}
        work = {"macs_frozen": macs.frozen, "macs_forward": macs.trained, "macs_backward": macs.backward}
        rows.append(
            {"depth": depth, **sent, **{name: batch * value for name, value in work.items()}}
            | {"forward": held.forward, "training": held.training, **fixed}
            | {"activations": held.training - sum(fixed.values())}
        )
    return pd.DataFrame(rows)
