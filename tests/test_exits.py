import json

import numpy as np
import pytest
import torch

from fedexit.model.backbone import load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import statistics_pooling, task_loss
from fedexit.support.errors import FedexitError
from fedexit.support.tensors import read_tensors, write_tensors


@pytest.fixture(scope="module")
def model():
    return MultiExitModel(load_backbone("nano"), ["a", "b", "c"]).eval()


def test_statistics_pooling_ignores_padding_and_is_mean_and_std():
    states = torch.randn(2, 10, 4)
    pooled = statistics_pooling(states, torch.tensor([10, 6]))
    torch.testing.assert_close(pooled[0, :4], states[0].mean(0))
    torch.testing.assert_close(pooled[1, :4], states[1, :6].mean(0))
    torch.testing.assert_close(pooled[1, 4:], states[1, :6].std(0, correction=0), rtol=1e-3, atol=1e-3)


def test_a_clip_of_one_frame_has_a_finite_gradient():
    states = torch.randn(1, 1, 4, requires_grad=True)
    statistics_pooling(states, torch.tensor([1])).sum().backward()
    assert torch.isfinite(states.grad).all()


def test_exits_of_one_pass_equal_separate_passes(model):
    waveforms = torch.randn(2, 8000)
    together = model(waveforms)
    assert list(together) == [3, 6, 9, 12]
    for depth, logits in together.items():
        assert logits.shape == (2, 3)
        assert torch.equal(logits, model(waveforms, exits=[depth])[depth])
        assert torch.equal(logits, model.client_model(depth).eval()(waveforms)[depth])


def test_a_shallow_client_holds_nothing_above_its_depth(model):
    """Count its parameters: convolutions, projection, three layers and one head."""
    shallow = model.client_model(3)
    names = [n for n, _ in shallow.named_parameters()]
    assert not [n for n in names if n.startswith("backbone.model.encoder.layers.") and int(n.split(".")[4]) >= 3]
    assert [n for n in names if n.startswith("heads.")] == ["heads.3.linear.weight", "heads.3.linear.bias"]
    layer = sum(p.numel() for p in model.backbone.model.encoder.layers[0].parameters())
    head = sum(p.numel() for p in model.heads["3"].parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in shallow.parameters()) == whole - 9 * layer - 3 * head


def test_names_are_equal_at_every_depth_and_frozen_weights_are_not_sent(model):
    everything = set(model.trainable_weights())
    assert not [n for n in everything if "feature_extractor" in n]
    assert set(model.client_model(6).trainable_weights()) < everything


def test_gradients_stop_at_the_exit():
    model = MultiExitModel(load_backbone("nano"), ["a", "b"])
    model(torch.randn(2, 8000), exits=[6])[6].sum().backward()
    touched = [layer.attention.k_proj.weight.grad is not None for layer in model.backbone.model.encoder.layers]
    assert touched == [True] * 6 + [False] * 6


def test_standardised_heads_read_zero_mean_and_unit_variance_also_on_clients():
    model = MultiExitModel(load_backbone("nano"), ["a", "b"]).eval()
    waveforms, lengths = torch.randn(6, 8000), torch.tensor([8000] * 5 + [4000])
    model.standardise(waveforms, lengths)
    states, frames = model.backbone.hidden_states(waveforms, lengths)
    for depth in model.exits:
        read = []
        head = model.client_model(depth).heads[str(depth)]
        head.linear.register_forward_pre_hook(lambda _, inputs, read=read: read.append(inputs[0]))
        head(states[depth], frames)
        torch.testing.assert_close(read[0].mean(0), torch.zeros_like(read[0][0]), rtol=0, atol=1e-3)
        assert (read[0].std(0) < 1.01).all() and (read[0].std(0) > 0.5).any()


def test_heads_cannot_be_standardised_on_one_clip():
    model = MultiExitModel(load_backbone("nano"), ["low", "high"])
    before = model.checksum()
    with pytest.raises(FedexitError, match="on one clip; give two or more"):
        model.standardise(torch.randn(1, 8000), torch.tensor([8000]))
    assert model.checksum() == before


