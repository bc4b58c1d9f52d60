"""Test what the notebooks on cost, devices, export and privacy compute, against values by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus

from fedexit import LocalTraining, MultiExitModel, load_backbone, open_corpus
from fedexit.data.tasks import make_task
from fedexit.devices.dynamics import Faults
from fedexit.devices.fleet import Device
from fedexit.devices.policy import Need, Policy
from fedexit.devices.profiles import MIB, Calibration, Profile
from fedexit.lab import cost_study, export_study, policy_study, privacy_study
from fedexit.privacy.noise import Privacy

# ---- cost --------------------------------------------------------------------------------------------------------


def test_step_times_are_medians_over_turns(monkeypatch):
    spent = iter([1, 10, 4, 40, 2, 30, 5, 50, 3, 20, 6, 90])  # three turns of two depths and two kinds
    monkeypatch.setattr(cost_study, "step_seconds", lambda model, depth, batch: next(spent))
    found = cost_study.step_times(None, [3, 12], {"convolved": [], "cached": []}, 3).set_index(["kind", "depth"])
    assert found["seconds"].to_dict() == {
        ("cached", 3): 20, ("cached", 12): 50, ("convolved", 3): 2, ("convolved", 12): 5
    }  # fmt: skip
    assert found.loc[("cached", 3), "share"] == 0.4 and found.loc[("convolved", 12), "share"] == 1


def test_noise_is_the_same_clip_before_and_after_the_convolutions():
    model = MultiExitModel(load_backbone("nano"), ["a", "b"])
    found = cost_study.noise_batches(model, 4000, 2, seed=3)
    again = cost_study.noise_batches(model, 4000, 2, seed=3)
    assert [len(found[kind]) for kind in ("convolved", "cached")] == [2, 2]
    assert torch.equal(found["convolved"][1][0], again["convolved"][1][0])
    assert not torch.equal(found["convolved"][0][0], found["convolved"][1][0])
    frames = int(model.backbone.frame_lengths(torch.tensor([4000])))
    assert found["cached"][0][0].shape[-1] == frames


def held():
    rows = [("g", 1.0, 3, 10.0, 20.0), ("g", 1.0, 12, 20.0, 80.0), ("h", 1.0, 3, 1.0, 4.0), ("h", 1.0, 12, 4.0, 8.0)]
    return pd.DataFrame(rows, columns=["geometry", "clip_seconds", "depth", "forward", "training"])


def test_measured_memory_stands_beside_the_model_of_its_client(monkeypatch):
    asked = []

    def measured(clients):
        asked.extend(clients)
        return [(10 * number + 10) * MIB for number in range(len(clients))]

    monkeypatch.setattr(cost_study, "measured_memories", measured)
    found = cost_study.beside_measured(held(), "g", [1.0], batch=2)
    assert [(c.backbone, c.depth, c.batch, c.mode) for c in asked] == [
        ("g", 3, 2, "forward"), ("g", 3, 2, "training"), ("g", 12, 2, "forward"), ("g", 12, 2, "training")
    ]  # fmt: skip
    assert found["measured_mib"].tolist() == [10, 20, 30, 40] and found["model_mib"].tolist() == [10, 20, 20, 80]
    assert found["model_over_measured"].tolist() == pytest.approx([1, 1, 2 / 3, 2])


def test_savings_and_their_sentences_by_hand():
    table3 = pd.DataFrame({"task": "t", "depth": [3, 12], "memory_mb": [60.0, 100.0]})
    savings = cost_study.shares_saved(table3, held(), 3, 12)
    assert savings.values.tolist() == [
        ["published", "t", pytest.approx(0.4)],
        ["forward, model", "g, 1 s", 0.5], ["forward, model", "h, 1 s", 0.75],
        ["training, model", "g, 1 s", 0.75], ["training, model", "h, 1 s", 0.5],
    ]  # fmt: skip
    first, second, third = cost_study.memory_sentences(held(), savings, 0.24, [3, 12])
    assert "training `g` takes 2.0 to 4.0 times" in first and "within 0.2 MiB" in third
    assert second.startswith("For `g`, depth 3 in place of 12 saves 75 to 75 % of the memory of training")
    assert "Table 3 says 40 to 40 %" in second


def test_the_clock_waits_for_the_slowest_device():
    rows = [("a", 0, 0, 30, 30), ("a", 0, 0, 60, 0), ("a", 0, 1, 120, 0), ("b", 0, 1, 90, 10)]
    timed = pd.DataFrame(rows, columns=["arm", "seed", "round", "device_seconds", "idle_seconds"])
    rounds, totals = cost_study.clock_of(timed)
    assert rounds["minutes"].to_dict() == {("a", 0, 0): 1.0, ("a", 0, 1): 3.0, ("b", 0, 1): 1.5}
    totals = totals.set_index("arm")
    assert totals["minutes"].to_dict() == {"a": 3.0, "b": 1.5} and totals.loc["a", "heads_minutes"] == 1.0
    assert np.isnan(totals.loc["b", "heads_minutes"])
    assert totals["idle_share"].to_dict() == {"a": pytest.approx(30 / 240), "b": pytest.approx(0.1)}
    [says] = cost_study.clock_sentences(totals.reset_index(), [("a", "b")])
    assert "**a** lasts 3.0 simulated minutes, against 1.5 with **b** (one seed)" in says
    assert "with **a**, devices are idle for 12 %" in says


# ---- policy ------------------------------------------------------------------------------------------------------

NEEDS = {3: Need(100 * MIB, 10 * MIB, 50e9), 12: Need(300 * MIB, 40 * MIB, 200e9)}
SLOW = Device(1e9, 8 * MIB, 8 * MIB)  # a round to exit 3 takes 50 + 20 seconds
DEVICES = {"large": Profile("large", 500 * MIB, SLOW), "small": Profile("small", 150 * MIB, SLOW),
           "none": Profile("none", 50 * MIB, SLOW)}  # fmt: skip


def choices():
    policies = {("g", "t"): Policy(NEEDS, margin=0.1), ("g", "u"): Policy(NEEDS, task_exit=3, margin=0.1)}
    return policy_study.chosen_depths(policies, DEVICES)


def test_needs_and_choices_are_tables():
    needed = policy_study.needs_table({("g", "t"): NEEDS})
    assert needed.values.tolist() == [["g", "t", 3, 100, 10, 50], ["g", "t", 12, 300, 40, 200]]
    table = choices().set_index(["task", "device"])
    assert table["depth"].fillna(0).tolist() == [12, 3, 0, 3, 3, 0]
    assert table["safe_exit"].fillna(0).tolist() == [12, 3, 0, 12, 3, 0]
    assert table["set_by"].tolist() == ["task", "memory", "memory", "task", "task", "memory"]
    assert table.loc[("t", "small"), "round_seconds"] == pytest.approx(70)
    [says] = policy_study.choice_sentences(choices())
    assert "sets the depth in 3 of 6 choices; no exit fits on none, whatever" in says


def test_peaks_are_corrected_by_the_calibration(monkeypatch):
    model = MultiExitModel(load_backbone("nano"), ["a"], [3])
    monkeypatch.setattr(policy_study, "memory", lambda *about: SimpleNamespace(training=100 * MIB))
    monkeypatch.setattr(policy_study, "measured_memories", lambda clients, plain: [(220 if plain else 200) * MIB])
    peaks = policy_study.measured_peaks({"nano": model}, [("nano", 3, 1.0)], 4)
    assert peaks.values.tolist() == [["nano", 3, 1.0, 100, 200, 220]]
    [row] = policy_study.corrected(peaks, Calibration(1.5, 30 * MIB)).itertuples()
    assert (row.corrected_mib, row.too_low, row.kept) == pytest.approx((180, 0.1, 0.1))


def test_a_simulated_fleet_is_counted_by_device_and_by_layer():
    clients = {"large 1": DEVICES["large"], "large 2": DEVICES["large"], "small 1": DEVICES["small"]}
    owner = {client: client.split()[0] for client in clients}
    policies = {
        "static": Policy(NEEDS, margin=0.1),
        "dynamic, faults": Policy(NEEDS, margin=0.1, faults=Faults(killed=1)),
    }
    history = policy_study.simulated(policies, clients, owner, rounds=2, seed=0)
    assert len(history) == 2 * 2 * 3 and history.loc[0, ["client", "chosen", "done"]].tolist() == ["large 1", 12, 12]
    shares = policy_study.outcome_shares(history, policies, ["none", "small", "large"])
    assert shares[["policy", "device"]].values.tolist() == [
        ["static", "small"], ["static", "large"], ["dynamic, faults", "small"], ["dynamic, faults", "large"]
    ]  # fmt: skip
    assert shares["trained"].tolist() == [1, 1, 0, 0] and shares["killed"].tolist() == [0, 0, 1, 1]
    spread = policy_study.coverage_by_layer(history, 10, 12).set_index(["what", "policy", "layer"])["mean"]
    assert spread["clients", "static", 1] == 3 and spread["clients", "static", 12] == 2
    assert spread["effective", "static", 1] == pytest.approx((12 + 12 + 3) ** 2 / (144 + 144 + 9))
    assert spread["clients", "dynamic, faults", 1] == 0


def test_a_larger_margin_makes_shallower_choices():
    swept = policy_study.margins_swept(Policy(NEEDS), [0.0, 0.5, 0.9], {"large": DEVICES["large"]}, 2, 0)
    assert swept["mean_depth"].tolist() == [12, 3, 0] and swept["no_exit_fits"].tolist() == [0, 0, 1]
    assert swept["trained"].tolist() == [1, 1, 0] and swept["out_of_memory"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("best", "says"), [(0.0, "is 0 %; our default of 20 %"), (0.3, "most layers is 30 %.")])
def test_sentences_on_the_fleet_name_the_margin(best, says):
    peaks = pd.DataFrame({"seconds": [1.0, 4.0, 4.0], "too_low": [0.5, 0.025, -0.1]})
    spread = pd.DataFrame(
        [("clients", policy, layer, mean) for policy, mean in (("static", 8.0), ("dynamic, faults", 5.5))
         for layer in (1, 3)],
        columns=["what", "policy", "layer", "mean"],
    )  # fmt: skip
    swept = pd.DataFrame({"margin": [best, 0.6], "mean_depth": [5.0, 4.0]})
    policy = Policy(NEEDS, task_exit=3)
    first, second, third = policy_study.fleet_sentences(peaks, spread, swept, policy, ("g", "t"), 10)
    assert "at most 2.5 % too low" in first and "the margin is 20 %" in first
    assert "(g, t, one seed) layer 1 is trained by 8.0 of 10 clients and layer 3 by 8.0" in second
    assert says in third


# ---- export ------------------------------------------------------------------------------------------------------


def test_forms_are_compared_with_torch_at_the_same_exit():
    truth = np.array([0, 1, 1, 0])
    answers = {(3, "torch"): np.array([0, 1, 0, 0]), (3, "onnx"): np.array([0, 0, 1, 1])}
    found = export_study.errors_of(answers, truth, seed=0).set_index("form")
    assert found.loc["torch", ["error", "extra", "changed"]].tolist() == [25, 0, 0]
    assert found.loc["onnx", ["error", "extra", "changed", "clips"]].tolist() == [50, 25, 3, 4]
    assert found.loc["onnx", "low"] < 25 < found.loc["onnx", "high"]


def test_answers_keep_the_order_of_clips_of_any_length():
    clips = [(torch.full((length,), float(length)), 0) for length in (700, 400, 900, 500)]

    def logits_of(waveforms, lengths):
        return torch.nn.functional.one_hot(lengths // 100, 10).float()

    assert export_study.answered(logits_of, clips).tolist() == [7, 4, 9, 5]


def test_every_form_takes_its_turn_and_the_first_turn_only_warms_up(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(export_study.time, "process_time", lambda: next(clock) ** 2)
    calls = []
    runners = {(3, form): lambda waveforms, lengths, form=form: calls.append(form) for form in ("torch", "onnx")}
    found = export_study.latencies(runners, [(torch.randn(16_000), 0)], repetitions=2).set_index("form")
    assert calls == ["torch", "onnx"] * 3
    spent = [2 * turn + 1 for turn in range(0, 12, 2)]  # squares of successive readings, in seconds
    assert found.loc["torch", "median_ms"] == 1000 * np.median(spent[2::2])
    assert found.loc["onnx", "median_ms"] == 1000 * np.median(spent[3::2])


def test_sizes_and_sentences_of_files(tmp_path):
    model = MultiExitModel(load_backbone("nano"), ["a", "b"], [3, 12])
    made = {}
    for exit, form, size in ((3, "torch", 300), (3, "int8", 150), (12, "torch", 1000), (12, "int8", 250)):
        file = tmp_path / f"{exit}-{form}"
        file.write_bytes(bytes(size))
        made[exit, form] = file, 0.5
    files = export_study.sizes_of(model, made)
    assert files["megabytes"].tolist() == [0.0003, 0.00015, 0.001, 0.00025]
    assert files["parameters"].iloc[0] < files["parameters"].iloc[2]
    errors = pd.DataFrame({"exit": [3, 12], "form": "int8", "clips": 10, "extra": [0.5, -2.0], "low": [-1.0, -4.0],
                           "high": [2.0, 0.0], "changed": [1, 3]})  # fmt: skip
    first, second = export_study.sentences(files, errors)
    assert first == "The file of exit 3 has 30% of the size of that of exit 12 (torch)."
    assert second == (
        "*int8*: 38% of torch's size on average; 4 of 20 answers change; the error changes by -2.0 points at most "
        "(exit 12, 95 % interval -4.0 to +0.0)."
    )


# ---- privacy -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def round_of(tmp_path_factory):
    """Return a model, its weights, a cohort of three clients of each of two depths, and their updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDEXIT_DATA", str(tmp_path_factory.mktemp("data")))
        task = make_task(
            "voice", open_corpus(str(write_small_corpus(tmp_path_factory.mktemp("c") / "tones"))), min_clips=4
        )
        model = MultiExitModel(load_backbone("nano"), task.labels, [3, 6])
        speech = privacy_study.Speech(task, model.backbone, 0.25, seed=1)
        names = sorted(task.rows.query("split == 'train'")["group"].unique())
        members = privacy_study.cohort(speech, names, [3, 6], 2, seed=1)
        old = {name: weight.clone() for name, weight in model.trainable_weights().items()}
        updates = privacy_study.trained(model, old, members, LocalTraining(batch_size=2), 1)
        yield speech, model, old, members, updates


