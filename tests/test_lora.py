"""Test adapters in place of all weights: training, sending, averaging, saving, merging, and costs."""

import copy
import math
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save
from small_corpus import write_small_corpus
from test_costs import counted, saved_bytes, small
from test_federation import TRAINING, assert_same, make_clients, tones
from test_grid import settings

from fedexit import Client, FedexitError, LocalTraining, MultiExitModel, federate, layer_of, load_backbone
from fedexit.federated.clients import local_round
from fedexit.federated.ledger import client_costs
from fedexit.lab import cells, kept
from fedexit.lab.cells import run_cell
from fedexit.lab.setting import Cell
from fedexit.model.costs import clip_macs, memory
from fedexit.model.lora import TARGETS, merged, with_lora

pytest.importorskip("peft", reason='peft is not installed: pip install "fedexit[lora]"')

FAMILIES = pytest.mark.parametrize("family", sorted(TARGETS))
CLIPS = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))


def adapted(family="hubert", rank=2, **changes):
    return MultiExitModel(with_lora(small(family, **changes), rank), ["a", "b", "c"], [1, 2, 4]).eval()


def nano(rank=4):
    return MultiExitModel(with_lora(load_backbone("nano"), rank), ["low", "high"])


def moved(model):
    """Return `model` with adapters that change its output (B is zero at first)."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.trainable_weights().items():
        if "lora_B" in name:
            tensor.normal_(std=0.1, generator=generator)
    return model


@FAMILIES
def test_new_adapters_change_no_output_and_trained_ones_of_every_layer_do(family):
    plain = MultiExitModel(small(family), ["a", "b", "c"], [1, 2, 4]).eval()
    before = plain(CLIPS)
    with_lora(plain.backbone)
    same = dict(rtol=1e-5, atol=1e-6)  # WavLM's tensors lie otherwise in memory, so its sums round otherwise
    for depth, logits in plain(CLIPS).items():
        torch.testing.assert_close(logits, before[depth], **same)
    for layer in (1, 2, 4):
        other = copy.deepcopy(plain)
        for name, tensor in other.trainable_weights().items():
            if layer_of(name) == layer and "lora_B" in name:
                tensor.fill_(0.1)
        changed = [depth for depth, logits in other(CLIPS).items() if not torch.allclose(logits, before[depth], **same)]
        assert changed == [depth for depth in (1, 2, 4) if depth >= layer]


@FAMILIES
def test_adapters_and_heads_train_and_nothing_else_does(family):
    model = moved(adapted(family)).train()
    model(CLIPS, exits=[4])[4].sum().backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    names = set(model.trainable_weights())
    assert got == {name for name in names if not name.startswith(("heads.1", "heads.2"))}
    layers = {name: layer_of(name) for name in names if not name.startswith("heads.")}
    assert set(layers.values()) == {1, 2, 3, 4} and all("lora_" in name for name in layers)
    assert len(layers) == 4 * len(TARGETS[family]) * 2


def test_a_client_of_depth_3_sends_the_adapters_of_layers_1_to_3():
    model, client = nano(), make_clients()[0]
    update, _ = local_round(model.client_model(3), model.trainable_weights(), client, TRAINING, (0,))
    assert sorted({layer_of(name) for name in update.weights} - {None}) == [1, 2, 3]
    assert {name for name in update.weights if not layer_of(name)} == {"heads.3.linear.weight", "heads.3.linear.bias"}
    data = save({name: tensor.contiguous() for name, tensor in update.weights.items()})
    sent = len(data) - 8 - int.from_bytes(data[:8], "little")
    head = 2 * (2 * 32 + 1)
    assert sent == 4 * (3 * 2 * 4 * (32 + 32) + head)
    ledger = federate(model, [client], rounds=1, training=TRAINING).clients
    assert list(ledger["bytes"]) == [sent] and list(ledger["parameters"]) == [sent // 4]


def test_two_clients_adapters_are_averaged_by_eq_1_and_their_products_are_not():
    clients = [Client("low", tones(0, 4), 3), Client("high", tones(1, 6), 9)]
    start = moved(nano()).trainable_weights()
    model = moved(nano())
    low, high = (
        local_round(model.client_model(c.depth), start, c, TRAINING, (0, "round", 1, "client", c.name))[0].weights
        for c in clients
    )
    model = federate(model, clients, rounds=1, training=TRAINING).model
    share = 6 * 9 / (4 * 3 + 6 * 9)
    for name, mean in model.trainable_weights().items():
        own = [weights[name] for weights in (low, high) if name in weights]
        expected = (1 - share) * own[0] + share * own[1] if len(own) == 2 else own[0] if own else start[name]
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
        assert (len(own) == 2) == ((layer_of(name) or 99) <= 3)
    a = "backbone.model.encoder.layers.0.attention.q_proj.lora_A.default.weight"
    b, ends = a.replace("lora_A", "lora_B"), model.trainable_weights()
    products = (1 - share) * low[b] @ low[a] + share * high[b] @ high[a]
    assert not torch.allclose(ends[b] @ ends[a], products, rtol=1e-3)  # see the docstring of the module


@pytest.mark.parametrize("method", ["stale", "count", "inclusive", "depthfl", "layerwise-prox", "fedadam"])
def test_every_kind_of_method_works_with_adapters(method):
    model = nano()
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name}
    start = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    model = federate(model, make_clients(), method, rounds=1, training=TRAINING).model
    ends = model.trainable_weights()
    assert {layer_of(name) for name in ends if not torch.equal(ends[name], start[name])} == {None, *range(1, 13)}
    same = model.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in frozen.items() if not name.startswith("heads."))


def test_drawn_layers_are_refused():
    model = MultiExitModel(with_lora(load_backbone("nano")), ["low", "high"], shared_head=True)
    with pytest.raises(FedexitError, match="fedra must send the layers that it draws"):
        federate(model, make_clients(), "fedra", rounds=1)


def test_adapters_are_bit_identical_for_any_number_of_workers():
    training = replace(TRAINING, learning_rate=1e-2)
    one, two = (
        federate(nano(), make_clients(), rounds=4, training=training, dev=tones(99, 6), workers=n) for n in (1, 2)
    )
    assert_same(one, two)
    loss = one.clients.groupby("round")["loss"].mean()
    assert loss[4] < 0.8 * loss[1]


@FAMILIES
def test_saved_adapters_can_be_loaded_and_trained(family, tmp_path):
    model = moved(adapted(family, attention=None))
    model.save_pretrained(tmp_path)
    again = MultiExitModel.from_pretrained(tmp_path)
    assert all(torch.equal(logits, again(CLIPS)[depth]) for depth, logits in model(CLIPS).items())
    assert list(again.trainable_weights()) == list(model.trainable_weights())
    assert again.backbone.lora == (2, 4) and again.checksum() == model.checksum()


@FAMILIES
def test_a_merged_model_is_ordinary_and_gives_equal_outputs(family, tmp_path):
    model, plain = moved(adapted(family)), MultiExitModel(small(family), ["a", "b", "c"], [1, 2, 4])
    before, whole = model(CLIPS), model.merged()
    assert set(whole.state_dict()) == set(plain.state_dict())
    assert set(whole.trainable_weights()) == set(plain.trainable_weights())
    whole.save_pretrained(tmp_path / "whole")
    whole.backbone.model.save_pretrained(tmp_path / "backbone")
    for depth, logits in MultiExitModel.from_pretrained(tmp_path / "whole")(CLIPS).items():
        torch.testing.assert_close(logits, before[depth], rtol=1e-4, atol=1e-5)
        assert torch.equal(model(CLIPS)[depth], before[depth])  # left as it was
    states, _ = load_backbone(tmp_path / "backbone").hidden_states(CLIPS)
    torch.testing.assert_close(states[4], model.backbone.hidden_states(CLIPS)[0][4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 4])
@FAMILIES
def test_macs_equal_the_count_of_torch(family, depth):
    client = adapted(family).client_model(depth)
    forward = sum(counted(lambda: client(CLIPS)).values())
    both = sum(counted(lambda: client(CLIPS)[depth].sum().backward()).values())
    macs = clip_macs(client.backbone, 8000, depth, client.heads[str(depth)])
    assert 2 * (macs.frozen + macs.trained) == forward
    assert 2 * macs.backward == both - forward
    assert macs.backward < 1.2 * macs.trained


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@FAMILIES
def test_memory_equals_the_tensors_of_autograd_and_of_the_client(family, dropout, batch):
    model = adapted(family, attention=None, dropout=dropout)
    for depth in (1, 2, 4):
        client, need = model.client_model(depth), memory(model, 24_000, batch, depth)
        kept = saved_bytes(client.train(), torch.randn(batch, 24_000))
        assert need.activations == pytest.approx(kept, rel=0.03)  # less is kept, so the few per frame weigh more
        assert need.weights == sum(tensor.nbytes for tensor in client.state_dict().values())
        assert need.gradients == sum(tensor.nbytes for tensor in client.trainable_weights().values())


def test_a_round_costs_less_of_everything_but_the_forward_pass():
    plain = MultiExitModel(small(), ["a", "b", "c"], [2, 4])
    full, small_ones = (client_costs(model, 4, [16_000], LocalTraining()) for model in (plain, adapted()))
    assert small_ones["macs_forward"] > full["macs_forward"] and small_ones["macs_forward"] < 1.2 * full["macs_forward"]
    for name in ("bytes", "macs_backward", "memory_training"):
        assert small_ones[name] < 0.8 * full[name], name


def test_cells_of_a_grid_train_adapters_and_are_stored_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    folder = write_small_corpus(tmp_path / "small", clips=10)
    plain, lora = settings(folder, "voice"), settings(folder, "voice", lora=2)
    made_from = kept.Origin("code", ("small", "content"), ("nano", "nano"))
    assert len({kept.key_of(own, made_from, central) for own in (plain, lora) for central in (True, False)}) == 4
    sent = {}
    for setting in (plain, lora):
        found = run_cell(Cell("voice", "layerwise", 0), setting, tmp_path / str(setting.model.lora))
        sent[setting.model.lora] = found.ledger.groupby("depth")["bytes"].first()
        assert set(found.errors["exit"]) == {3, 6}
    assert (sent[2] < 0.1 * sent[0]).all()
    central = run_cell(Cell("voice", "central", 0, 3), lora, tmp_path / "central")
    assert set(central.errors["exit"]) == {3}
    task = cells.task_of(Cell("voice", "layerwise", 0), lora)
    drawn = [
        cells.start(Cell("voice", "layerwise", seed), lora, task, load_backbone("nano")).trainable_weights()
        for seed in (0, 0, 1)
    ]
    name = next(name for name in drawn[0] if "lora_A" in name)
    assert torch.equal(drawn[0][name], drawn[1][name]) and not torch.equal(drawn[0][name], drawn[2][name])


@pytest.mark.parametrize(("rank", "alpha"), [(0, 16), (4, 0)])
def test_impossible_adapters_are_refused(rank, alpha):
    with pytest.raises(FedexitError, match=f"LoRA needs a whole rank .*, not rank {rank}, alpha {alpha}"):
        with_lora(load_backbone("nano"), rank, alpha)


def test_adapters_are_added_only_once_and_merged_only_if_present(monkeypatch):
    backbone = load_backbone("nano")
    with pytest.raises(FedexitError, match="nano has no adapters to merge"):
        merged(backbone)
    with pytest.raises(FedexitError, match="has adapters already; merge them first"):
        with_lora(with_lora(backbone))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(FedexitError, match=r"pip install .fedexit\[lora\]."):
        with_lora(load_backbone("nano"))


def test_alpha_is_twice_the_rank_and_scales_the_adapters():
    models = [moved(MultiExitModel(with_lora(load_backbone("nano"), 4, alpha), ["a", "b"])) for alpha in (None, 8, 16)]
    one, same, double = (model.backbone.hidden_states(CLIPS, depth=1)[0][1] for model in models)
    assert torch.equal(one, same) and not torch.allclose(one, double)
    assert math.isclose(models[0].backbone.lora[1], 8)
