"""What a task needs, in one line each: the plan that the notebooks with real training share.

Sharing it means sharing models: a federation that one notebook has run is not run again by another (`grid.run_grids`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedexit.central.fine_tuning import Recipe
from fedexit.federated.clients import LocalTraining
from fedexit.lab.setting import Setting
from fedexit.support.errors import FedexitError


@dataclass(frozen=True)
class TaskPlan:
    """How one task is learned. `seconds`: clips are cut there; `partition`: how they are dealt out (`make_clients`).

    fraction: of the clients, per round; learning_rate: of a client's backbone; central: the run in one place, whose
    head's learning rate the clients have as well; batch_size: of a client.
    """

    corpus: str
    seconds: float
    partition: str
    fraction: float
    learning_rate: float
    central: Recipe
    batch_size: int = LocalTraining.batch_size


_WORDS = dict(crop=None, label_smoothing=0.1, weight_decay=0.05)
# the heads of tiny-ctc know the characters already: a new head's learning rate would undo that
_GENTLY = Recipe(batch_size=4, learning_rate=5e-4, head_learning_rate=5e-4, crop=None, spec_augment=True)
# The central learning rates of speaker and emotion are the better of two on dev, in one run; that of voice comes from
# notebook 05; the batch sizes of asr and its clients' learning rate are the best of two and of three on dev, likewise;
# the rest are plausible values that nobody tuned.
PLAN = {
    "voice": TaskPlan("queen", 1.5, "iid", 0.12, 3e-4, Recipe(crop=75)),
    "keyword": TaskPlan("queen", 1.0, "group", 0.3, 3e-4, Recipe(**_WORDS)),
    "sentence": TaskPlan("queen", 3.0, "group", 0.12, 3e-4, Recipe(**_WORDS)),
    "digit": TaskPlan("asc_digits", 1.0, "group", 0.5, 3e-4, Recipe(learning_rate=3e-4, **_WORDS)),
    "speaker": TaskPlan("speechocean", 4.0, "iid", 0.5, 3e-4, Recipe(crop=100)),
    "emotion": TaskPlan("emodb", 3.0, "group", 1.0, 3e-4, Recipe(learning_rate=3e-4, crop=100)),
    "asr": TaskPlan("queen", 10.0, "group", 0.5, 5e-4, _GENTLY, batch_size=4),
}


def plan_of(task: str) -> TaskPlan:
    """The task's line. Raises FedexitError for a task that has none."""
    if task not in PLAN:
        raise FedexitError(f"no plan for task {task!r}; there is one for {', '.join(PLAN)}")
    return PLAN[task]


def setting_of(
    task: str,
    backbone: str,
    depths: Sequence[int],
    rounds: int,
    epochs: int = 1,
    bfloat16: bool = False,
    head: str = "",
    speeds: Sequence[float] = (1.0,),
) -> Setting:
    """The grid's setting for `task`: as its plan says, for `rounds` of a federation or `epochs` in one place.

    `head` and `speeds` (`Setting`) are of `asr` alone. Emotions are tested fold by fold, one per seed: ten speakers
    are few. Raises FedexitError for a task that has no plan.
    """
    plan = plan_of(task)
    texts = dict(head=head, speeds=tuple(speeds)) if task == "asr" else {}
    return Setting(
        plan.corpus,
        backbone,
        tuple(depths),
        rounds={task: rounds},
        partition={task: plan.partition},
        max_seconds={task: plan.seconds},
        fraction=plan.fraction,
        training=LocalTraining(
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            head_learning_rate=plan.central.head_learning_rate,
            spec_augment=task == "asr",
            bfloat16=bfloat16,
        ),
        central=replace(plan.central, epochs=epochs, bfloat16=bfloat16),
        folds=task == "emotion",
        dev_clips=1000,
        evaluations=2,
        **texts,
    )