def test_a_cohort_holds_back_other_clips_of_the_same_client(round_of):
    speech, _, _, members, _ = round_of
    assert [client.depth for client, _ in members] == [3, 6] * 3 and len({client.name for client, _ in members}) == 6
    for client, back in members:
        own = set(speech.rows_of(client.name)["id"])
        used, kept = ({repr(clip[0].sum().item()) for clip in clips} for clips in (client.data, back))
        assert len(own) == 6 and len(client.data) == len(back) == 2 and not used & kept
    assert len(speech.drawn("test", 5, "test")) == 5 and len(speech.of_client(members[0][0].name, 4)) == 4
    assert privacy_study.cohort(speech, ["nobody"], [3, 6], 2, seed=1) == []
    names = [client.name for client, _ in members]
    assert [own.depth for own, _ in privacy_study.cohort(speech, names, [3, 6], 2, seed=1, each=1)] == [3, 6]


def test_secure_sums_agree_with_the_plain_average(round_of):
    _, _, old, members, updates = round_of
    for dropped in ([], [members[0][0].name]):
        difference, allowed = privacy_study.against_plain(old, updates, dropped)
        assert 0 <= difference <= allowed < 1e-4


def test_attacks_see_the_update_the_sum_and_noisy_sums(round_of):
    _, model, old, members, updates = round_of
    privacies = {"much noise": Privacy(1e6, examples=2)}
    found = privacy_study.attacked(model, old, members, updates, privacies, 1)
    assert found.groupby(["attack", "depth", "change"]).ngroups == 2 * 2 * 3 and found["auc"].between(0, 1).all()
    assert found["change"].unique().tolist() == ["update", "sum", "much noise"] and set(found["seed"]) == {1}
    twins = [(client, client.data) for client, _ in members]  # held-back clips that are those of the training
    guess = privacy_study.attacked(model, old, twins, updates, {}, 1).query("attack == 'membership'")
    assert (guess["auc"] == 0.5).all() and guess["change"].unique().tolist() == ["update", "sum"]


