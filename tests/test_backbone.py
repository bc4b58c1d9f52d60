import json

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModel

from fedexit.model.backbone import PRESETS, default_exits, load_backbone
from fedexit.support.errors import FedexitError
from fedexit.support.paths import backbones_dir

LENGTHS = [16000, 9000, 4321]
TINY = dict(
    hidden_size=24,
    num_hidden_layers=12,
    num_attention_heads=2,
    intermediate_size=32,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)


def saved_model(folder, family, **changes):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **{**TINY, **changes})).eval()
    with torch.no_grad():  # far from the initial zeros and ones, where mistakes could hide
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def padded_batch():
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.randn(len(LENGTHS), max(LENGTHS), generator=generator)
    for row, length in zip(waveforms, LENGTHS, strict=True):
        row[length:] = 0
    return waveforms, torch.tensor(LENGTHS)


@pytest.fixture
def padded():
    return padded_batch()


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_7_depth_k_is_the_full_models_kth_hidden_state(family, norm, padded, tmp_path):
    """In a padded batch, against `transformers` on each clip alone: right depth and lengths, no leak from padding."""
    waveforms, lengths = padded
    full = saved_model(tmp_path, family, feat_extract_norm=norm, conv_bias=norm == "layer")
    backbone = load_backbone(tmp_path)
    for depth in (1, 3, 6, 9, 12):
        with torch.no_grad():
            states, frames = backbone.truncated(depth).hidden_states(waveforms, lengths)
            run_shallow, _ = backbone.hidden_states(waveforms, lengths, depth=depth)
        assert len(states) == depth + 1
        assert torch.equal(states[-1], run_shallow[-1])
        for i, length in enumerate(LENGTHS):
            with torch.no_grad():
                expected = full(waveforms[i : i + 1, :length], output_hidden_states=True).hidden_states
            assert frames[i] == expected[0].shape[1]
            for layer in range(depth + 1):
                torch.testing.assert_close(states[layer][i, : frames[i]], expected[layer][0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_7_equals_transformers_on_the_padded_batch_itself(family, padded, tmp_path):
    """Where `transformers` itself is padding-safe (layer-norm convolutions), the whole padded batch agrees too."""
    waveforms, lengths = padded
    full = saved_model(tmp_path, family, feat_extract_norm="layer", conv_bias=True)
    mask = (torch.arange(waveforms.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        states, frames = load_backbone(tmp_path).hidden_states(waveforms, lengths)
        expected = full(waveforms, attention_mask=mask, output_hidden_states=True).hidden_states
    for layer in range(13):
        for i, count in enumerate(frames):
            torch.testing.assert_close(states[layer][i, :count], expected[layer][i, :count], rtol=1e-4, atol=2e-5)


def test_padding_holds_no_information(padded):
    waveforms, lengths = padded
    backbone = load_backbone("nano")
    noisy = waveforms.clone()
    noisy[1, LENGTHS[1] :] = torch.randn(max(LENGTHS) - LENGTHS[1])
    with torch.no_grad():
        clean, frames = backbone.hidden_states(waveforms, lengths)
        dirty, _ = backbone.hidden_states(noisy, lengths)
    torch.testing.assert_close(clean[-1][1, : frames[1]], dirty[-1][1, : frames[1]], rtol=1e-4, atol=1e-5)


def test_truncation_is_real_and_leaves_the_original_alone():
    backbone = load_backbone("tiny-random")
    shallow = backbone.truncated(3)
    assert (shallow.layers, backbone.layers) == (3, 12)
    assert not [
        n for n, _ in shallow.named_parameters() if any(f"layers.{i}." in n for i in range(3, 12)) and "conv" not in n
    ]
    with torch.no_grad():
        next(iter(shallow.model.encoder.layers.parameters())).add_(1)
    layer = next(iter(backbone.model.encoder.layers.parameters()))
    assert not torch.equal(layer, next(iter(shallow.model.encoder.layers.parameters())))


def test_presets_have_twelve_layers_and_same_seed_same_bits():
    for name in PRESETS:
        assert PRESETS[name]["num_hidden_layers"] == 12
    one, two, other = (load_backbone("nano", seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_base_is_wav2vec2_base_by_size():
    """Section 5 of the facts about the paper: 94,371,712 parameters, of which 12 x 7,087,872 in the layers."""
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(**PRESETS["base"]))
    layer = sum(p.numel() for p in model.encoder.layers[0].parameters())
    assert (sum(p.numel() for p in model.parameters()), layer) == (94_371_712, 7_087_872)


def test_default_exits():
    assert [default_exits(n) for n in (12, 24, 4, 1)] == [[3, 6, 9, 12], [6, 12, 18, 24], [1, 2, 3, 4], [1]]


@pytest.mark.parametrize("depth", [0, 13, -1])
def test_a_depth_the_backbone_has_not_is_refused(depth):
    with pytest.raises(FedexitError, match=rf"depth {depth} .*1 to 12"):
        load_backbone("nano").hidden_states(torch.randn(1, 16000), depth=depth)


def test_stable_layer_norm_models_are_refused_with_the_reason(tmp_path):
    saved_model(tmp_path, "wav2vec2", do_stable_layer_norm=True, feat_extract_norm="layer")
    with pytest.raises(FedexitError, match="stable-layer-norm"):
        load_backbone(tmp_path)


def test_half_precision_weights_become_float32(tmp_path):
    saved_model(tmp_path, "hubert").half().save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone.hidden_states(torch.randn(1, 4000))[0][-1].dtype == torch.float32


def test_damaged_weights_are_refused_in_one_line(tmp_path):
    saved_model(tmp_path, "hubert")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FedexitError, match="cannot load backbone") as caught:
        load_backbone(tmp_path)
    assert "\n" not in str(caught.value)


def test_tiny_ships_small_with_its_record_and_unlike_its_control():
    folder = backbones_dir() / "tiny"
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 12e6
    tiny, control = load_backbone("tiny"), load_backbone("tiny-random")
    assert tiny.pretrained and not control.pretrained and tiny.layers == 12
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (tiny, control)]
    assert shapes[0] == shapes[1]
    changed = [name for name, tensor in tiny.named_parameters() if not torch.equal(tensor, control.get_parameter(name))]
    assert len(changed) == len(shapes[0]), "every weight was trained"
    for stage in ("stage1", "stage2"):
        settings = json.loads((folder / "training" / f"{stage}.json").read_text())
        updates = pd.read_csv(folder / "training" / f"{stage}.csv")["update"]
        assert updates.iloc[-1] == settings["updates"] and set(settings["corpora"]) == {"unlabelled", "queen"}


def test_loading_is_quiet_and_leaves_the_bars_of_others_alone(tmp_path, capfd):
    load_backbone("nano").model.save_pretrained(tmp_path)
    assert "Writing model shards" in capfd.readouterr().err
    load_backbone(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_other_families_and_missing_models_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FedexitError, match=r"config\.json"):
        load_backbone(empty)
    with pytest.raises(FedexitError, match="nano, tiny-random, base"):
        load_backbone("no/such-model")
    bert = AutoConfig.for_model("bert", hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    AutoModel.from_config(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(FedexitError, match="bert"):
        load_backbone(tmp_path / "bert")


def test_a_clip_shorter_than_one_frame_is_refused():
    with pytest.raises(FedexitError, match="399 samples"):
        load_backbone("nano").hidden_states(torch.randn(2, 16000), torch.tensor([16000, 399]))
