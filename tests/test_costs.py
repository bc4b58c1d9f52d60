"""Test the cost model against torch's counter, the serialised bytes and the memory of a process."""

import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import save
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from fedexit import Client, FedexitError, LocalTraining, MultiExitModel, load_backbone, local_round
from fedexit.devices.fleet import Device, on_devices
from fedexit.devices.probe import ProbedClient, measured_memories, measured_memory
from fedexit.federated.ledger import client_costs
from fedexit.federated.objectives import Objective
from fedexit.model.backbone import Backbone
from fedexit.model.costs import clip_macs, memory, sizes_by_layer

GEOMETRY = dict(
    hidden_size=48, num_attention_heads=4, intermediate_size=100, conv_dim=(16,) * 7, num_hidden_layers=4,
    num_conv_pos_embedding_groups=4,
)  # fmt: skip


def small(family="hubert", kernel=16, attention="eager", dropout=0.1, **changes):
    names = ("feat_proj", "hidden", "attention", "activation")
    dropouts = {f"{name}_dropout": dropout for name in names}
    config = AutoConfig.for_model(family, num_conv_pos_embeddings=kernel, **dropouts, **GEOMETRY, **changes)
    # the counter does not know the fused attention of the CPU
    return Backbone(AutoModel.from_config(config, attn_implementation=attention), family, False)


