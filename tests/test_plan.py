"""Test the plan: every task has a complete line, and a setting follows it."""

import pytest

from fedexit import LocalTraining, MultiExitModel, load_backbone
from fedexit.data.places import TARS
from fedexit.data.tasks import TASKS
from fedexit.data.tasks.official import OFFICIAL
from fedexit.devices.policy import depth_for, needs_by_exit
from fedexit.devices.profiles import profiles
from fedexit.federated.partition import PARTITIONS
from fedexit.lab.experiments import ARMS, BUSY, NEEDS, SCHEDULES, TIERS, Schedule, setting_of_arm
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


def test_factors_of_an_arm_change_its_schedule():
    plain, short = SCHEDULES["keyword"], Schedule(fraction=0.7, rounds=1)
    found = {name: setting_of_arm("keyword", arm, "tiny", plain).federation for name, arm in ARMS.items()}
    usual = found["Eq. (1)"]
    assert found["half drop out"].fraction == 2 * usual.fraction and found["half drop out"].rounds == usual.rounds
    assert found["deep tier rare"].rounds == 2 * usual.rounds and found["deep tier rare"].fraction == usual.fraction
    rate = usual.training.learning_rate
    rates = [found[f"adapters, rate times {factor}"].training.learning_rate / rate for factor in (1, 3, 10)]
    assert rates == pytest.approx([1, 3, 10])
    assert found["all weights, bytes of adapters"].rounds == 2
    least = {name: setting_of_arm("keyword", arm, "tiny", short).federation for name, arm in ARMS.items()}
    assert least["all weights, bytes of adapters"].rounds == 1 and least["half drop out"].fraction == 1


def test_the_busy_fleet_needs_what_base_needs_and_its_idle_devices_are_the_tiers():
    base = MultiExitModel(load_backbone("base"), map(str, range(10)), TIERS)
    assert needs_by_exit(base, [8 * 16_000] * 40, LocalTraining(batch_size=4)) == NEEDS
    assert tuple(depth_for(profiles()[name], BUSY["policy"]) for name in BUSY["fleet"]) == TIERS
