"""Test that an exported file gives the answers of the model, states what it is, and is written whole or not at all."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from fedexit import __version__, cli, with_lora
from fedexit.data.batches import collate
from fedexit.devices import export as module
from fedexit.devices.export import export, load_onnx, onnx_available
from fedexit.model.backbone import PRESETS, Backbone, load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError

needs_onnx = pytest.mark.skipif(not onnx_available(), reason="onnx or onnxruntime is not installed")
FORMATS = [pytest.param("onnx", marks=needs_onnx), "torchscript"]
LABELS = ["low", "mid", "hügh"]


def clips(*samples):
    generator = torch.Generator().manual_seed(len(samples))
    return [(0.3 * torch.randn(length, generator=generator) + 0.1, 0) for length in samples]


def made(family="hubert", head="pooled", **options):
    """Return a small model of random weights whose head reads standardised states."""
    geometry = {**PRESETS["nano"], **options, "num_hidden_layers": 6}
    geometry.pop("model_type")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(AutoModel.from_config(AutoConfig.for_model(family, **geometry)).eval(), family, False)
    model = MultiExitModel(backbone, LABELS if head == "pooled" else ["a", "b", " "], [3, 6], head=head).eval()
    model.standardise(*collate(clips(8000, 9000, 5000))[:2])
    return model


@pytest.fixture(scope="module")
def model():
    return made()


def runner(file, to):
    return load_onnx(file) if to == "onnx" else torch.jit.load(file)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"family": "wavlm", "head": "ctc"},
        {"family": "wav2vec2", "head": "ctc-bilstm"},
        {"feat_extract_norm": "layer", "conv_bias": True, "conv_pos_batch_norm": True},
    ],
    ids=str,
)
def test_a_file_answers_as_the_model_at_any_length_and_batch_size(kind, to, tmp_path):
    model = made(**kind)
    done = export(model, 3, tmp_path / "file", to)
    assert done.file.stat().st_size == done.bytes and done.difference < 1e-5
    run = runner(done.file, to)
    for samples in ([400], [5000], [48000], [7000, 7000], [400, 20000, 3000, 16000, 801, 6000]):
        batch, lengths, _ = collate(clips(*samples))
        logits, *frames = run(9 * batch + 0.5 * (batch != 0), lengths)  # louder and with an offset: it normalises
        expected = model(batch, lengths, [3])[3]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-5)
        assert all(torch.equal(own, model.backbone.frame_lengths(lengths)) for own in frames)
        assert len(frames) == (model.head != "pooled")


@needs_onnx
def test_onnxruntime_and_numpy_are_enough_to_use_a_file(model, tmp_path):
    import onnxruntime

    file = export(model, 6, tmp_path / "new" / "model.onnx").file
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about.pop("labels")) == LABELS
    assert about == {
        "head": "pooled",
        "targets": "label",
        "exit": "6",
        "sample_rate": "16000",
        "shortest_samples": "400",
        "backbone": "hubert",
        "precision": "float32",
        "fedexit_version": __version__,
    }
    clip = clips(12000)[0][0]
    inputs = {"waveforms": clip.numpy()[None], "lengths": np.array([12000])}
    [logits] = session.run(["logits"], inputs)
    said = model.predict(clip, exit=6, rate=16000)["label"][0]
    assert LABELS[logits[0].argmax()] == said


def test_torchscript_holds_the_metadata_and_only_the_layers_of_its_exit(model, tmp_path):
    sizes = {}
    for depth in (3, 6):
        done = export(model, depth, tmp_path / f"{depth}.pt", "torchscript")
        sizes[depth] = done.bytes
        about = {"labels": "", "exit": ""}
        torch.jit.load(done.file, _extra_files=about)
        assert json.loads(about["labels"]) == LABELS and about["exit"] == str(depth).encode()
    layers = sum(p.numel() for layer in model.backbone.model.encoder.layers[3:] for p in layer.parameters())
    assert sizes[6] - sizes[3] > 4 * layers


def test_adapters_are_merged_and_the_model_stays_as_it_was(tmp_path):
    model = MultiExitModel(with_lora(load_backbone("nano"), 4), LABELS, [3]).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    before = model.checksum()
    run = runner(export(model, 3, tmp_path / "x.pt", "torchscript").file, "torchscript")
    assert model.checksum() == before and model.training and any(p.requires_grad for p in model.parameters())
    batch, lengths, _ = collate(clips(9000, 4000))
    torch.testing.assert_close(run(batch, lengths)[0], model.eval()(batch, lengths)[3], rtol=1e-5, atol=1e-5)


@needs_onnx
def test_int8_is_smaller_and_close(tmp_path):
    import onnx

    model = made(hidden_size=64, intermediate_size=256)
    whole, small = (export(model, 6, tmp_path / f"{int8}.onnx", int8=int8) for int8 in (False, True))
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(small.file).graph.initializer}
    matrices = [kind for kind in stored.values() if kind == onnx.TensorProto.UINT8]
    assert len(matrices) >= 6 * 6 + 1  # four projections and two layers of each block, and the head; some have offsets
    assert small.bytes < 0.6 * whole.bytes
    assert 1e-5 < small.difference < 0.1
    batch, lengths, _ = collate(clips(16000, 9000, 4000))
    logits, expected = load_onnx(small.file)(batch, lengths)[0], model(batch, lengths, [6])[6]
    assert 0 < (logits - expected).abs().max() < 0.1 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_that_differs_from_the_model_is_not_left(model, to, tmp_path, monkeypatch):
    true = module.ExitGraph.forward
    monkeypatch.setattr(module.ExitGraph, "forward", lambda *args: tuple(part + 1e-3 for part in true(*args)))
    file = tmp_path / "file"
    file.write_text("older")
    with pytest.raises(FedexitError, match=rf"the {to} file of exit 3 differs from the model by 0.001 .* removed"):
        export(model, 3, file, to)
    assert file.read_text() == "older" and list(tmp_path.iterdir()) == [file]


def test_without_the_libraries_onnx_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FedexitError, match=r'need onnx and onnxruntime; .* "fedexit\[export\]"$'):
        export(model, 3, tmp_path / "x.onnx")
    with pytest.raises(FedexitError, match="need onnx and onnxruntime"):
        load_onnx(tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_refused(model, tmp_path):
    with pytest.raises(FedexitError, match="the model to export is a Backbone; give a MultiExitModel"):
        export(model.backbone, 3, tmp_path / "x.pt", "torchscript")


def test_the_command_writes_one_file_and_says_what_it_is(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("mine")
    assert cli.main(["export", "mine/", "--to", "torchscript"]) == 0
    assert capsys.readouterr().out.startswith("mine-exit6.pt: 0.2")
    assert cli.main(["export", "mine", "--to", "torchscript", "--exit", "3", "--out", "new/x.pt"]) == 0
    assert {file.name for file in tmp_path.rglob("*.pt")} == {"mine-exit6.pt", "x.pt"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine", "--exit", "4"], "exit 4 does not exist in hubert; known: 3, 6"),
        (["mine", "--to", "tflite"], "unknown format 'tflite'; known: onnx, torchscript"),
        (["mine", "--to", "torchscript", "--int8"], "int8 exists for onnx only, not for torchscript"),
        (["mine", "--to", "torchscript", "--out", "x.onnx"], "x.onnx has the ending of onnx, not of torchscript; name"),
        (["."], ". is not a multi-exit model written by save_pretrained"),
        (["tiny-distilled"], "tiny-distilled is a backbone, which gives no answers; train a model on it"),
        (["mine", "--to", "torchscript", "--out", "mine"], "mine cannot be written (Is a directory); name another"),
        (["mine", "--to", "torchscript", "--out", "mine/config.json/x"], "config.json/x cannot be written ("),
    ],
)
def test_mistakes_of_the_command_are_one_line(model, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("mine")
    files = set(tmp_path.rglob("*"))
    assert cli.main(["export", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and says in printed.err and printed.err.count("\n") == 1
    assert set(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_export_takes_a_model_of_the_users_own(dynamic):
    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = MultiExitModel(load_backbone("nano"), ["a", "b", "c"]).eval()

        def forward(self, waveforms):
            return self.model(waveforms)[6]

    clips = torch.randn(2, 16000)
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(Cut(), (clips,), dynamic_shapes=({0: auto, 1: auto},) if dynamic else None).module()
    others = torch.randn(5, 21234) if dynamic else clips
    assert torch.equal(exported(others), Cut()(others))
