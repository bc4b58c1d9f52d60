"""Name the arms of the experiments, and measure them: train the cells that are missing, and read all others.

An arm is one way to train. All arms of a task share clips, clients, tiers and random streams (common random numbers),
and the schedule of `SCHEDULES`, so that they differ by what their name says.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from fedexit.central.fine_tuning import Recipe
from fedexit.devices.dynamics import Dynamics, Faults
from fedexit.devices.policy import Need, Policy
from fedexit.federated.clients import LocalTraining
from fedexit.federated.methods import find_method
from fedexit.federated.regime import Regime
from fedexit.lab.cells import Measured
from fedexit.lab.grid import joined, run_grids
from fedexit.lab.kept import key_of
from fedexit.lab.plan import plan_of
from fedexit.lab.published import origin_in
from fedexit.lab.setting import (
    CENTRAL,
    HOMOGENEOUS,
    YARDSTICKS,
    Cell,
    DataPart,
    FederationPart,
    ModelPart,
    Setting,
    StudyPart,
)
from fedexit.runner.cell_index import cells_folder
from fedexit.support.errors import FedexitError

TIERS, TWO_TIERS = (3, 6, 9, 12), (3, 12)
PAPER_TIERS = (3, 6)  # those of keyword spotting in Table 2
DEEP_RARE = (3, 3, 3, 12)  # one device in four trains all layers
EQUAL_MEMORY = (4, 12)  # half the width takes as much memory in training as four layers of `tiny`
# Needs of a busy fleet: those of wav2vec 2.0 Base on 40 clips of 8 seconds, in batches of 4 (`needs_by_exit`)
NEEDS = {
    3: Need(1277965472, 105580072, 2135236505600),
    6: Need(2026664480, 190634536, 3239936122880),
    9: Need(2965573856, 275689000, 4344635740160),
    12: Need(3904483232, 360743464, 5449335357440),
}
BUSY = {
    "policy": Policy(NEEDS, dynamics=Dynamics(), faults=Faults(killed=0.05, surge=0.15, wrong_report=0.05)),
    "fleet": ("phone mid", "phone high", "laptop", "server"),
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    method: a name of `METHODS`, `central`, or a yardstick.
    depth: the depth of `central` and `homogeneous`.
    depths: depths of the tiers.
    changes: fields of the setting with other values.
    factors: fields of the schedule, and by how much they are multiplied.
    """

    method: str
    depth: int = 0
    depths: tuple[int, ...] = TIERS
    changes: Mapping[str, object] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)


ARMS = {
    "guessing": Arm("guessing"),
    "log-mel + linear": Arm("log-mel"),
    "heads only": Arm("layerwise-all", changes={"rounds": 0}),
    **{f"everyone at {depth}": Arm(HOMOGENEOUS, depth) for depth in TIERS},
    **{f"central at {depth}": Arm(CENTRAL, depth) for depth in TIERS},
    "Eq. (1)": Arm("layerwise"),
    "masked": Arm("masked"),
    "stale": Arm("stale"),
    "deepest tier alone": Arm("exclusive"),
    "Eq. (1), g of -1": Arm("layerwise-g-1"),
    "Eq. (1), g of 2": Arm("layerwise-g2"),
    "Eq. (1), all exits": Arm("layerwise-all"),
    "masked, all exits": Arm("masked-all"),
    "Eq. (1), self-taught": Arm("layerwise-self"),
    "Eq. (1), exits weighted by depth": Arm("layerwise-by-depth"),
    "Eq. (1), 2 tiers": Arm("layerwise", depths=TWO_TIERS),
    "masked, 2 tiers": Arm("masked", depths=TWO_TIERS),
    "stale, 2 tiers": Arm("stale", depths=TWO_TIERS),
    "Eq. (1), tiers 3 and 6": Arm("layerwise", depths=PAPER_TIERS),
    "stale, tiers 3 and 6": Arm("stale", depths=PAPER_TIERS),
    # stresses; the factors keep the number of updates that arrive, or the bytes, as they are without the stress
    "half drop out": Arm("layerwise", changes={"drop_out": 0.5}, factors={"fraction": 2}),
    "shuffled clips": Arm("layerwise", changes={"partition": "iid"}),
    "skewed labels": Arm("layerwise", changes={"partition": "dirichlet", "alpha": 0.1}),
    "deep tier rare": Arm("layerwise", depths=DEEP_RARE, factors={"rounds": 2}),
    "busy fleet": Arm("layerwise", changes=BUSY, factors={"fraction": 1.7}),
    **{
        f"adapters, rate times {factor}": Arm("layerwise", changes={"lora": 8}, factors={"rate": factor})
        for factor in (1, 3, 10)
    },
    "all weights, bytes of adapters": Arm("layerwise", factors={"rounds": 1 / 40}),
    # depth or width
    "everyone at 4": Arm(HOMOGENEOUS, 4),
    "few layers": Arm("count", depths=EQUAL_MEMORY),
    "narrow layers": Arm("heterofl-ranked", depths=EQUAL_MEMORY),
    "narrow layers, first channels": Arm("heterofl", depths=EQUAL_MEMORY),
}


