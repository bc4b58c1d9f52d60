"""Test every kind of backbone: states like those of `transformers`, federations, files and answers."""

import copy
import math
from io import StringIO

import pandas as pd
import pytest
import soundfile
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from fedexit import Client, MultiExitModel, aggregate, cli, federate, load_backbone, local_round
from fedexit.data.batches import collate
from fedexit.federated.clients import LocalTraining
from fedexit.federated.regime import Regime
from fedexit.lab.heterofl import narrowed
from fedexit.model.early_exit import run
from fedexit.model.names import layer_of

LARGE = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
SLOW = dict(conv_dim=(8,) * 8, conv_stride=(5, *[2] * 7), conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2))
KINDS = {
    "wav2vec2-large": ("wav2vec2", LARGE),
    "hubert-large": ("hubert", LARGE),
    "wavlm-large": ("wavlm", LARGE),
    "mms": ("wav2vec2", {**LARGE, "adapter_attn_dim": 4}),
    "data2vec": ("data2vec-audio", dict(num_conv_pos_embeddings=3, conv_pos_kernel_size=5)),
    "data2vec-even": ("data2vec-audio", dict(num_conv_pos_embeddings=2, conv_pos_kernel_size=4, conv_bias=True)),
    "adapter": ("wav2vec2", dict(add_adapter=True, output_hidden_size=8)),
    "wavlm-adapter": ("wavlm", {**LARGE, "add_adapter": True}),
    "batch-norm": ("hubert", {**LARGE, "conv_pos_batch_norm": True}),
    "no-projection-norm": ("hubert", dict(feat_proj_layer_norm=False)),
    "no-mask-vector": ("wavlm", dict(mask_time_prob=0.0, mask_feature_prob=0.0)),
    "slow-frames": ("hubert", {**SLOW, "num_feat_extract_layers": 8}),
}
SMALL = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, conv_dim=(8,) * 7)
POSITIONS = dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
LENGTHS = [6000, 4321, 2500]
GENERATOR = torch.Generator().manual_seed(1)
WAVES = [torch.randn(length, generator=GENERATOR) for length in LENGTHS]
DATA = [(wave, target % 2) for target, wave in enumerate(WAVES)]
CLIENTS = [Client("a", DATA, 1), Client("b", DATA[:2], 2), Client("c", DATA[1:], 4), Client("d", DATA[2:], 4)]


@pytest.fixture(scope="module", params=KINDS)
def full(request, tmp_path_factory):
    """Return a model of `transformers` with random weights, and the folder that holds it."""
    family, changes = KINDS[request.param]
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **{**SMALL, **POSITIONS, **changes})).eval()
    with torch.no_grad():  # far from the initial zeros and ones, where mistakes could hide
        for tensor in [*model.parameters(), *[b for name, b in model.named_buffers() if "running" in name]]:
            tensor.add_(0.1 * torch.rand_like(tensor))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def fresh(folder, **options):
    return MultiExitModel(load_backbone(folder), ["a", "b"], exits=[1, 2, 4], **options)


