"""The ledger: what each local round costs, and its time on a simulated fleet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from fedexit.federated.clients import Client, LocalTraining
from fedexit.model.costs import _held, _samples, clip_macs, memory, sizes_by_layer
from fedexit.model.exits import MultiExitModel, check_exit
from fedexit.support.errors import FedexitError


def client_costs(
    model: MultiExitModel, depth: int, lengths: Sequence[int], training: LocalTraining, cached: bool = False
) -> dict[str, int]:
    """What one local round at `depth` costs a client: its line in the ledger. `training` says whose heads it trains.

    lengths: of its clips, in samples at 16 kHz; in frames if they are `cached` features (nothing is convolved).
    `parameters` and `bytes` of the weights it sends, the same as it receives; `macs_forward` and `macs_backward` summed
    over its clips and epochs, each clip at its own length (what a batch pads comes on top); `memory_forward` and
    `memory_training`, bytes, of its longest clip in a whole batch, by the memory model.
    Raises FedexitError when `depth` is no exit, and for clips shorter than one frame.
    """
    check_exit(depth, model.exits, model.backbone.name)
    exits = training.exits(depth, model.exits)
    sent = sizes_by_layer(_held(model.trainable_weights(), exits))
    heads = [model.head_at(exit) for exit in exits]
    samples = [_samples(model.backbone.model.config, length) for length in lengths] if cached else lengths
    clips = [clip_macs(model.backbone, length, depth, *heads) for length in samples]
    forward = sum(clip.trained + (0 if cached else clip.frozen) for clip in clips)
    held = memory(model, max(samples), min(training.batch_size, len(clips)), depth, training.optimiser, cached, exits)
    return {
        "parameters": int(sent["parameters"].sum()),
        "bytes": int(sent["bytes"].sum()),
        "macs_forward": forward * training.epochs,
        "macs_backward": sum(clip.backward for clip in clips) * training.epochs,
        "memory_forward": held.forward,
        "memory_training": held.training + bool(training.proximal) * int(sent["bytes"].sum()),  # what pulls it back
    }


@dataclass(frozen=True)
class Device:
    """A simulated device: what it computes per second, its link in bits per second, its power when busy (if known)."""

    macs_per_second: float
    down_bits_per_second: float
    up_bits_per_second: float
    watts: float = float("nan")

    def __post_init__(self) -> None:
        if min(self.macs_per_second, self.down_bits_per_second, self.up_bits_per_second) <= 0:
            raise FedexitError(f"a device's speeds must be > 0, not {self}")


def on_devices(ledger: pd.DataFrame, devices: Mapping[str, Device], rounds: Sequence[str] = ("round",)) -> pd.DataFrame:
    """The ledger of a federation (`Federation.clients`), with its times on a fleet.

    devices: by tier; rounds: the columns that tell rounds apart. Adds `device_seconds` (a client receives, computes and
    sends, one after the other), `idle_seconds` (until the slowest client of its round is done) and `joules` (NaN where
    the power is not known). Raises FedexitError for a tier without a device.
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


def ledger_row(number: int, client: Client, told: dict, costs: dict) -> dict:
    """A client's line of `Federation.clients`, from what `local_round` told of it and its `client_costs`."""
    about = dict(round=number, client=client.name, tier=client.tier, depth=client.depth, examples=len(client.data))
    return {**about, "loss": told["loss"], **costs, "seconds": told["seconds"]}