@dataclass(frozen=True)
class Schedule:
    """Set how long the arms of a task train, and at what rates. Clients train one epoch per round.

    Many rounds of few clients converge further than few rounds of many, at the same cost. For `rate`, 3e-4, 1e-3 and
    3e-3 were tried on dev of keyword, and for `rate_all` 5e-4 and 1e-3, in shorter runs with seed 100, which were not
    kept and which no result uses. For voice, 20 rounds with seed 100 compared 3e-4 and 1e-3 for `everyone at 3` and for
    `Eq. (1), all exits`, and 3e-3 for the first: 1e-3 was best at exit 3. For digit, the same comparison chose 1e-3 for
    both. All other arms and tasks take the same rates. For central training, 3e-4, 1e-3 and 3e-3 were compared on dev
    with seed 100 for exits 3 and 12 (4 epochs, 12 for speaker): 1e-3 was best, or equal to the best, at both exits of
    keyword, voice and speaker. For asr, 5e-4 was better than 1e-3 in the mean of both exits (3 epochs).

    fraction: share of the clients per round.
    rounds: rounds of a federation.
    epochs: epochs of central training.
    rate: learning rate of the backbone where clients train their last exit.
    rate_all: the same where they train all exits up to their depth.
    rate_central: learning rate of central training.
    heads_rounds: rounds in which only heads learn, before the others.
    bfloat16: whether matrix products are computed in bfloat16, which is faster on some processors and very slow on
        others. All arms of a task that train federations share it.
    bfloat16_central: the same for central training.
    dev_clips: largest number of dev clips, of which errors are measured five times during training.
    """

    fraction: float
    rounds: int = 80
    epochs: int = 12
    rate: float = 1e-3
    rate_all: float = 1e-3
    rate_central: float = 1e-3
    heads_rounds: int = 80
    bfloat16: bool = False
    bfloat16_central: bool = True
    dev_clips: int = 300


SCHEDULES = {
    "keyword": Schedule(0.12, bfloat16=True, dev_clips=1000),
    "digit": Schedule(0.2, 20, bfloat16_central=False),
    "voice": Schedule(0.06, 60, epochs=6),
    "speaker": Schedule(0.2, 40),
    "asr": Schedule(0.5, epochs=3, rate_central=5e-4),
}


def setting_of_arm(task: str, arm: Arm, backbone: str, schedule: Schedule) -> Setting:
    """Return the setting in which `arm` trains on `task` from `backbone`, as its `schedule` says."""
    plan = plan_of(task)
    changed: dict[str, Any] = {name: _times(getattr(schedule, name), factor) for name, factor in arm.factors.items()}
    schedule = replace(schedule, **changed)
    every = arm.method not in (CENTRAL, *YARDSTICKS) and find_method(arm.method).objective.losses != "last"
    rate = schedule.rate_all if every else schedule.rate
    training = LocalTraining(learning_rate=rate, head_learning_rate=1e-2, bfloat16=schedule.bfloat16)
    regime = Regime(schedule.heads_rounds, falling_rates=True, average=0.9)
    recipe = plan.central if plan.texts else Recipe(crop=plan.central.crop)
    central = replace(
        recipe, epochs=schedule.epochs, learning_rate=schedule.rate_central, bfloat16=schedule.bfloat16_central
    )
    setting = Setting(
        DataPart(plan.corpus, plan.seconds),
        FederationPart(schedule.rounds, plan.partition, schedule.fraction, training, evaluations=4, regime=regime),
        ModelPart(backbone, arm.depths, rotated=True),
        StudyPart(central, dev_clips=schedule.dev_clips),
    )
    return setting.changed(**arm.changes)


