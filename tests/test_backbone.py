import json
import os
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCTC, AutoModelForPreTraining

import fedexit
from fedexit.data.batches import collate, standardised
from fedexit.model.backbone import PRESETS, default_exits, load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import predict
from fedexit.support.errors import FedexitError
from fedexit.support.files import check_downloaded
from fedexit.support.paths import backbone_folders, project_root
from fedexit.support.streams import stream_seed

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
    """Return normalised clips: a backbone normalises its input, the models of `transformers` do not."""
    generator = torch.Generator().manual_seed(1)
    return collate([(torch.randn(length, generator=generator), 0) for length in LENGTHS])[:2]


@pytest.fixture
def padded():
    return padded_batch()


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_7_depth_k_is_the_full_models_kth_hidden_state(family, norm, padded, tmp_path):
    """Compare a padded batch with `transformers` on each clip alone: depth, lengths, and no leak from padding."""
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
    """Compare the whole padded batch where `transformers` itself ignores padding (layer-norm convolutions)."""
    waveforms, lengths = padded
    full = saved_model(tmp_path, family, feat_extract_norm="layer", conv_bias=True)
    mask = (torch.arange(waveforms.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        states, frames = load_backbone(tmp_path).hidden_states(waveforms, lengths)
        expected = full(waveforms, attention_mask=mask, output_hidden_states=True).hidden_states
    for layer in range(13):
        for i, count in enumerate(frames):
            torch.testing.assert_close(states[layer][i, :count], expected[layer][i, :count], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_loudness_and_offset_change_no_logits(norm, padded, tmp_path):
    """Compare clips at -10 and at -70 dBFS, with an offset, with the clips as `collate` normalises them."""
    waveforms, lengths = padded
    saved_model(tmp_path, "wav2vec2", feat_extract_norm=norm, conv_bias=norm == "layer")
    model = MultiExitModel(load_backbone(tmp_path), ["a", "b", "c"]).eval()
    with torch.no_grad():
        expected = model(waveforms, lengths)
        for gain in (10 ** (-10 / 20), 10 ** (-70 / 20)):
            found = model(gain * (waveforms + 0.3), lengths)
            for depth, logits in found.items():
                torch.testing.assert_close(logits, expected[depth], rtol=0, atol=2e-4)


def test_normalised_clips_stay_bit_identical(padded):
    waveforms, lengths = padded
    quiet = collate([(1e-3 * waveforms[0] + 0.1, 0), (3e-3 * waveforms[1, :9000], 0)])
    for clips, sizes in ((waveforms, lengths), quiet[:2]):
        assert torch.equal(standardised(clips, sizes), clips)
    half, sizes = (waveforms.half() * 40), torch.tensor(LENGTHS)
    assert standardised(half, sizes).dtype == torch.float16
    torch.testing.assert_close(standardised(half, sizes).float(), waveforms, rtol=1e-2, atol=1e-2)
    silent = standardised(torch.zeros(1, 400), torch.tensor([400]))
    assert torch.equal(silent, torch.zeros(1, 400))


def test_padding_changes_no_hidden_state(padded):
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


def test_presets_have_twelve_layers_and_equal_seeds_give_bit_identical_weights():
    for name in PRESETS:
        assert PRESETS[name]["num_hidden_layers"] == 12
    one, two, other = (load_backbone("nano", seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_base_has_the_size_of_wav2vec2_base():
    """The model has 94,371,712 parameters, of which 12 x 7,087,872 are in the layers."""
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(**PRESETS["base"]))
    layer = sum(p.numel() for p in model.encoder.layers[0].parameters())
    assert (sum(p.numel() for p in model.parameters()), layer) == (94_371_712, 7_087_872)


def test_default_exits():
    assert [default_exits(n) for n in (12, 24, 4, 1)] == [[3, 6, 9, 12], [6, 12, 18, 24], [1, 2, 3, 4], [1]]


@pytest.mark.parametrize("depth", [0, 13, -1])
def test_a_depth_beyond_the_backbone_is_refused(depth):
    with pytest.raises(FedexitError, match=rf"depth {depth} .*1 to 12"):
        load_backbone("nano").hidden_states(torch.randn(1, 16000), depth=depth)


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


def test_tiny_is_small_has_its_training_record_and_differs_from_its_control():
    folder = backbone_folders()["tiny"]
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


def test_loading_prints_nothing_and_restores_progress_bars(tmp_path, capfd):
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


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


WRONG_WEIGHTS = {
    "1 missing: encoder.layer_norm.bias": lambda w: {n: t for n, t in w.items() if n != "encoder.layer_norm.bias"},
    "1 unexpected: encoder.extra": lambda w: {**w, "encoder.extra": torch.zeros(1)},
    "1 of another shape: encoder.layer_norm.bias": lambda w: {**w, "encoder.layer_norm.bias": torch.zeros(3)},
    "missing: .* unexpected: other.encoder": lambda w: {f"other.{n}": t for n, t in w.items()},
    "NaN or infinity in encoder.layer_norm.bias": lambda w: {**w, "encoder.layer_norm.bias": torch.full((24,), np.nan)},
}


@pytest.mark.parametrize("words", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_the_config_are_named(words, tmp_path):
    saved_model(tmp_path, "hubert", num_hidden_layers=1)
    change_weights(tmp_path, WRONG_WEIGHTS[words])
    with pytest.raises(FedexitError, match=words) as caught:
        load_backbone(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [AutoModelForCTC, AutoModelForPreTraining])
def test_heads_of_other_models_are_ignored_without_a_warning(kind, tmp_path, capfd):
    config = AutoConfig.for_model("wav2vec2", **{**TINY, "num_hidden_layers": 1})
    kind.from_config(config).save_pretrained(tmp_path)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_backbone(tmp_path).layers == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "data2vec-audio"])
def test_a_missing_mask_vector_is_drawn_the_same_each_time_with_a_warning(family, tmp_path):
    saved_model(tmp_path, family, num_hidden_layers=1)
    change_weights(tmp_path, lambda weights: {n: t for n, t in weights.items() if n != "masked_spec_embed"})
    sums = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match="no mask vector"):
            sums.add(MultiExitModel(load_backbone(tmp_path), ["a", "b"]).checksum())
    assert len(sums) == 1


BROKEN_FILES = {
    "Git LFS pointer": ("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
    "safetensors is a web page": ("model.safetensors", "<!DOCTYPE html>"),
    "safetensors is empty": ("model.safetensors", ""),
    "JSON list, not an object": ("config.json", "[]"),
    "config.json is not JSON": ("config.json", "{"),
    "names no model_type": ("config.json", "{}"),
    "hidden_dropout.*got NoneType": ("config.json", '{"model_type": "hubert", "hidden_dropout": null}'),
    "sampling_rate is 8000": ("preprocessor_config.json", '{"sampling_rate": 8000}'),
    "sampling_rate is 44100": ("processor_config.json", '{"feature_extractor": {"sampling_rate": 44100}}'),
    "feature_extractor is 'x', not an object": ("processor_config.json", '{"feature_extractor": "x"}'),
}


@pytest.mark.parametrize("words", BROKEN_FILES)
def test_broken_files_are_refused_in_one_line(words, tmp_path):
    saved_model(tmp_path, "hubert", num_hidden_layers=1)
    name, content = BROKEN_FILES[words]
    (tmp_path / name).write_text(content)
    with pytest.raises(FedexitError, match=words) as caught:
        load_backbone(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [9, 200, -4, -1])
def test_weights_that_are_cut_off_are_refused_with_their_size(left, tmp_path):
    saved_model(tmp_path, "hubert", num_hidden_layers=1)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    check_downloaded(file)
    file.write_bytes(whole[:left])
    size = len(whole[:left])
    with pytest.raises(
        FedexitError, match=rf"safetensors is cut off: it holds {size} of \d+ bytes; download it again$"
    ):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    "content", [b"x" * 7, bytes(200), b"[]", b'{"a": 1}', b'{"a": {"data_offsets": "x"}}', b"[" * 9999]
)
def test_weights_with_a_header_of_another_form_are_refused_in_one_line(content, tmp_path):
    saved_model(tmp_path, "hubert", num_hidden_layers=1)
    (tmp_path / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(
        FedexitError, match=r"^[^\n]* cannot be read \(SafetensorError: [^\n]*; check config.json and weights$"
    ):
        load_backbone(tmp_path)


class Touch:
    """Make a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", ["empty", "page", "foreign"])
def test_a_bin_file_is_never_unpickled(content, tmp_path):
    saved_model(tmp_path, "hubert", num_hidden_layers=1)
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    if content == "foreign":
        torch.save({"model": Touch(tmp_path / "made")}, file)
    else:
        file.write_text("" if content == "empty" else "not a pickle")
    with pytest.raises(FedexitError, match=r"pytorch_model\.bin|\.bin file"):
        load_backbone(tmp_path)
    assert not (tmp_path / "made").exists()


def test_raw_waveforms_of_the_preprocessor_are_reported(tmp_path):
    saved_model(tmp_path, "hubert", num_hidden_layers=1)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false, "sampling_rate": 16000}')
    with pytest.warns(UserWarning, match="do_normalize"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("family", ["wav2vec2", "wavlm"])
def test_the_adapter_above_the_layers_is_not_loaded(family, tmp_path):
    full = saved_model(tmp_path, family, num_hidden_layers=2, add_adapter=True, output_hidden_size=16)
    backbone, wave = load_backbone(tmp_path), torch.randn(1, 16000)
    with torch.no_grad():
        states, frames = backbone.hidden_states(wave)
        expected = full(wave, output_hidden_states=True).hidden_states
    assert frames.tolist() == [49] and not [name for name in backbone.state_dict() if "adapter" in name]
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state, other, rtol=1e-4, atol=2e-5)


def test_batch_norm_before_the_positions_ignores_padding_and_keeps_its_statistics(padded, tmp_path):
    full = saved_model(tmp_path, "hubert", num_hidden_layers=2, conv_pos_batch_norm=True)
    norm = full.encoder.pos_conv_embed.batch_norm
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(2.0)
    full.save_pretrained(tmp_path)
    backbone, (waveforms, lengths) = load_backbone(tmp_path).train(), padded
    before = {name: tensor.clone() for name, tensor in backbone.named_buffers()}
    backbone.hidden_states(waveforms, lengths)
    assert before and all(torch.equal(before[name], tensor) for name, tensor in backbone.named_buffers())
    backbone.eval()
    with torch.no_grad():
        states, frames = backbone.hidden_states(waveforms, lengths)
        for i, length in enumerate(LENGTHS):
            alone = full(waveforms[i : i + 1, :length], output_hidden_states=True).hidden_states
            torch.testing.assert_close(states[-1][i, : frames[i]], alone[-1][0], rtol=1e-4, atol=2e-5)
    assert len(MultiExitModel(backbone, ["a", "b"]).checksum()) == 64


def test_frame_lengths_follow_other_strides(tmp_path):
    """Compare frames of 40 ms with `transformers`."""
    strides = dict(conv_dim=(8,) * 8, conv_stride=(5, *[2] * 7), conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2))
    full = saved_model(tmp_path, "hubert", num_hidden_layers=1, num_feat_extract_layers=8, **strides)
    backbone = load_backbone(tmp_path)
    for samples in (800, 4000, 16001):
        with torch.no_grad():
            frames = full(torch.randn(1, samples)).last_hidden_state.shape[1]
        assert backbone.frame_lengths(samples) == frames == int(backbone.frame_lengths(torch.tensor([samples])))


def test_double_precision_weights_work(padded):
    waveforms, lengths = padded
    single = MultiExitModel(load_backbone("nano"), ["a", "b"]).eval()
    double = MultiExitModel(load_backbone("nano").double(), ["a", "b"]).eval()
    double.load_state_dict(single.state_dict())
    with torch.no_grad():
        logits = double(waveforms, lengths)[12]
        assert logits.dtype == torch.float64
        torch.testing.assert_close(logits.float(), single(waveforms, lengths)[12], rtol=1e-3, atol=1e-4)


WAVES = torch.zeros(2, 4000)
WRONG_BATCHES = {
    "lengths are 4000 to 4001, but the batch allows 1 to 4000": (WAVES, torch.tensor([4000, 4001])),
    "lengths are 0 to 4000": (WAVES, torch.tensor([0, 4000])),
    "tensor of 2 integers, one per clip, not tensor.*4000": (WAVES, torch.tensor([4000])),
    "one per clip, not": (WAVES, torch.tensor([4000.0, 4000.0])),
    "tensor of 2 integers": (WAVES, [4000, 4000]),
    "clip 1 of the batch .from 0. holds NaN": (torch.stack([WAVES[0], WAVES[0] / 0]), None),
    r"shape \(4000,\)": (WAVES[0], None),
    r"shape \(2, 1, 4000\)": (WAVES[:, None], None),
    r"shape \(0, 4000\)": (WAVES[:0], None),
    r"waveforms are torch\.int16": (WAVES.short(), None),
    "waveforms are ndarray": (WAVES.numpy(), None),
}


@pytest.mark.parametrize("words", WRONG_BATCHES)
def test_invalid_batches_are_refused(words):
    with pytest.raises(FedexitError, match=words):
        load_backbone("nano").hidden_states(*WRONG_BATCHES[words])


WRONG_EXAMPLES = {
    "clip 0 of the batch is of type ndarray": (np.zeros(400, np.float32), 0),
    "clip 0 of the batch is int16": (torch.zeros(400, dtype=torch.int16), 0),
    "clip 0 of the batch is float64": (torch.zeros(400, dtype=torch.float64), 0),
    r"has shape \(2, 400\); give a mono waveform": (torch.zeros(2, 400), 0),
    r"has shape \(1, 400\)": (torch.zeros(1, 400), 0),
    "holds an infinite value": (torch.full((400,), np.inf), 0),
    "has target 0.7j; give a number": (torch.zeros(400), 0.7j),
    "has target None": (torch.zeros(400), None),
    "has target 'yes'": (torch.zeros(400), "yes"),
    "is a dict with the keys audio, label; give a pair": {"audio": torch.zeros(400), "label": 1},
}


@pytest.mark.parametrize("words", WRONG_EXAMPLES)
def test_invalid_examples_are_refused(words):
    with pytest.raises(FedexitError, match=words):
        collate([WRONG_EXAMPLES[words]])


def test_an_invalid_example_is_named_by_its_position_in_the_data():
    model = MultiExitModel(load_backbone("nano").truncated(3), ["no", "yes"], [3])
    with pytest.raises(FedexitError, match="clip 1 is a dict"):
        predict(model, [(torch.zeros(400), 0), {"audio": torch.zeros(400), "label": 1}])


def test_numpy_numbers_are_accepted():
    clips, _, targets = collate([(torch.randn(400), np.int64(1)), (torch.randn(400), 0)])
    assert targets.tolist() == [1, 0] and torch.isfinite(clips).all()
    assert stream_seed(3, "a") == stream_seed(np.int64(3), np.str_("a")) == stream_seed(torch.tensor(3), "a")
    assert stream_seed(0, "sampling", 1) == 6427923069427358521 and stream_seed(True) == stream_seed(1)
    backbone = load_backbone("nano", seed=np.int64(0)).truncated(np.int64(3))
    assert type(backbone.model.config.num_hidden_layers) is int and backbone.layers == 3


def test_a_preset_and_a_folder_of_the_same_name_are_ambiguous(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_ROOT", str(project_root()))
    monkeypatch.chdir(tmp_path)
    saved_model(tmp_path / "nano", "hubert", num_hidden_layers=1)
    with pytest.raises(FedexitError, match=r"write \./nano for yours"):
        load_backbone("nano")
    assert load_backbone("./nano").layers == load_backbone(tmp_path / "nano").layers == 1
    assert load_backbone("tiny").layers == 12


def test_reading_a_folder_is_recorded(tmp_path, monkeypatch):
    from fedexit.support.files import file_hash
    from fedexit.support.reads import read_notes

    saved_model(tmp_path / "own", "hubert", num_hidden_layers=1)
    monkeypatch.setenv("FEDEXIT_READS", str(tmp_path / "reads"))
    load_backbone(tmp_path / "own")
    noted = read_notes(tmp_path / "reads")["backbone"][str(tmp_path / "own")]
    assert noted["checksum"] == file_hash(tmp_path / "own" / "model.safetensors")


# ---- backbones that come with the package --------------------------------------------------------------------------


def test_shipped_backbones_load_outside_of_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDEXIT_ROOT", raising=False)
    assert {"tiny", "tiny-ctc", "tiny-distilled"} <= set(backbone_folders())
    assert load_backbone("tiny-distilled").pretrained


def test_all_files_of_shipped_backbones_are_in_the_package():
    patterns = tomllib.loads((project_root() / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = Path(fedexit.__file__).parent
    packed = {file for pattern in patterns["fedexit"] for file in folder.glob(pattern) if file.is_file()}
    packed.remove(folder / "py.typed")
    assert packed == {file for file in (folder / "backbones").rglob("*") if file.is_file()}
    sizes = {file.parent.name: file.stat().st_size for file in packed if file.name == "model.safetensors"}
    assert max(sizes.values()) <= 8e6 and len(sizes) >= 3


def test_a_backbone_of_the_project_has_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "nbs_ci.yml").touch()
    monkeypatch.setenv("FEDEXIT_ROOT", str(tmp_path))
    saved_model(tmp_path / "data/backbones/mine", "hubert", num_hidden_layers=1)
    assert load_backbone("mine").layers == 1 and "mine" in backbone_folders()
    saved_model(tmp_path / "data/backbones/tiny", "hubert", num_hidden_layers=1)
    with pytest.raises(FedexitError, match="has the name of a backbone that comes with fedexit; rename the folder"):
        load_backbone("mine")
