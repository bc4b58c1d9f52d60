import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fedexit import FedexitError, LocalTraining, MultiExitModel, load_backbone
from fedexit.devices.dynamics import Dynamics, Faults, at_round, charge, load
from fedexit.devices.fleet import Device, on_devices
from fedexit.devices.policy import (
    Need,
    Policy,
    coverage,
    depth_for,
    depths_of_round,
    largest_safe_exit,
    limit,
    needs_by_exit,
    outcomes_of_round,
    round_seconds,
)
from fedexit.devices.profiles import MIB, Calibration, Profile, calibrate, device_table, profiles
from fedexit.federated.aggregation import Update, aggregate
from fedexit.federated.ledger import client_costs

# 100 bytes, 10 bytes each way and 50 MACs for each three layers; 8 bits per second are a byte per second
NEEDS = {depth: Need(100 * part, 10 * part, 50 * part) for part, depth in enumerate((3, 6, 9, 12), 1)}
DEVICE = Device(10, 80, 80, 2)  # so a round takes 7 seconds for each three layers


def profile(free, **options):
    return Profile("test", free, replace(DEVICE, **options))


def policy(**options):
    return Policy(NEEDS, margin=0.0, **{"deadline": 1e9, **options})


def fleet(size, free=450.0):
    return {f"client{number}": profile(free) for number in range(size)}


def test_the_device_table_is_complete_and_has_sources():
    table = device_table()
    assert table["device"].is_unique and len(table) >= 9
    assert (table.drop(columns=["battery_wh"]).notna()).all(axis=None)
    assert table[["free_share", "training_share"]].gt(0).all(axis=None)
    assert table[["free_share", "training_share"]].le(1).all(axis=None)
    for source in table["source"]:
        assert "assumed: " in source and ": " in source.split("; assumed")[0]


def test_profiles_convert_the_table_to_bytes_bits_and_joules():
    table, found = device_table().set_index("device"), profiles()
    phone, board = found["phone low"], found["board"]
    assert phone.free == table["memory_mib"]["phone low"] * table["free_share"]["phone low"] * 2**20
    assert phone.device.macs_per_second == pytest.approx(64e8)
    assert phone.device.up_bits_per_second == 11.2e6
    assert phone.battery == pytest.approx(19.3 * 3600) and math.isinf(board.battery)


def test_needs_equal_the_costs_of_a_client():
    model = MultiExitModel(load_backbone("nano"), ["a", "b"])
    needs = needs_by_exit(model, [8_000, 16_000], LocalTraining(epochs=2))
    costs = client_costs(model, 9, [8_000, 16_000], LocalTraining(epochs=2))
    assert needs[9] == (costs["memory_training"], costs["bytes"], costs["macs_forward"] + costs["macs_backward"])
    assert list(needs) == [3, 6, 9, 12] and needs[3].memory < needs[12].memory


def test_round_seconds_equal_those_of_the_fleet():
    costs = dict(tier="t", round=1, macs_forward=1e9, macs_backward=2e9, bytes=4e6)
    device = Device(5e8, 2e7, 5e6, 3.0)
    [theirs] = on_devices(pd.DataFrame([costs]), {"t": device})["device_seconds"]
    assert round_seconds(Need(0, 4e6, 3e9), device) == pytest.approx(theirs)


@pytest.mark.parametrize(("free", "safe"), [(99, None), (100, 3), (399, 9), (400, 12), (1e9, 12)])
def test_memory_limits_the_safe_exit(free, safe):
    assert largest_safe_exit(profile(free), policy()) == safe


@pytest.mark.parametrize(("deadline", "safe"), [(6.9, None), (7, 3), (27, 9), (28, 12)])
def test_the_deadline_limits_the_safe_exit(deadline, safe):
    assert largest_safe_exit(profile(1e9), policy(deadline=deadline)) == safe


def test_margin_and_calibration_lower_the_safe_exit():
    assert largest_safe_exit(profile(400), replace(policy(), margin=0.3)) == 6  # 280 of 400 bytes
    corrected = policy(calibration=Calibration(1.5, 20.0))  # 170, 320, 470, 620 bytes
    assert largest_safe_exit(profile(469), corrected) == 6 and largest_safe_exit(profile(470), corrected) == 9


