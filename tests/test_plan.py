"""Test the plan: every task has a complete line, and a setting follows it."""

import pytest

from fedexit.data.places import TARS
from fedexit.data.tasks import TASKS
from fedexit.data.tasks.official import OFFICIAL
from fedexit.federated.partition import PARTITIONS
from fedexit.lab.plan import PLAN, plan_of, setting_of
from fedexit.support.errors import FedexitError


def test_every_task_has_a_complete_line():
    assert set(PLAN) == set(TASKS) - set(OFFICIAL)  # paper_profile.py plans those of the paper
    for line in PLAN.values():
        assert line.corpus in {"queen", *TARS} and line.partition in PARTITIONS
        assert 0 < line.fraction <= 1 and line.seconds > 0


def test_a_setting_follows_the_plan():
    found = setting_of("emotion", "tiny", [3, 12], 10, epochs=4, bfloat16=True, head="ctc-bilstm", speeds=[0.9, 1.0])
    assert found.model.depths == (3, 12) and found.federation.rounds == 10
    central, training = found.study.central, found.federation.training
    assert training.bfloat16 and central.bfloat16 and central.epochs == 4
    assert training.head_learning_rate == plan_of("emotion").central.head_learning_rate
    assert (found.model.head, found.data.speeds) == ("", (1.0,))  # only texts have them
    spoken = setting_of("asr", "tiny", [3], 2, head="ctc-bilstm", speeds=[0.9, 1.0])
    assert (spoken.model.head, spoken.data.speeds) == ("ctc-bilstm", (0.9, 1.0))
    assert spoken.federation.training.spec_augment and not training.spec_augment


def test_a_task_without_a_plan_is_refused():
    with pytest.raises(FedexitError, match="no plan for task 'mood'; known: voice, keyword"):
        setting_of("mood", "tiny", [3], 1)
