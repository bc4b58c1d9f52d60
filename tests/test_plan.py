"""The plan of each task: complete, and shared to the cell by all who ask for the same."""

import pytest

from fedexit.data.places import TARS
from fedexit.data.tasks import TASKS
from fedexit.federated.partition import PARTITIONS
from fedexit.lab.plan import PLAN, plan_of, setting_of
from fedexit.support.errors import FedexitError


def test_every_line_names_what_there_is():
    assert set(PLAN) == set(TASKS)
    for line in PLAN.values():
        assert line.corpus in {"queen", *TARS} and line.partition in PARTITIONS
        assert 0 < line.fraction <= 1 and line.seconds > 0


def test_a_setting_is_the_plans():
    found = setting_of("emotion", "tiny", [3, 12], 10, epochs=4, bfloat16=True, head="ctc-bilstm", speeds=[0.9, 1.0])
    assert found.depths == (3, 12) and found.folds and found.rounds == {"emotion": 10}
    assert found.training.bfloat16 and found.central.bfloat16 and found.central.epochs == 4
    assert found.training.head_learning_rate == plan_of("emotion").central.head_learning_rate
    assert (found.head, found.speeds) == ("", (1.0,))  # they are of texts alone
    spoken = setting_of("asr", "tiny", [3], 2, head="ctc-bilstm", speeds=[0.9, 1.0])
    assert (spoken.head, spoken.speeds, spoken.training.spec_augment) == ("ctc-bilstm", (0.9, 1.0), True)


def test_a_task_without_a_plan_is_refused():
    with pytest.raises(FedexitError, match=r"no plan for task 'mood'; there is one for voice, keyword"):
        setting_of("mood", "tiny", [3], 1)
