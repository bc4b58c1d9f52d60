"""Choose how each task is trained, in one line per task. All notebooks with real training share this plan.

Notebooks with the same plan share their models: a federation runs once, and other notebooks reuse it
(`grid.run_grids`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedexit.central.fine_tuning import Recipe
from fedexit.federated.clients import LocalTraining
from fedexit.lab.setting import DataPart, FederationPart, ModelPart, Setting, StudyPart
from fedexit.support.errors import FedexitError


@dataclass(frozen=True)
class TaskPlan:
    """The training plan of one task.

    corpus: a known corpus.
    seconds: clips are cut after this many seconds.
    partition: how clips are divided among clients (`make_clients`).
    fraction: share of the clients per round.
    learning_rate: of a client's backbone.
    central: recipe of central training, whose learning rate of the heads the clients share.
    batch_size: of a client.
    texts: whether targets are texts. If so, clients use SpecAugment, and `head` and `speeds` of `setting_of` apply.
    """

    corpus: str
    seconds: float
    partition: str
    fraction: float
    learning_rate: float
    central: Recipe
    batch_size: int = LocalTraining.batch_size
    texts: bool = False


_WORDS: dict[str, Any] = dict(crop=None, label_smoothing=0.1, weight_decay=0.05)
# The heads of tiny-ctc know the characters already; the learning rate of a new head would undo that.
_GENTLY = Recipe(batch_size=4, learning_rate=5e-4, head_learning_rate=5e-4, crop=None, spec_augment=True)
# The central learning rates of speaker and emotion are the better of two on dev, in one run. That of voice comes from
# notebook 05. The batch sizes of asr are the better of two on dev, the learning rate of its clients the best of three.
# The rest are plausible values that were not tuned.
PLAN = {
    "voice": TaskPlan("queen", 1.5, "iid", 0.12, 3e-4, Recipe(crop=75)),
    "keyword": TaskPlan("queen", 1.0, "group", 0.3, 3e-4, Recipe(**_WORDS)),
    "sentence": TaskPlan("queen", 3.0, "group", 0.12, 3e-4, Recipe(**_WORDS)),
    "digit": TaskPlan("asc_digits", 1.0, "group", 0.5, 3e-4, Recipe(learning_rate=3e-4, **_WORDS)),
    "speaker": TaskPlan("speechocean", 4.0, "iid", 0.5, 3e-4, Recipe(crop=100)),
    "emotion": TaskPlan("emodb", 3.0, "group", 1.0, 3e-4, Recipe(learning_rate=3e-4, crop=100)),
    "asr": TaskPlan("queen", 10.0, "group", 0.5, 5e-4, _GENTLY, batch_size=4, texts=True),
}


def plan_of(task: str) -> TaskPlan:
    """Return the plan of `task`. Raise FedexitError when there is none."""
    if task not in PLAN:
        raise FedexitError(f"no plan for task {task!r}; known: {', '.join(PLAN)}")
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
    """Return the setting of a grid for `task`, as its plan says.

    Args:
        task: name of the task.
        backbone: the start of training.
        depths: depths of the tiers.
        rounds: rounds of a federation.
        epochs: epochs of central training.
        bfloat16: train with matrix products in bfloat16.
        head: head in place of the task's own; ignored unless targets are texts.
        speeds: speeds of training clips; ignored unless targets are texts.

    Raises:
        FedexitError: the task has no plan.
    """
    plan = plan_of(task)
    training = LocalTraining(
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        head_learning_rate=plan.central.head_learning_rate,
        spec_augment=plan.texts,
        bfloat16=bfloat16,
    )
    return Setting(
        DataPart(plan.corpus, plan.seconds, speeds=tuple(speeds) if plan.texts else (1.0,)),
        FederationPart(rounds, plan.partition, plan.fraction, training, evaluations=2),
        ModelPart(backbone, tuple(depths), head=head if plan.texts else ""),
        StudyPart(replace(plan.central, epochs=epochs, bfloat16=bfloat16), dev_clips=1000),
    )
