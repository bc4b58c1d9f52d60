"""The ledger: the costs of each local round, and its time on simulated devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from fedexit.federated.clients import Client, LocalTraining, RoundReport
from fedexit.federated.objectives import Objective
from fedexit.model.costs import _held, _samples, clip_macs, memory, sizes_by_layer
from fedexit.model.exits import MultiExitModel, check_exit
from fedexit.support.errors import FedexitError


def client_costs(
    model: MultiExitModel,
    depth: int,
    lengths: Sequence[int],
    training: LocalTraining,
    cached: bool = False,
    objective: Objective = Objective(),  # noqa: B008 (frozen)
) -> dict[str, int]:
    """Return the costs of one local round, which are columns of the ledger.

    Args:
        model: The global model.
        depth: L_i, the depth of the client.
        lengths: Lengths of its clips in samples at 16 kHz; in frames if they are `cached` features.
        training: The options of training.
        cached: Whether the clips are frozen features, so that nothing is convolved.
        objective: The loss, which decides the heads that the client holds.

    Returns `parameters` and `bytes` of the weights that it sends, and receives as well; `macs_forward` and
    `macs_backward` over all clips and epochs, without padding; `memory_forward` and `memory_training` in bytes, for a
    whole batch of its longest clip, by the memory model. Raises FedexitError when `depth` is not an exit, and for clips
    shorter than one frame.
    """
    check_exit(depth, model.exits, model.backbone.name)
    exits = objective.exits(depth, model.exits)
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
        "memory_training": held.training + bool(objective.proximal) * int(sent["bytes"].sum()),  # w(t) of FedProx
    }


@dataclass(frozen=True)
class Device:
    """A simulated device."""

    macs_per_second: float  # in training
    down_bits_per_second: float  # of its link, towards it
    up_bits_per_second: float  # away from it
    watts: float = float("nan")  # power when busy; NaN if unknown

    def __post_init__(self) -> None:
        if min(self.macs_per_second, self.down_bits_per_second, self.up_bits_per_second) <= 0:
            raise FedexitError(f"a device's speeds must be > 0, not {self}")


def on_devices(ledger: pd.DataFrame, devices: Mapping[str, Device], rounds: Sequence[str] = ("round",)) -> pd.DataFrame:
    """Return the ledger of a federation (`Federation.clients`) with its times on simulated devices.

    Adds `device_seconds` (a client receives, computes and sends, one after the other), `idle_seconds` (until the
    slowest client of its round is done) and `joules` (NaN where the power is not known). devices: the device of each
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


def ledger_row(number: int, client: Client, report: RoundReport, costs: Mapping[str, int]) -> dict:
    """Return a client's row of `Federation.clients` in round `number`, from its report and its `client_costs`."""
    about = dict(round=number, client=client.name, tier=client.tier, depth=client.depth, examples=len(client.data))
    return {**about, "loss": report.loss, **costs, "seconds": report.seconds}
