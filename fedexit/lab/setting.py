"""Define the setting of an experiment, in four parts, and its cells, one per trained model."""

from dataclasses import dataclass, field, fields, replace

from fedexit.central.fine_tuning import Recipe
from fedexit.devices.policy import Policy
from fedexit.devices.profiles import profiles
from fedexit.federated.clients import LocalTraining
from fedexit.federated.regime import Regime
from fedexit.support.checks import whole_number
from fedexit.support.errors import FedexitError

HOMOGENEOUS, CENTRAL = "homogeneous", "central"
YARDSTICKS = GUESSING, LOG_MEL = "guessing", "log-mel"  # no model is trained


@dataclass(frozen=True)
class Cell:
    """One trained model of a grid.

    task: a name of `fedexit.data.tasks.TASKS`.
    method: a name of `METHODS`; `central`, all clips in one place; `guessing`, the most frequent label of the training
        clips; or `log-mel`, a ridge classifier on log-mel features.
    seed: an integer; for a task with folds it is also the number of the fold.
    depth: the exit of `central` and `homogeneous` models; 0 for the other methods, whose clients differ in depth.
    """

    task: str
    method: str
    seed: int
    depth: int = 0

    def __post_init__(self) -> None:
        for name in ("seed", "depth"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name))

    @property
    def federated(self) -> bool:
        """Return whether clients train the model."""
        return self.method not in (CENTRAL, *YARDSTICKS)

    @property
    def name(self) -> str:
        """Return the beginning of the names of the cell's files."""
        return f"{self.task}-{self.method}{self.depth or ''}-seed{self.seed}"


@dataclass(frozen=True)
class DataPart:
    """Options of the data.

    corpus: a known corpus, or a folder or .tar with a manifest.
    max_seconds: clips are cut after this many seconds.
    min_clips: groups with fewer training clips become no client.
    speeds: training clips are used once at each of these speeds, so an epoch has as many passes.
    """

    corpus: str
    max_seconds: float
    min_clips: int = 8
    speeds: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "speeds", tuple(float(speed) for speed in self.speeds))


@dataclass(frozen=True)
class FederationPart:
    """Options of federations; central cells do not use them.

    rounds: number of rounds.
    partition: how clips are divided among clients (`fedexit.federated.partition.PARTITIONS`).
    fraction: share of the clients that is sampled per round.
    training: how every client trains.
    alpha: skew of the partition `dirichlet`; smaller is more skewed.
    drop_out: share of the sampled clients whose update never arrives.
    policy: sets the depths of clients anew in each round; None leaves them as they are.
    fleet: with a policy, the device (`fedexit.devices.profiles.profiles`) that each tier of `ModelPart.depths` is.
    evaluations: how often the model is evaluated on dev, spread over the rounds.
    regime: heads first, falling rates, an averaged model.
    """

    rounds: int
    partition: str
    fraction: float
    training: LocalTraining = field(default_factory=LocalTraining)
    alpha: float = 0.5
    drop_out: float = 0.0
    policy: Policy | None = None
    fleet: tuple[str, ...] = ()
    evaluations: int = 6
    regime: Regime = field(default_factory=Regime)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fleet", tuple(self.fleet))


@dataclass(frozen=True)
class ModelPart:
    """Options of the model.

    backbone: a preset, a model that has a name, a folder or a hub id (`load_backbone`).
    depths: depths of the tiers.
    shares: share of the devices in each tier; empty for equal shares.
    rotated: whether every device is equally often in each tier over a block of seeds (`assign_depths`).
    head: a head in place of the task's own; "" for the task's own.
    lora: rank of the adapters that are trained in place of the backbone's weights; 0 trains all weights.
    """

    backbone: str
    depths: tuple[int, ...]
    shares: tuple[float, ...] = ()
    head: str = ""
    lora: int = 0
    rotated: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(whole_number(depth, "a depth") for depth in self.depths))
        object.__setattr__(self, "shares", tuple(float(share) for share in self.shares))


@dataclass(frozen=True)
class StudyPart:
    """Options of central training and of evaluation.

    central: the recipe of central cells; federations do not use it.
    dev_clips: number of dev clips that are evaluated, drawn once per task.
    evaluations: how often a central model is evaluated on dev, spread over the epochs.
    """

    central: Recipe = field(default_factory=Recipe)
    dev_clips: int = 200
    evaluations: int = 4


@dataclass(frozen=True)
class Setting:
    """The options that all cells of a grid share.

    data: which clips are used.
    federation: how federations run.
    model: which model is trained.
    study: central training and evaluation.

    Raises:
        FedexitError: a policy together with drop-outs, or a fleet without a known device for each depth.
    """

    data: DataPart
    federation: FederationPart
    model: ModelPart
    study: StudyPart = field(default_factory=StudyPart)

    def __post_init__(self) -> None:
        federation, depths = self.federation, self.model.depths
        if federation.policy is None:
            return
        if federation.drop_out:
            raise FedexitError("a policy has its own drop-outs (`dynamics.Faults`): leave out drop_out, or the policy")
        if len(federation.fleet) != len(depths):
            raise FedexitError(f"a policy needs a device of the fleet for each of {depths}, not {federation.fleet}")
        if unknown := set(federation.fleet) - set(profiles()):
            raise FedexitError(f"unknown device {min(unknown)!r}; known: {', '.join(profiles())}")

    def changed(self, **values: object) -> "Setting":
        """Return a copy in which fields of the parts have other values, e.g. `setting.changed(rounds=3, lora=8)`.

        Raises:
            FedexitError: no part has a field of that name, or the new setting is refused.
        """
        parts = {}
        for part in fields(self):
            own = getattr(self, part.name)
            names = [known.name for known in fields(own) if known.name in values]
            parts[part.name] = replace(own, **{name: values.pop(name) for name in names})
        if values:
            raise FedexitError(f"a setting has no field {min(values)!r}; see the parts in fedexit/lab/setting.py")
        return replace(self, **parts)
