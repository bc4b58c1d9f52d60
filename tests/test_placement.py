"""Test that everything runs on one device: with a pretended GPU, whose tensors have values (`pretend_gpu`)."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from pretend_gpu import NAME, Pretended
from small_corpus import write_small_corpus

from fedexit import Client, LocalTraining, MultiExitModel, federate, load_backbone, with_lora
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.central.pretraining import Pretraining
from fedexit.central.probes import frame_states, pooled_states
from fedexit.cli import main
from fedexit.data.corpora import open_corpus
from fedexit.data.trials import make_trials
from fedexit.federated.clients import local_round
from fedexit.federated.methods import Method
from fedexit.federated.objectives import Objective
from fedexit.federated.regime import Regime
from fedexit.lab import cells
from fedexit.lab.cells import run_cell
from fedexit.lab.kept import processor
from fedexit.lab.setting import Cell, DataPart, FederationPart, ModelPart, Setting, StudyPart
from fedexit.model.costs import memory
from fedexit.model.early_exit import run
from fedexit.model.training import for_training
from fedexit.support import placement
from fedexit.support.errors import FedexitError
from fedexit.support.placement import find_device

TARGETS = {"label": [0, 1, 1], "text": [[1, 2], [3], [2, 1]], "number": [0.5, -1.0, 0.1], "multi-label": [[0, 1]] * 3}
HEADS = {"label": "pooled", "text": "ctc", "number": "pooled", "multi-label": "pooled"}
OUTPUTS = {"label": ["no", "yes"], "text": list("abc"), "number": ["age"], "multi-label": ["hot", "wet"]}


def small_model(kind="label", head=None, lora=0, **options):
    backbone = load_backbone("nano").truncated(2)
    if lora:
        with_lora(backbone, lora)
    head = head or HEADS[kind]
    return MultiExitModel(backbone, OUTPUTS[kind], [1, 2], head=head, targets=kind, **options)


def clips(kind="label", sizes=(3000, 4000, 3500), seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, generator=draw), own) for size, own in zip(sizes, TARGETS[kind], strict=True)]


def two_clients(kind="label"):
    return [Client("ann", clips(kind), 1, dev=clips(kind, seed=7)), Client("ben", clips(kind, seed=1), 2)]


FEDERATIONS = {
    "Eq. (1)": dict(),
    "depthfl": dict(method="depthfl"),
    "prox": dict(method="layerwise-prox", training=LocalTraining(batch_size=2, optimiser="sgd")),
    "adam": dict(method="fedadam"),
    "inclusive": dict(method=Method("own", rule="inclusive", local_heads=True)),
    "fedra": dict(method="fedra", shared_head=True),
    "regime": dict(regime=Regime(heads_rounds=1, falling_rates=True, average=0.5)),
    "adapters": dict(lora=2),
    "ctc": dict(kind="text", method="layerwise-mutual", training=LocalTraining(spec_augment=True)),
    "lstm": dict(kind="text", head="ctc-bilstm"),
    "number": dict(kind="number", method="layerwise-mutual"),
    "multi-label": dict(kind="multi-label", method="layerwise-mutual"),
    "own loss": dict(method=Method("own", objective=Objective("all"), rule=lambda old, updates: dict(old))),
    "recompute": dict(training=LocalTraining(recompute=True)),
}


@pytest.mark.parametrize("name", FEDERATIONS)
def test_a_federation_runs_on_one_device(name):
    options = dict(FEDERATIONS[name])
    kind = options.pop("kind", "label")
    about = {part: options.pop(part) for part in ("head", "lora", "shared_head") if part in options}
    options |= dict(rounds=1, dev=clips(kind, seed=2))
    here = federate(small_model(kind, **about), two_clients(kind), **options)
    with Pretended() as gpu:
        there = federate(small_model(kind, **about), two_clients(kind), device=NAME, **options)
        assert {one.device.type for one in there.model.state_dict().values()} == {NAME}
        found = {weight: tensor.cpu() for weight, tensor in there.model.state_dict().items()}
    assert gpu.waits  # the values were read somewhere
    pd.testing.assert_frame_equal(there.clients.drop(columns="seconds"), here.clients.drop(columns="seconds"))
    pd.testing.assert_frame_equal(there.table, here.table)
    pd.testing.assert_frame_equal(there.by_client, here.by_client)
    for weight, tensor in here.model.state_dict().items():
        assert torch.allclose(found[weight], tensor, atol=1e-5), weight


@pytest.mark.parametrize("kind", ["label", "text"])
def test_fine_tuning_and_answers_run_on_one_device(kind, tmp_path):
    recipe = Recipe(epochs=2, batch_size=2, crop=None, spec_augment=True, recompute=True)
    here, data, answers = small_model(kind), clips(kind), []
    fine_tune(here, data, [1, 2], recipe)
    answers.append(here.predict([clip for clip, _ in data], rate=16_000))
    with Pretended():
        there = small_model(kind)
        fine_tune(there, data, [1, 2], recipe, checkpoint=tmp_path / "run", device=NAME)
        found = {name: tensor.cpu() for name, tensor in there.state_dict().items()}
        fine_tune(again := small_model(kind), data, [1, 2], recipe, checkpoint=tmp_path / "run", device=NAME)
        assert again.checksum() == there.checksum()
        answers.append(there.predict([clip for clip, _ in data], rate=16_000))
        for rule in ("entropy", "probability", "agreement"):
            early = there.predict([clip for clip, _ in data], rate=16_000, rule=rule, threshold=0.1)
            assert set(early["exit"]) <= {1, 2}
        assert run(there, data[0][0], "entropy", 0.0)[1].device.type == NAME
    pd.testing.assert_frame_equal(*answers)
    for name, tensor in here.state_dict().items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name


def test_probes_read_a_backbone_on_a_gpu():
    here, waves = load_backbone("nano").truncated(2), [clip for clip, _ in clips()]
    expected = pooled_states(here, waves, "here"), frame_states(here, waves, 1, "here")
    with Pretended():
        there = load_backbone("nano").truncated(2).to(NAME)
        assert np.allclose(pooled_states(there, waves, "there"), expected[0])
        for found, state in zip(frame_states(there, waves, 1, "there"), expected[1], strict=True):
            assert found.device.type == "cpu" and torch.allclose(found, state)


def kept_features(folder):
    return list((folder / "data" / "cache").glob("frozen-*.f32"))


@pytest.mark.parametrize("cell", [Cell("voice", "heterofl", 0), Cell("voice", "central", 0, 3)])
def test_a_cell_runs_on_one_device(cell, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    folder = write_small_corpus(tmp_path / "small", clips=10)
    listed = make_trials(open_corpus(folder).select("test"), 20)
    monkeypatch.setattr(cells, "trials_of", lambda corpus: listed)
    setting = Setting(
        DataPart(str(folder), max_seconds=0.25, min_clips=4),
        FederationPart(1, "group", 0.5, evaluations=1, regime=Regime(heads_rounds=1)),
        ModelPart("nano", (3, 6)),
        StudyPart(Recipe(epochs=1, crop=None)),
    )
    here = run_cell(cell, setting, tmp_path / "here")
    of_cpu = len(kept_features(tmp_path))
    with Pretended():
        there = run_cell(cell, setting, tmp_path / "there", device=NAME)
    assert len(kept_features(tmp_path)) == 2 * of_cpu > 0  # features of a GPU never serve a CPU
    about = ["exit", "split", "metric"]
    pd.testing.assert_frame_equal(there.errors[[*about, "n"]], here.errors[[*about, "n"]])
    assert np.abs(there.errors["value"] - here.errors["value"]).mean() < 0.05
    assert len(there.spot) == len(here.spot)


def test_more_steps_make_a_gpu_wait_no_more_often():
    """Clips of one length need no mask of attention, whose maker in `transformers` reads it."""
    waits = []
    for clips_of_ann in (2, 8):
        data = [(torch.randn(3000), number % 2) for number in range(clips_of_ann)]
        with Pretended() as gpu:
            federate(
                small_model(), [Client("ann", data, 2)], rounds=1, training=LocalTraining(batch_size=2), device=NAME
            )
            fine_tune(small_model(), data, [2], Recipe(epochs=1, batch_size=2, crop=None), device=NAME)
        waits.append(dict(gpu.waits))
    assert waits[0] == waits[1]


@pytest.mark.parametrize("bad", ["cuda", "mps", "meta", "tpu9", 3.5])
def test_a_device_that_does_not_exist_gives_one_line(bad):
    if bad in ("cuda", "mps") and find_device("auto").type == bad:
        pytest.skip("this machine has one")
    with pytest.raises(FedexitError, match=r"^device '.*' cannot be used \(.*\); use auto, cpu, cuda or mps$") as error:
        federate(small_model(), two_clients(), rounds=1, device=bad)
    assert "\n" not in str(error.value)


def test_auto_takes_the_best_device(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert placement._best() == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placement._best() == "cuda"
    small_model().save_pretrained(tmp_path / "model")
    assert main(["predict", str(tmp_path / "model"), "none.wav", "--device", "tpu9"]) == 2
    assert "tpu9" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_refused_with_numbers(monkeypatch):
    monkeypatch.setattr(placement, "_free_bytes", lambda device: 1e3 if device.type == NAME else math.inf)
    text = r"a batch of 3 clips of 0 s needs \d+\.\d GB of memory to train exit 2, and 0\.0 GB are free; cut the clips"
    with Pretended():
        with pytest.raises(FedexitError, match="client ben: " + text):
            federate(small_model(), two_clients()[1:], rounds=1, device=NAME)
        with pytest.raises(FedexitError, match="training data: " + text):
            fine_tune(small_model(), clips(), [2], Recipe(crop=None), device=NAME)
    assert len(federate(small_model(), two_clients(), rounds=1).clients) == 2


@pytest.mark.parametrize("lora", [0, 2])
def test_recomputed_layers_give_the_same_update_and_keep_less(lora):
    updates = []
    for recompute in (False, True):
        training = LocalTraining(recompute=recompute, spec_augment=True)
        model = small_model(lora=lora)
        model.backbone.model.config.hidden_dropout = 0.1
        for layer in model.backbone.model.encoder.layers:
            layer.dropout.p = 0.1
        update, _ = local_round(model.client_model(2), model.trainable_weights(), two_clients()[1], training, ("x",))
        updates.append(update.weights)
    assert all(torch.equal(updates[1][name], tensor) for name, tensor in updates[0].items())


def test_the_memory_model_knows_recomputed_layers():
    model = MultiExitModel(load_backbone("nano"), ["no", "yes"])
    wave = torch.randn(4, 16_000)
    kept = {}
    for recompute in (False, True):
        storages = {one.untyped_storage().data_ptr(): 0 for one in model.state_dict().values()}
        alive = []  # so that no address is used twice

        def pack(tensor, storages=storages, alive=alive):
            alive.append(tensor)
            storages.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            return tensor

        options = for_training(model.backbone, False, recompute)
        with options, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(wave, exits=[12])
        kept[recompute] = sum(storages.values())
    plain, less = (memory(model, 16_000, 4, 12, recompute=own).activations for own in (False, True))
    assert kept[True] < less < 0.4 * plain  # beside what is kept all the time there is one layer
    one_layer = memory(model, 16_000, 4, 12).activations - memory(model, 16_000, 4, 9).activations
    assert kept[True] + one_layer / 3 == pytest.approx(less, rel=0.15)
    assert plain == pytest.approx(kept[False], rel=0.05)


def test_a_gpu_keeps_the_fused_attention_in_bfloat16():
    backbone = load_backbone("nano").truncated(1)
    usual = backbone.model.config._attn_implementation
    with for_training(backbone, bfloat16=True):
        assert backbone.model.config._attn_implementation == "eager"
    with Pretended():
        backbone.to(NAME)
        with for_training(backbone, bfloat16=True):
            assert backbone.model.config._attn_implementation == usual == "sdpa"


def test_float16_is_refused_with_the_reason():
    with pytest.raises(FedexitError, match=r"float16 loses small gradients.*; train in bfloat16"):
        federate(small_model().half(), two_clients(), rounds=1)
    with pytest.raises(FedexitError, match="float16 loses small gradients"):
        Pretraining(precision="float16")


def test_a_cell_of_a_gpu_names_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert processor("cuda:1") == "GPU of cuda:1" and processor("mps") == "mps" and "GPU" not in processor()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("kind", ["label", "text"])
def test_a_real_gpu_gives_nearly_the_same_numbers(kind):
    here, there = (federate(small_model(kind), two_clients(kind), rounds=1, device=name) for name in ("cpu", "cuda"))
    for name, tensor in here.model.state_dict().items():
        assert torch.allclose(there.model.state_dict()[name].cpu(), tensor, atol=1e-3), name