def test_an_energy_allowance_limits_the_safe_exit():
    assert largest_safe_exit(replace(profile(1e9), allowance=28.0), policy()) == 6  # 2 watts for 14 seconds
    assert largest_safe_exit(replace(profile(1e9), allowance=13.9), policy()) is None
    unknown = replace(profile(1e9, watts=float("nan")), allowance=1.0)
    assert largest_safe_exit(unknown, policy()) == 12


def test_depth_is_the_shallower_exit_of_device_and_task():
    assert [depth_for(profile(free), policy(task_exit=6)) for free in (99, 150, 250, 1e9)] == [None, 3, 6, 6]
    assert depth_for(profile(350), policy()) == 9


def test_limit_names_the_resource_that_limits_the_depth():
    assert limit(profile(250), policy()) == "memory"
    assert limit(profile(1e9), policy(deadline=20)) == "time"
    assert limit(replace(profile(1e9), allowance=30.0), policy()) == "energy"
    assert limit(profile(1e9), policy()) == limit(profile(1e9), policy(task_exit=6)) == "task"
    assert limit(profile(10), policy()) == "memory"


def test_calibration_finds_factor_and_constant():
    modelled = np.array([27.0, 70.0, 519.0, 1581.0])
    found = calibrate(pd.DataFrame({"model_mib": modelled, "measured_mib": 1.1 * modelled + 12}))
    assert found.factor == pytest.approx(1.1) and found.constant == pytest.approx(12 * MIB)
    assert found.corrected(100 * MIB) == pytest.approx(122 * MIB)


def test_calibration_never_gives_negative_memory():
    found = calibrate(pd.DataFrame({"model_mib": [10.0, 100.0], "measured_mib": [9.0, 100.0]}))
    assert found.constant == 0 and 0.9 < found.factor < 1  # the line through both has a constant below 0
    with pytest.raises(FedexitError, match="two sizes"):
        calibrate(pd.DataFrame({"model_mib": [10.0, 10.0], "measured_mib": [9.0, 100.0]}))
    with pytest.raises(FedexitError, match="not above 0"):
        calibrate(pd.DataFrame({"model_mib": [10.0, 20.0], "measured_mib": [9.0, 0.0]}))


def test_load_is_uniform_persistent_and_reproducible():
    dynamics = Dynamics(busiest=0.5, persistence=0.9)
    series = np.array([load("one", number, 0, dynamics) for number in range(2000)])
    spread = np.array([load(f"client{number}", 30, 0, dynamics) for number in range(2000)])
    assert series.min() >= 0 and series.max() <= 0.5
    assert spread.mean() == pytest.approx(0.25, abs=0.01)
    assert spread.std() == pytest.approx(0.5 / math.sqrt(12), rel=0.05)
    assert np.corrcoef(series[1:], series[:-1])[0, 1] == pytest.approx(0.9, abs=0.05)
    assert load("one", 7, 0, dynamics) == series[7] != load("one", 7, 1, dynamics)


def test_charge_rises_on_the_charger_and_falls_without_it():
    dynamics = Dynamics(rounds_per_day=100, charging=0.25, ends=(0.2, 0.4))
    levels, plugged = map(np.array, zip(*(charge("one", number, 0, dynamics) for number in range(1000)), strict=True))
    assert plugged.mean() == pytest.approx(0.25, abs=0.01)
    together = plugged[1:] == plugged[:-1]
    assert (np.diff(levels)[together & plugged[1:]] > 0).all() and (np.diff(levels)[together & ~plugged[1:]] < 0).all()
    assert levels.min() >= 0.19 and levels.max() <= 1 and np.abs(np.diff(levels)).max() < 0.05


def test_the_device_changes_by_round():
    dynamics, base = Dynamics(), replace(profile(1000.0), battery=5000.0)
    found = at_round(base, "one", 4, 0, dynamics)
    left, (level, plugged) = 1 - load("one", 4, 0, dynamics), charge("one", 4, 0, dynamics)
    assert found.free == left * 1000 and found.device.macs_per_second == left * DEVICE.macs_per_second
    assert found.allowance == (math.inf if plugged else 0.02 * level * 5000)
    assert math.isinf(at_round(profile(1.0), "one", 4, 0, dynamics).allowance)  # on mains


def test_static_depths_are_the_same_in_each_round():
    devices = {"weak": profile(50), "middle": profile(250), "strong": profile(1e9)}
    rounds = [depths_of_round(policy(task_exit=9), devices, number, number) for number in range(5)]
    assert rounds == [{"weak": None, "middle": 6, "strong": 9}] * 5
    assert outcomes_of_round(policy(), devices, 0, 0)["weak"] == (None, None, "no exit fits (memory)")


