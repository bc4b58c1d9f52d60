"""Inputs of the public functions that are refused in one sentence, before any training."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_federation import TRAINING, make_clients, make_model, tones

from fedexit import Client, FedexitError, LocalTraining, MultiExitModel, Update, aggregate, federate, load_backbone
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.data.batches import normalised
from fedexit.devices.dynamics import Dynamics, Faults
from fedexit.devices.fleet import Device
from fedexit.devices.policy import Policy, needs_by_exit
from fedexit.devices.profiles import Calibration, profiles
from fedexit.federated.aggregation import make_aggregator
from fedexit.federated.clients import local_round
from fedexit.federated.objectives import Objective
from fedexit.federated.server import FedAdam
from fedexit.lab.verification import verify
from fedexit.model import early_exit
from fedexit.model.lora import with_lora
from fedexit.model.metrics import predict
from fedexit.support import placement

CLIPS = tones(0, 3)
PAIRS = pd.DataFrame({"first": ["a", "a"], "second": ["b", "c"], "same": [True, False]})
NAN = math.nan
ONE_EPOCH = Recipe(epochs=1, batch_size=2, crop=None)


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("nano")


def refused(call, says):
    with pytest.raises(FedexitError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [b"yes", {"a", "b"}, 5, None, frozenset("ab")])
def test_labels_are_a_list_in_a_fixed_order(backbone, labels):
    refused(lambda: MultiExitModel(backbone, labels), "labels must be a list")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: model.heads["3"].requires_grad_(False), "a head of the model is frozen"),
        (lambda model: model.half(), "float16"),
        (lambda model: setattr(model, "labels", ["only"]), "1 label"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_everywhere(change, says):
    model, client = make_model(), Client("a", CLIPS, 12)
    change(model)
    refused(lambda: federate(model, [client], rounds=1), says)
    refused(lambda: fine_tune(model, CLIPS, [3], ONE_EPOCH), says)
    refused(lambda: local_round(model, model.trainable_weights(), client, TRAINING, (0,)), says)


@pytest.mark.parametrize("other", ["nano", None, 3])
def test_another_object_than_a_model_is_named(other):
    refused(lambda: federate(other, make_clients(), rounds=1), f"a {type(other).__name__}; give a MultiExitModel")
    refused(lambda: fine_tune(other, CLIPS, [3], ONE_EPOCH), f"a {type(other).__name__}; give a MultiExitModel")
    refused(lambda: MultiExitModel(other, ["a", "b"]), f"the backbone is a {type(other).__name__}")
    refused(lambda: with_lora(other), f"not a {type(other).__name__}")


@pytest.mark.parametrize(
    ("rank", "alpha"), [("8", None), (None, None), (NAN, None), (math.inf, None), (2, math.inf), (2, "4"), (2, NAN)]
)
def test_ranks_and_scales_of_adapters_are_numbers(backbone, rank, alpha):
    refused(lambda: with_lora(backbone, rank, alpha), "LoRA needs a whole rank")


def test_the_exits_of_a_client_are_those_of_its_model(model):
    whole, shallow = model.client_model(12, [3, 12]), model.client_model(6, [3, 6])
    for scratch, depth in ((whole, 3), (shallow, 12)):
        client = Client("ann", CLIPS, depth)
        call = lambda scratch=scratch, client=client: local_round(  # noqa: E731
            scratch, model.trainable_weights(), client, TRAINING, (0,), Objective("all")
        )
        refused(call, f"client ann has depth {depth}, its model exits")


@pytest.mark.parametrize(
    "spoil", [lambda w: {}, lambda w: {name: tensor.reshape(-1)[:1] for name, tensor in w.items()}]
)
def test_weights_that_do_not_fit_are_not_loaded(model, spoil):
    before = model.checksum()
    refused(lambda: model.load_weights(spoil(model.trainable_weights())), "the weights to load lack backbone")
    assert model.checksum() == before


@pytest.mark.parametrize(
    "options",
    [
        dict(learning_rate="a"),
        dict(learning_rate=math.inf),
        dict(learning_rate=True),
        dict(head_learning_rate=None),
        dict(clip_norm=NAN),
        dict(optimiser=[]),
        dict(spec_augment="no"),
        dict(bfloat16=None),
    ],
)
def test_options_of_training_have_their_type(options):
    refused(lambda: LocalTraining(**options), f"setting {next(iter(options))}=")


def test_numbers_of_numpy_are_plain_numbers():
    options = dict(
        epochs=np.int64(2), batch_size=np.uint8(4), learning_rate=np.float32(0.5), spec_augment=np.bool_(True)
    )
    plain = dict(epochs=2, batch_size=4, learning_rate=0.5, spec_augment=True)
    for kind in (LocalTraining, Recipe):
        assert repr(kind(**options)) == repr(kind(**plain))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Objective(strength="1"),
        lambda: Objective(proximal=math.inf),
        lambda: FedAdam(learning_rate=NAN),
        lambda: FedAdam(beta2=1.0),
        lambda: FedAdam(tau=0),
    ],
)
def test_numbers_of_methods_are_in_range(make):
    refused(make, "setting ")


@pytest.mark.parametrize("exponent", [NAN, math.inf, 400, -40, "1", 1j])
def test_an_exponent_that_would_overflow_is_refused(exponent):
    weights = {"layers.0.w": torch.zeros(1)}
    refused(lambda: make_aggregator(weights, depth_exponent=exponent), "depth_exponent must be a number from -10")
    refused(lambda: federate(make_model(), make_clients(), depth_exponent=exponent), "depth_exponent must be")


@pytest.mark.parametrize("rule", ["layerwise", "inclusive"])
@pytest.mark.parametrize("update", [{"w": 1}, ("w", 1, 1), "w", Update(None, 1, 1), Update({}, 1, [1])])
def test_updates_of_another_kind_are_refused(rule, update):
    refused(lambda: aggregate({"w": torch.zeros(1)}, [update], rule), "update")


def test_an_average_of_parameters_has_no_gradient():
    weights = {"w": torch.nn.Parameter(torch.ones(2))}
    for rule in ("layerwise", "stale"):
        assert not aggregate(weights, [Update(weights, 2, 1)], rule)["w"].requires_grad


@pytest.mark.parametrize("data", [{"a": CLIPS[0]}, pd.DataFrame({"clip": [1.0]}), (one for one in CLIPS), None])
def test_data_without_numbered_pairs_are_refused(model, data):
    for call in (
        lambda: federate(make_model(), [Client("ann", data, 3)], rounds=1),
        lambda: fine_tune(make_model(), data, [3], ONE_EPOCH),
        lambda: predict(model, data),
    ):
        refused(call, "give a list of pairs|cannot be read .*must give pairs")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ((CLIPS[0][0][:300], 0), "is shorter than one frame"),
        ((CLIPS[0][0] * NAN, 0), "holds NaN"),
        ((CLIPS[0][0], 2), "has target 2"),
        ((CLIPS[0][0], -1), "has target -1"),
        (CLIPS[0][0], "is a Tensor; give a pair"),
    ],
)
def test_a_clip_that_cannot_be_evaluated_is_named(model, bad, says):
    refused(lambda: predict(model, [*tones(0, 9), bad], batch_size=1), f"evaluation, clip 9 {says}")


def test_predictions_need_a_batch_and_exits(model):
    refused(lambda: predict(model, CLIPS, batch_size=0), "batch_size must be >= 1")
    refused(lambda: predict(model, CLIPS, batch_size=-1), "batch_size must be >= 1")
    once = predict(model, tones(0, 9), (exit for exit in (3, 6)), batch_size=1)
    assert once.equals(predict(model, tones(0, 9), [3, 6], batch_size=1))


def test_a_damaged_model_answers_nothing(tmp_path):
    model = make_model()
    model.heads["6"].linear.weight.data[0, 0] = NAN
    refused(lambda: predict(model, CLIPS), "NaN at exit 6")
    model.save_pretrained(tmp_path)
    refused(lambda: MultiExitModel.from_pretrained(tmp_path), "heads.6.linear.weight holds NaN")


def test_a_model_is_not_written_over_a_file(model, tmp_path):
    (tmp_path / "file").touch()
    refused(lambda: model.save_pretrained(tmp_path / "file"), "cannot be written")
    refused(lambda: model.save_heads(tmp_path), "cannot be written")


@pytest.mark.parametrize("threshold", [NAN, "0.5", None])
def test_a_threshold_is_a_number(model, threshold):
    refused(lambda: early_exit.run(model, CLIPS[0][0], "entropy", threshold), "threshold must be a number")


def test_an_early_exit_draws_no_dropout():
    model = MultiExitModel(load_backbone("nano"), ["a", "b"]).train()
    model.backbone.model.encoder.dropout.p = 0.5
    answers = [early_exit.run(model, CLIPS[0][0], "entropy", 0.0)[1] for _ in range(2)]
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("ids", "trials", "says"),
    [
        (["a", "b"], PAIRS, "3 clips have 2 ids"),
        (["a", "b", "b"], PAIRS, "2 of them different"),
        (["a", "b", "x"], PAIRS, "names the clip 'c'"),
        (["a", "b", "c"], PAIRS[:1], "both"),
        (["a", "b", "c"], PAIRS.assign(same=["True", "False"]), "True and False"),
        (["a", "b", "c"], PAIRS.drop(columns="same"), "lack the column 'same'"),
    ],
)
def test_trials_compare_the_clips_that_are_there(model, ids, trials, says):
    refused(lambda: verify(model, CLIPS, ids, trials), says)


def test_devices_have_numbers(model):
    needs = needs_by_exit(model, [3200], TRAINING)
    device = next(iter(profiles().values()))
    refused(lambda: needs_by_exit(model, [], TRAINING), "without clips")
    refused(lambda: Policy(needs, deadline=NAN), "deadline > 0")
    refused(lambda: replace(device, free=NAN), "must be numbers")
    refused(lambda: Device(1.0, NAN, 1.0), "speeds must be > 0")
    refused(lambda: Calibration(NAN), "factor must be")
    refused(lambda: Dynamics(rounds_per_day=NAN), "rounds_per_day > 0")
    refused(lambda: Faults(wrong_factor=NAN), "wrong_factor must be > 0")


def test_memory_is_that_of_the_largest_batch_not_of_the_longest_clip(monkeypatch):
    """One client has the longest clip, another one more of them in a batch."""
    clip = CLIPS[0][0]
    clients = [Client("one", [(clip.repeat(25), 0)], 3), Client("many", [(clip.repeat(20), 0)] * 8, 3)]
    free = type("Free", (), {"available": 12 * 10**6})
    monkeypatch.setattr(placement.psutil, "virtual_memory", lambda: free)
    refused(lambda: federate(make_model(), clients, rounds=1), "client many: a batch of 8 clips of 4 s")


def test_a_view_of_a_clip_is_the_same_clip():
    clip = torch.randn(3201, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalised(torch.stack([clip, clip], 1)[:, 0]), normalised(clip))