def _times(value: float, factor: float) -> float:
    """Return a number of a schedule times `factor`; whole numbers stay whole and at least 1, shares at most 1."""
    return max(1, round(value * factor)) if isinstance(value, int) else min(1.0, value * factor)


def measure(
    tasks: Sequence[str],
    arms: Iterable[str],
    seeds: Sequence[int],
    state: Path,
    workers: int = 1,
    backbone: str = "tiny-distilled",
    published: Path | None = None,
    more_seeds: Mapping[str, Sequence[int]] = MappingProxyType({}),
    **scale: Any,
) -> Measured:
    """Return the tables of all arms for all tasks and seeds, with the columns `arm` and `task`.

    Args:
        tasks: names of tasks with a schedule.
        arms: names of `ARMS`.
        seeds: seeds of the cells; a multiple of the number of tiers puts every device in every tier equally often.
        state: folder of cells in the making.
        workers: processes; they change no result.
        backbone: the start of all arms.
        published: folder of published cells, which are read and not trained (`fedexit.lab.published`).
        more_seeds: further seeds of single arms, for comparisons that need them (`reports.on_shared_seeds`).
        scale: fields of the schedules with other values, such as `rounds=1` to try a notebook.

    Raises:
        FedexitError: for an unknown task or arm, and as `run_grids`.
    """
    if unknown := more_seeds.keys() - ARMS.keys():
        raise FedexitError(f"unknown name {min(unknown)!r} in more_seeds; known: {', '.join(ARMS)}")
    own = {arm: list(dict.fromkeys([*seeds, *more_seeds.get(arm, ())])) for arm in arms}
    grids = _grids(tasks, own, backbone, scale)
    found = run_grids({(task, arm): (cells, setting) for task, arm, cells, setting in grids}, state, workers, published)
    return together(Measured(*(table.assign(arm=arm) for table in found[task, arm])) for task, arm, *_ in grids)


def together(measured: Iterable[Measured]) -> Measured:
    """Return the tables of several measurements, each joined to one."""
    return Measured(*(joined(own) for own in zip(*measured, strict=True)))


def keys_of(tasks: Sequence[str], arms: Iterable[str], backbone: str = "tiny-distilled", **scale: Any) -> pd.DataFrame:
    """Return the key of the cells of each arm in `results/cells`: columns `task, arm, method, depth, key`.

    Arguments and errors are those of `measure`.
    """
    rows = []
    for task, arm, [cell], setting in _grids(tasks, {arm: [0] for arm in arms}, backbone, scale):
        key = key_of(setting, origin_in(cells_folder(), setting), not cell.federated)
        rows.append((task, arm, cell.method, cell.depth, key))
    return pd.DataFrame(rows, columns=["task", "arm", "method", "depth", "key"])


def _grids(
    tasks: Sequence[str], arms: Mapping[str, Sequence[int]], backbone: str, scale: Mapping[str, Any]
) -> list[tuple[str, str, list[Cell], Setting]]:
    """Return each task and arm with its cells and its setting; `arms` gives the seeds of each arm."""
    for name, known in [(task, SCHEDULES) for task in tasks] + [(arm, ARMS) for arm in arms]:
        if name not in known:
            raise FedexitError(f"unknown name {name!r}; known: {', '.join(known)}")
    grids = []
    for task in tasks:
        schedule = replace(SCHEDULES[task], **scale)
        for name, seeds in arms.items():
            cells = [Cell(task, ARMS[name].method, seed, ARMS[name].depth) for seed in seeds]
            grids.append((task, name, cells, setting_of_arm(task, ARMS[name], backbone, schedule)))
    return grids