def test_a_shared_head_is_standardised_over_all_exits_and_saved(tmp_path):
    model = MultiExitModel(load_backbone("nano"), ["a", "b"], [3, 6], shared_head=True).eval()
    waveforms, lengths = torch.randn(6, 8000), torch.full((6,), 8000)
    model.standardise(waveforms, lengths)
    states, frames = model.backbone.hidden_states(waveforms, lengths)
    pooled = torch.cat([statistics_pooling(states[depth], frames) for depth in (3, 6)])
    torch.testing.assert_close(model.heads["shared"].centre, pooled.mean(0))
    assert [name for name, _ in model.heads.named_parameters()] == ["shared.linear.weight", "shared.linear.bias"]
    model.save_pretrained(tmp_path)
    for same in (model.client_model(6, [3, 6]).eval(), MultiExitModel.from_pretrained(tmp_path)):
        assert all(torch.equal(logits, same(waveforms)[depth]) for depth, logits in model(waveforms).items())
    own = MultiExitModel(load_backbone("nano"), ["a", "b"], [3, 6])
    own.save_heads(tmp_path / "heads.safetensors")
    model.load_heads(tmp_path / "heads.safetensors")
    assert torch.equal(model.head_at(3).linear.weight, own.heads["6"].linear.weight)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = MultiExitModel.from_pretrained(tmp_path)
    assert (again.labels, again.exits, again.backbone.name) == (model.labels, model.exits, "nano")
    waveforms = torch.randn(1, 8000)
    assert all(torch.equal(a, b) for a, b in zip(model(waveforms).values(), again(waveforms).values(), strict=True))
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("damage", ["missing", "config", "weights"])
def test_a_damaged_model_folder_is_refused_in_one_line(model, tmp_path, damage):
    if damage != "missing":
        model.save_pretrained(tmp_path)
        victim = tmp_path / ("config.json" if damage == "config" else "model.safetensors")
        victim.write_bytes(victim.read_bytes()[:40])
    with pytest.raises(FedexitError, match="multi-exit model") as caught:
        MultiExitModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_exits_are_refused(model):
    with pytest.raises(FedexitError, match=r"exit 5 .*3, 6, 9, 12"):
        model(torch.randn(1, 8000), exits=[5])
    with pytest.raises(FedexitError, match="exit 13"):
        MultiExitModel(load_backbone("nano"), ["a"], exits=[13])


def test_no_exits_and_no_list_of_exits_are_refused(model):
    for exits, words in (([], "exits is empty; give at least one of 3, 6, 9, 12"), (3, r"e\.g\. \[3\]")):
        with pytest.raises(FedexitError, match=words):
            model(torch.randn(1, 8000), exits=exits)
    with pytest.raises(FedexitError, match="exits is empty"):
        MultiExitModel(load_backbone("nano"), ["a", "b"], exits=[])


@pytest.mark.parametrize("labels", [np.array([3, 5]), np.array(["a", "b"]), [False, True], [1.5, None]])
def test_labels_of_numpy_survive_saving(labels, tmp_path):
    exits = np.array([3, 6])
    MultiExitModel(load_backbone("nano"), labels, exits).save_pretrained(tmp_path)
    again = MultiExitModel.from_pretrained(tmp_path)
    assert again.labels == list(labels) and again.exits == [3, 6]


def test_labels_that_cannot_be_saved_and_no_labels_are_refused_at_once():
    for labels, words in (([], "labels is empty"), ([object()], "is a object; give strings or numbers")):
        with pytest.raises(FedexitError, match=words):
            MultiExitModel(load_backbone("nano"), labels)


def test_saved_weights_that_do_not_fit_are_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "exits": [3]}))
    with pytest.raises(FedexitError, match=r"config\.json is not the one that was saved with model\.safetensors"):
        MultiExitModel.from_pretrained(tmp_path)
    write_tensors(tmp_path / "model.safetensors", read_tensors(tmp_path / "model.safetensors")[0])
    with pytest.raises(FedexitError, match=r"12 unexpected: heads\.12\.centre.* and 8 more"):
        MultiExitModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_beyond_the_head_is_refused(label):
    with pytest.raises(FedexitError, match=f"{label}.*takes 0 to 2"):
        task_loss(torch.zeros(2, 3), torch.tensor([0, label]))