def test_dynamic_depths_change_and_are_reproducible():
    moving = policy(dynamics=Dynamics())
    rounds = [depths_of_round(moving, fleet(20), number, 0) for number in range(20)]
    assert len({depth for found in rounds for depth in found.values()}) >= 3
    assert rounds[7] == depths_of_round(moving, fleet(20), 7, 0) != depths_of_round(moving, fleet(20), 7, 1)
    alone = depths_of_round(moving, {"client3": fleet(20)["client3"]}, 7, 0)
    assert alone["client3"] == rounds[7]["client3"]  # for any other devices


def whys(**options):
    devices = fleet(500)
    return pd.Series([o.why for o in outcomes_of_round(policy(**options), devices, 3, 0).values()]).value_counts(True)


def test_faults_occur_at_the_given_rates():
    assert whys(faults=Faults(killed=0.3))["killed"] == pytest.approx(0.3, abs=0.05)
    assert whys(faults=Faults(surge=0.3))["out of memory"] == pytest.approx(0.3, abs=0.05)  # 400 bytes, 225 are left
    assert set(whys(faults=Faults(surge=1.0, surge_share=0.1)).index) == {"trained"}  # 405 are left
    assert whys()["trained"] == 1


def test_a_wrong_report_makes_a_depth_that_does_not_fit():
    lies = policy(faults=Faults(wrong_report=1.0, wrong_factor=2.0))
    assert outcomes_of_round(lies, {"one": profile(150)}, 0, 0)["one"] == (9, None, "out of memory")
    modest = policy(faults=Faults(wrong_report=1.0, wrong_factor=0.5))
    assert outcomes_of_round(modest, {"one": profile(450)}, 0, 0)["one"] == (6, 6, "trained")


def test_a_margin_saves_clients_from_a_surge():
    devices = {f"client{free}": profile(free) for free in range(100, 500)}
    lost = []
    for margin in (0.0, 0.1, 0.25):
        surges = replace(policy(faults=Faults(surge=1.0, surge_share=0.25)), margin=margin)
        lost.append(sum(o.why == "out of memory" for o in outcomes_of_round(surges, devices, 0, 0).values()))
    assert lost[0] > lost[1] > lost[2] == 0


def test_effective_clients_follow_from_the_weights_of_the_average():
    """Compare with the aggregation: the share of each client in the mean of each layer."""
    depths, examples = {"a": 3, "b": 9, "c": 12, "d": None}, {"a": 5, "b": 2, "c": 1, "d": 9}
    table = coverage(depths, examples, 12).set_index("layer")
    names = {layer: f"backbone.model.encoder.layers.{layer - 1}.w" for layer in table.index}
    shares = pd.DataFrame(0.0, table.index, ["a", "b", "c"])
    for one in shares:
        updates = []
        for client in shares:
            held = [name for layer, name in names.items() if layer <= depths[client]]
            weights = dict.fromkeys(held, torch.full((1,), float(client == one)))
            updates.append(Update(weights, examples[client], depths[client]))
        mean = aggregate(dict.fromkeys(names.values(), torch.zeros(1)), updates)
        shares[one] = [float(mean[name]) for name in names.values()]
    assert (1 / (shares**2).sum(axis=1)).to_numpy() == pytest.approx(table["effective"].to_numpy(), rel=1e-5)
    assert table["clients"].tolist() == [3] * 3 + [2] * 6 + [1] * 3
    nobody = coverage({"d": None}, examples, 2)
    assert nobody["clients"].tolist() == [0, 0] and nobody["effective"].tolist() == [0, 0]


def test_impossible_settings_are_refused():
    with pytest.raises(FedexitError, match="exit 4 has no entry in needs; known: 3, 6, 9, 12"):
        policy(task_exit=4)
    with pytest.raises(FedexitError, match="needs is empty"):
        Policy({})
    with pytest.raises(FedexitError, match="margin must be"):
        Policy(NEEDS, margin=1.0)
    with pytest.raises(FedexitError, match="probabilities"):
        Faults(killed=1.5)
    with pytest.raises(FedexitError, match="wrong_factor"):
        Faults(wrong_factor=0.0)
    with pytest.raises(FedexitError, match=r"shares must be in \[0, 1\)"):
        Dynamics(busiest=1.0)
    with pytest.raises(FedexitError, match=r"the smaller first, not \(0.6, 0.1\)"):
        Dynamics(ends=(0.6, 0.1))