def test_sentences_on_privacy():
    secure = pd.DataFrame({"difference": [1e-7, 3.6e-7]})
    accountants = pd.DataFrame({"pld": [1.0, 2.0], "contour": [1.0, 2.002], "rdp": [1.1, 2.8]})
    noise = pd.DataFrame({"layer": [1, 12], "sigma": [0.2, 0.5]})
    first, second, third = privacy_study.protection_sentences(secure, accountants, noise)
    assert "within 3.6e-07" in first and "1.0e-03 at most" in second and "is 40% above them" in second
    assert third == "Layer 12 gets 2.5 times the noise of layer 1."
    rows = [
        ("membership", "update", 99.6, 0.2, 3),
        ("membership", "sum", 60.0, 9.6, 3),
        ("client", "update", 50.0, np.nan, 1),
    ]
    overall = pd.DataFrame(rows, columns=["attack", "change", "mean", "half_interval", "seeds"])
    one, other = privacy_study.leakage_sentences(overall)
    assert one.endswith("over seeds: update 100 % ± 0, sum 60 % ± 10.") and other.endswith("update 50 % (one seed).")
    errors = pd.DataFrame({"case": ["no noise", "noise"] * 2, "exit": [3, 3, 12, 12], "error": [60.0, 90.4, 50.0, 88.0],
                           "guess": 63.0})  # fmt: skip
    assert privacy_study.error_sentences(errors) == [
        "Error at exit 3 (one seed; the most frequent word: 63 %): no noise 60 %; noise 90 %.",
        "Error at exit 12 (one seed; the most frequent word: 63 %): no noise 50 %; noise 88 %.",
    ]
    timing = pd.DataFrame(
        {"case": ["exit time", "padded"], "bits": [0.126, 0.0], "p": [0.04, 1.0], "layers": [7.5, 12.0]}
    )
    says = privacy_study.timing_sentence(timing)
    assert says.startswith("Exit times tell 0.13 bits about the word (p = 0.04)") and says.endswith("in place of 7.5.")
