"""The setting of an experiment and its cells, one per trained model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedexit.central.fine_tuning import Recipe
from fedexit.devices.policy import Policy
from fedexit.devices.profiles import profiles
from fedexit.federated.clients import LocalTraining
from fedexit.federated.methods import everyone, find_method
from fedexit.support.errors import FedexitError

HOMOGENEOUS, CENTRAL = "homogeneous", "central"


@dataclass(frozen=True)
class Cell:
    """One model. `method`: one of `METHODS`, of which `homogeneous` takes all clients at `depth`; or
    `central`, all clips in one place, trained to `depth`.
    """

    task: str
    method: str
    seed: int
    depth: int = 0

    @property
    def name(self) -> str:
        """File name of the cell's state."""
        return f"{self.task}-{self.method}{self.depth or ''}-seed{self.seed}"


@dataclass(frozen=True)
class Setting:
    """What all cells of a grid share. `depths`: the tiers of the mixed federations, in `shares` of the devices (equal).

    alpha: skew of the partition `dirichlet` (`make_clients`); drop_out: share of drawn clients of whom nothing arrives;
    policy: sets clients' depths anew in each round, a client being the device of `fleet`
    (`fedexit.devices.profiles.profiles`)
    that stands at the place of its tier in `depths`; folds: the cell's seed is the task's `fold`, which says who is
    tested; head: taken in place of the task's own; speeds: at each of these a training clip is heard
    (`fedexit.data.tasks.asr.played`), so an epoch has as many passes; lora: rank of the adapters that are trained in
    place of the backbone's weights (`fedexit.model.lora`), 0 for all weights.
    Raises FedexitError for a policy beside drop-outs and a fleet that has no known device for each of `depths`.
    """

    corpus: str
    backbone: str
    depths: tuple[int, ...]
    rounds: Mapping[str, int]  # by task, as the next two
    partition: Mapping[str, str]
    max_seconds: Mapping[str, float]  # clips are cut there
    fraction: float
    training: LocalTraining
    central: Recipe = field(default_factory=Recipe)
    folds: bool = False
    head: str = ""
    speeds: tuple[float, ...] = (1.0,)
    min_clips: int = 8
    dev_clips: int = 200
    evaluations: int = 6  # on dev, spread over the rounds
    shares: tuple[float, ...] = ()
    alpha: float = 0.5
    drop_out: float = 0.0
    policy: Policy | None = None
    fleet: tuple[str, ...] = ()
    lora: int = 0

    def __post_init__(self) -> None:
        if self.policy is None:
            return
        if self.drop_out:
            raise FedexitError("a policy says who drops out (`depth.Faults`): leave out drop_out, or the policy")
        if len(self.fleet) != len(self.depths):
            raise FedexitError(f"a policy needs a device of the fleet for each of {self.depths}, not {self.fleet}")
        if unknown := set(self.fleet) - set(profiles()):
            raise FedexitError(f"unknown device {min(unknown)!r}; known: {', '.join(profiles())}")


def check_cell(cell: Cell, setting: Setting) -> None:
    """Raise FedexitError for a cell that the setting cannot run, before anything is computed."""
    for what in ("max_seconds",) if cell.method == CENTRAL else ("max_seconds", "rounds", "partition"):
        if cell.task not in getattr(setting, what):
            raise FedexitError(f"the setting has no {what} for task {cell.task!r}; add it to its `{what}`")
    if cell.method == CENTRAL:
        return
    method = find_method(cell.method)
    if setting.evaluations < 1:
        raise FedexitError(f"evaluations must be >= 1, not {setting.evaluations}")
    if method.narrow and (setting.policy or setting.drop_out):
        raise FedexitError(f"method {cell.method} knows no depths by round and no drop-outs; leave them out")
    if method.enlist is not everyone and setting.policy:
        raise FedexitError(f"method {cell.method} sets the depths of its clients; leave out the policy")