def test_the_state_of_a_cut_backbone_is_that_of_the_cut_model(full):
    """Compare a padded batch with the model cut at that depth by hand, on each clip alone."""
    model, folder = full
    backbone, (waveforms, lengths, _) = load_backbone(folder), collate(DATA)
    cut = copy.deepcopy(model)
    cut.adapter = None
    for depth in (4, 2, 1):
        cut.encoder.layers = cut.encoder.layers[:depth]
        with torch.no_grad():
            states, frames = backbone.truncated(depth).hidden_states(waveforms, lengths)
            whole, _ = backbone.hidden_states(waveforms, lengths)
            raw = list(backbone.layer_by_layer(waveforms, lengths)[0])
        assert len(states) == depth + 1 and torch.equal(states[depth], whole[depth])
        for i, length in enumerate(LENGTHS):
            with torch.no_grad():
                expected = cut(waveforms[i : i + 1, :length], output_hidden_states=True)
            assert frames[i] == expected.last_hidden_state.shape[1] == backbone.frame_lengths(length)
            for state, other in ((states[depth], expected.last_hidden_state), (raw[depth], expected.hidden_states[-1])):
                torch.testing.assert_close(state[i, : frames[i]], other[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("head", ["pooled", "ctc"])
def test_each_exit_answers_like_the_model_cut_there(full, head):
    """Compare the full model with clients' models and with a head on the normalised state; and run to one exit."""
    _, folder = full
    model = fresh(folder, head=head).eval()
    for exit in model.exits:  # a norm of its own, unlike that of the backbone
        for parameter in model.head_at(exit).norm.parameters():
            nn.init.uniform_(parameter)
    waveforms, lengths, _ = collate(DATA)
    with torch.no_grad():
        logits, states = model(waveforms, lengths), model.states(waveforms, lengths)[0]
        for exit in model.exits:
            alone, plain = model.client_model(exit).eval(), copy.deepcopy(model.head_at(exit))
            plain.norm, frames = nn.Identity(), model.backbone.frame_lengths(lengths)
            assert torch.equal(alone(waveforms, lengths)[exit], logits[exit])
            assert torch.equal(plain(model.head_at(exit).norm(states[exit]), frames), logits[exit])
    for rule, threshold, exit in (("probability", -math.inf, 1), ("probability", 2.0, 4)):
        with torch.no_grad():
            expected = model(*collate(DATA[:1])[:2])[exit]
        assert run(model, WAVES[0], rule, threshold)[0] == exit
        torch.testing.assert_close(run(model, WAVES[0], rule, threshold)[1], expected)


def test_clients_at_several_depths_send_and_the_server_averages_every_part(full):
    """Compare one round of `federate` with local rounds and Eq. (1) by hand; every exit owns its norm."""
    _, folder = full
    model = fresh(folder)
    start, updates = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}, []
    for client in CLIENTS:
        scratch = model.client_model(client.depth)
        update, _ = local_round(scratch, start, client, LocalTraining(), (0, "round", 1, "client", client.name))
        assert all((layer_of(name) or 0) <= client.depth for name in update.weights)
        updates.append(update)
    expected = aggregate(start, updates)
    found = federate(model, CLIENTS, rounds=1).model.trainable_weights()
    assert found.keys() == start.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    unmoved = [name for name in found if torch.equal(found[name], start[name])]
    assert not [name for name in unmoved if "k_proj.bias" not in name and "relative" not in name and "gru" not in name]
    norms = {name.split(".")[1] for name in found if name.startswith("heads.") and ".norm." in name}
    large = getattr(model.backbone.model.config, "do_stable_layer_norm", False)
    assert norms == ({"1", "2", "4"} if large else set())
    assert ("backbone.model.encoder.layer_norm.weight" in found) != large


def test_resumed_federations_files_and_answers_are_those_of_a_straight_run(full, tmp_path, capsys):
    _, folder = full
    straight = federate(fresh(folder), CLIENTS, rounds=2, dev=DATA, regime=Regime(heads_rounds=1))
    for rounds in (1, 2):
        options = dict(rounds=rounds, dev=DATA, regime=Regime(heads_rounds=1), checkpoint=tmp_path / "c.safetensors")
        resumed = federate(fresh(folder), CLIENTS, **options)
    assert resumed.model.checksum() == straight.model.checksum()
    pd.testing.assert_frame_equal(resumed.table, straight.table)
    straight.model.save_pretrained(tmp_path / "model")
    again = MultiExitModel.from_pretrained(tmp_path / "model")
    assert again.checksum() == straight.model.checksum()
    files = [str(tmp_path / f"{number}.wav") for number in range(len(WAVES))]
    for file, wave in zip(files, WAVES, strict=True):
        soundfile.write(file, 0.1 * wave.numpy(), 16000, subtype="FLOAT")
    expected = straight.model.predict(files, exit=2)
    pd.testing.assert_frame_equal(again.predict(files, exit=2), expected)
    capsys.readouterr()
    assert cli.main(["predict", str(tmp_path / "model"), *files, "--exit", "2"]) == 0
    found = pd.read_csv(StringIO(capsys.readouterr().out))
    pd.testing.assert_frame_equal(found, expected, atol=1e-4)


@pytest.mark.parametrize("full", ["hubert-large", "data2vec"], indirect=True)
def test_rounds_of_heads_leave_the_norms_alone(full):
    _, folder = full
    before = fresh(folder).state_dict()
    found = federate(fresh(folder), CLIENTS, rounds=0, regime=Regime(heads_rounds=1))
    moved = {name for name, tensor in found.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"heads.{exit}.linear.{part}" for exit in (1, 2, 4) for part in ("weight", "bias")}
    sent = [sum(before[name].numel() for name in moved if int(name.split(".")[1]) <= c.depth) for c in CLIENTS]
    assert found.clients["parameters"].tolist() == sent


@pytest.mark.parametrize("full", ["wav2vec2-large", "wavlm-large", "data2vec"], indirect=True)
def test_a_narrow_model_has_the_first_channels_of_each_norm(full):
    _, folder = full
    model = fresh(folder)
    narrow = narrowed(model, 0.5)
    assert narrow(torch.randn(2, 4000))[4].shape == (2, 2)
    for name, tensor in narrow.state_dict().items():
        if ".norm." in name:
            assert torch.equal(tensor, model.state_dict()[name][: len(tensor)]) and len(tensor) == 8