def counted(run):
    """Return the multiply-accumulates by operation."""
    with FlopCounterMode(display=False) as counter:
        run()
    return {str(name): flops // 2 for name, flops in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("samples", [4_000, 16_000, 31_999])
@pytest.mark.parametrize(("family", "kernel"), [("hubert", 16), ("wav2vec2", 17), ("wavlm", 16), ("data2vec-audio", 3)])
def test_forward_macs_equal_the_count_of_torch(family, kernel, samples):
    model = MultiExitModel(small(family, kernel), ["a", "b", "c"], [2, 4])
    for depth in (2, 4):
        expected = sum(counted(lambda depth=depth: model(torch.randn(2, samples), exits=[depth])).values())
        macs = clip_macs(model.backbone, samples, depth, model.heads[str(depth)])
        assert 2 * (macs.frozen + macs.trained) == expected


@pytest.mark.parametrize("depth", [2, 4])
def test_backward_macs_equal_the_count_of_torch(depth):
    model = MultiExitModel(small(), ["a", "b", "c"], [2, 4]).client_model(depth)
    both = counted(lambda: model(torch.randn(2, 16_000))[depth].sum().backward())
    forward = counted(lambda: model(torch.randn(2, 16_000)))
    # The counter takes a grouped convolution's gradient for that of a full one: four times the work, with four groups.
    frames, width = 49, 48
    position = 2 * (frames + 1) * 16 * width * width // 4
    wrong = both.pop("aten.convolution_backward")
    assert wrong == position + 4 * position
    backward = sum(both.values()) - sum(forward.values()) + 2 * position
    assert 2 * clip_macs(model.backbone, 16_000, depth, model.heads[str(depth)]).backward == backward


def test_bytes_equal_the_size_of_the_serialised_weights():
    model = MultiExitModel(small(), ["a", "b", "c"], [2, 4]).client_model(2)
    weights = model.trainable_weights()
    sizes = sizes_by_layer(weights)
    data = save({name: tensor.contiguous() for name, tensor in weights.items()})
    header = 8 + int.from_bytes(data[:8], "little")  # names and shapes
    assert sizes["bytes"].sum() == len(data) - header
    assert list(sizes["part"]) == ["outside", "layer 1", "layer 2"]
    assert sizes["parameters"].sum() * 4 == sizes["bytes"].sum()


def saved_bytes(model, clips):
    """Return the bytes that autograd keeps of a training step, without the weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    storages = {}  # kept, so that no address is used twice

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sum(logits.sum() for logits in model(clips).values())
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm", "data2vec-audio"])
@pytest.mark.parametrize("large", [False, True])
def test_activations_equal_the_tensors_that_autograd_keeps(family, large, dropout, batch):
    changes = {"do_stable_layer_norm": True} if large and family != "data2vec-audio" else {}
    model = MultiExitModel(small(family, attention=None, dropout=dropout, **changes), ["a", "b", "c"], [2, 4])
    for depth in (2, 4):
        kept = saved_bytes(model.client_model(depth).train(), torch.randn(batch, 24_000))
        assert memory(model, 24_000, batch, depth).activations == pytest.approx(kept, rel=0.02)


def test_memory_counts_what_the_client_model_holds():
    model = MultiExitModel(small(), ["a", "b", "c"], [2, 4])
    client, need = model.client_model(2), memory(model, 16_000, 1, 2)
    assert need.weights == sum(tensor.nbytes for tensor in client.state_dict().values())
    assert need.gradients == sum(tensor.nbytes for tensor in client.trainable_weights().values())
    assert need.optimiser == 2 * need.gradients and memory(model, 16_000, 1, 2, "sgd").optimiser == 0
    with pytest.raises(FedexitError, match="exit 3 does not exist"):
        memory(model, 16_000, 1, 3)
    with pytest.raises(FedexitError, match="shorter than one frame"):
        memory(model, 100, 1, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_equals_the_memory_of_a_process_whatever_was_measured_before():
    model, modes = MultiExitModel(load_backbone("base").truncated(3), map(str, range(10)), [3]), ["training", "forward"]
    need = memory(model, 32_000, batch=2, depth=3)
    measured = measured_memories([ProbedClient("base", depth=3, batch=2, seconds=2, mode=mode) for mode in modes])
    assert measured == pytest.approx([getattr(need, mode) for mode in modes], rel=0.15)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_failed_measurement_gives_the_reason():
    with pytest.raises(FedexitError, match="unknown mode 'backward'"):
        measured_memory("nano", 3, 1, 1, "backward")
    with pytest.raises(FedexitError, match="exit 13 does not exist in nano"):
        measured_memory("nano", 13, 1, 1)
    clients = [ProbedClient("nano", 1, 1, 0.1), ProbedClient("nano", 3, 10**7, 1000)]  # more than there are addresses
    with pytest.raises(FedexitError, match=r"nano at depth 3 .* died, most often because memory ran out: .*alloc"):
        measured_memories(clients)


def test_a_local_round_keeps_no_gradients():
    model = MultiExitModel(small(), ["a", "b", "c"], [2])
    weights = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    local_round(model, weights, Client("c", [(torch.randn(8_000), 0)], 2), LocalTraining(), (0,))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_costs_of_a_round_add_up_over_clips_and_epochs():
    model = MultiExitModel(small(), ["a", "b", "c"], [2, 4])
    one, other = (clip_macs(model.backbone, samples, 2, model.heads["2"]) for samples in (8_000, 16_000))
    costs = client_costs(model, 2, [8_000, 16_000], LocalTraining(epochs=3))
    assert costs["macs_forward"] == 3 * (one.frozen + one.trained + other.frozen + other.trained)
    assert costs["macs_backward"] == 3 * 2 * (one.trained + other.trained)
    assert costs["memory_training"] == memory(model, 16_000, 2, 2).training
    cached = client_costs(model, 2, [24, 49], LocalTraining(epochs=3), cached=True)  # frames
    assert cached["macs_forward"] == 3 * (one.trained + other.trained)
    assert cached["macs_backward"] == costs["macs_backward"]
    assert cached["memory_forward"] <= costs["memory_forward"]
    sent = model.client_model(2).trainable_weights().values()
    assert costs["parameters"] == sum(tensor.numel() for tensor in sent) and costs["bytes"] == 4 * costs["parameters"]


def test_costs_of_a_client_with_several_exits_include_all_its_heads():
    whole, all_exits = MultiExitModel(small(attention=None), ["a", "b", "c"], [2, 3, 4]), Objective("all")
    training = LocalTraining()
    costs = client_costs(whole, 3, [24_000], training, objective=all_exits)
    client = whole.client_model(3, [2, 3])
    deep = Client("c", [(torch.randn(24_000), 0)], 3)
    update, _ = local_round(client, whole.trainable_weights(), deep, training, (), all_exits)
    data = save({name: tensor.contiguous() for name, tensor in update.weights.items()})
    assert costs["bytes"] == len(data) - 8 - int.from_bytes(data[:8], "little")
    assert {name.split(".")[1] for name in update.weights if name.startswith("heads.")} == {"2", "3"}
    eager = MultiExitModel(small(), ["a", "b", "c"], [2, 3])
    assert costs["macs_forward"] == sum(counted(lambda: eager(torch.randn(1, 24_000), exits=[2, 3])).values())
    need = memory(whole, 24_000, 1, 3, exits=[2, 3])
    assert costs["memory_training"] == need.training
    assert need.weights == sum(tensor.nbytes for tensor in client.state_dict().values())
    both, one = (saved_bytes(model.train(), torch.randn(1, 24_000)) for model in (client, whole.client_model(3)))
    assert need.activations == pytest.approx(both, rel=0.02)
    assert need.activations - memory(whole, 24_000, 1, 3).activations == pytest.approx(both - one, rel=0.1)


def test_time_and_energy_on_a_fleet():
    """Compute two rounds; the second has one client, which does not wait."""
    columns = ["round", "tier", "macs_forward", "macs_backward", "bytes"]
    ledger = pd.DataFrame(
        [[1, "weak", 1e9, 1e9, 1e6], [1, "strong", 4e9, 4e9, 1e6], [2, "strong", 4e9, 0, 0]], columns=columns
    )
    fleet = {"weak": Device(1e9, 8e6, 4e6, watts=5), "strong": Device(8e9, 8e6, 8e6)}
    timed = on_devices(ledger, fleet)
    assert timed["device_seconds"].tolist() == [2 + 1 + 2, 1 + 1 + 1, 0.5]
    assert timed["idle_seconds"].tolist() == [0, 2, 0]
    assert timed["joules"].fillna(-1).tolist() == [25, -1, -1]
    with pytest.raises(FedexitError, match="no device is given for tier 'weak'; known: strong"):
        on_devices(ledger, {"strong": fleet["strong"]})
    with pytest.raises(FedexitError, match="speeds must be > 0"):
        Device(0, 1, 1)
