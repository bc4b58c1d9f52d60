"""Test the answers for recordings: any rate, format and loudness, early exits, and wrong input."""

import json
from io import StringIO
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from fedexit import __version__, cli
from fedexit.data.batches import collate
from fedexit.data.text import characters
from fedexit.federated.clients import Client
from fedexit.federated.rounds import federate
from fedexit.model import pretrained
from fedexit.model.backbone import load_backbone
from fedexit.model.early_exit import run
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError
from fedexit.support.tensors import write_tensors

LABELS = ["low", "mid", "high"]


def tone(step, rate=16000, seconds=0.5):
    return torch.sin(torch.arange(int(rate * seconds)) * step * 16000 / rate) / 10


CLIPS = [tone(0.05), tone(0.1, seconds=0.3), tone(0.3, seconds=0.9)]


@pytest.fixture(scope="module")
def model():
    made = MultiExitModel(load_backbone("nano"), LABELS).eval()
    with torch.no_grad():  # so that clips differ in their answers and in their exits
        made.standardise(*collate([(clip, 0) for clip in CLIPS])[:2])
        made.head_at(12).linear.weight.mul_(20)
    return made


@pytest.fixture
def files(tmp_path):
    """Write one clip as WAV, as stereo at 44.1 kHz, and as loud and quiet FLAC."""
    clip = CLIPS[0].numpy()
    stereo = np.stack([tone(0.05, 44100).numpy()] * 2, axis=1)
    written = {"plain.wav": (clip, 16000), "stereo.ogg": (stereo, 44100), "loud.flac": (clip * 9, 16000)}
    for name, (samples, rate) in {**written, "quiet.flac": (clip / 9, 16000)}.items():
        soundfile.write(tmp_path / name, samples, rate)
    return [str(tmp_path / name) for name in ("plain.wav", "stereo.ogg", "loud.flac", "quiet.flac")]


def test_answers_are_those_of_the_logits_at_the_exit(model):
    for depth in (3, 12):
        table = model.predict(CLIPS, exit=depth, rate=16000, batch_size=2)
        assert list(table.columns) == ["clip", "label", "confidence", "exit"] and list(table["clip"]) == [0, 1, 2]
        for clip, row in zip(CLIPS, table.itertuples(), strict=True):
            with torch.no_grad():
                shares = model(clip[None])[depth].softmax(1)[0]
            assert row.label == LABELS[shares.argmax()] and row.exit == depth
            assert row.confidence == pytest.approx(shares.max().item(), abs=1e-4)
    assert set(model.predict(CLIPS, rate=16000)["exit"]) == {12}


def test_rate_format_channels_and_loudness_do_not_matter(model, files):
    table = model.predict(files)
    assert list(table["clip"]) == files and table["label"].nunique() == 1
    exact = table[table["clip"] != files[1]]
    assert exact["confidence"].max() - exact["confidence"].min() < 5e-3  # 16 bits
    assert table["confidence"].max() - table["confidence"].min() < 0.1  # resampled and compressed
    same = [CLIPS[0] * 10 ** (level / 20) for level in (10, -50)] + [(CLIPS[0] * 30000).short(), CLIPS[0].double()]
    arrays = [CLIPS[0].numpy().astype(">f4"), (CLIPS[0].numpy()[::-1] * 9)[::-1], CLIPS[0][None]]
    found = model.predict([*same, *arrays], rate=16000)
    assert found["confidence"].max() - found["confidence"].min() < 1e-3 and found["label"].nunique() == 1


def test_one_recording_a_mixed_list_and_a_column_of_a_table_are_accepted(model, files):
    alone = model.predict(files[0])
    mixed = model.predict([CLIPS[1], files[0]], rate=16000)
    assert list(mixed["clip"]) == [0, files[0]] and mixed["label"][1] == alone["label"][0]
    assert model.predict(CLIPS[0], rate=16000)["clip"].tolist() == [0]
    pd.testing.assert_frame_equal(model.predict(pd.Series(files[:2])), model.predict(files[:2]))
    pd.testing.assert_frame_equal(model.predict(np.array(files[:2])), model.predict(files[:2]))


@pytest.mark.parametrize(
    ("rule", "threshold"), [("entropy", -0.9), ("probability", 0.5), ("agreement", 1), ("entropy", 9)]
)
def test_a_rule_stops_as_early_exit_does(model, rule, threshold):
    table = model.predict(CLIPS, rule=rule, threshold=threshold, rate=16000)
    for clip, row in zip(CLIPS, table.itertuples(), strict=True):
        depth, logits = run(model, clip, rule, threshold)
        assert (row.exit, row.label) == (depth, LABELS[logits.argmax()])
    assert threshold < 9 or set(table["exit"]) == {12}


def test_layers_above_the_exit_are_not_run(model):
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(model.backbone.model.encoder.layers, 1)
    ]
    model.predict(CLIPS[0], exit=3, rate=16000)
    model.predict(CLIPS[0], rule="probability", threshold=0.0, rate=16000)
    for hook in hooks:
        hook.remove()
    assert ran == [1, 2, 3] * 2


def with_path(codes, labels):
    """Return a CTC model that reads this path from any clip: its head's bias follows the frames."""
    made = MultiExitModel(load_backbone("nano"), labels, head="ctc").eval()
    logits = torch.zeros(1, len(codes), 1 + len(labels))
    logits[0, range(len(codes)), codes] = 10.0
    for head in made.heads.values():
        head.forward = lambda states, frames: logits.expand(len(states), -1, -1)
    return made


@pytest.mark.parametrize("labels", [list(" abcdefghijklmnopqrstuvwxyzäöüß"), list("приветмю ё"), ["b", " ", "a"]])
def test_texts_are_spelled_by_the_models_own_labels(labels):
    text = "".join(labels[:5]).strip() or "ba"
    codes = [code for one in characters(text, labels) for code in (one, 0)]
    model = with_path(codes, labels)
    table = model.transcribe(CLIPS[:2], rate=16000)
    assert list(table.columns) == ["clip", "text", "confidence", "exit"] and table["text"].tolist() == [text] * 2
    assert table["confidence"].tolist() == pytest.approx([1 / (1 + len(labels) * np.exp(-10))] * 2, abs=1e-6)
    agreed = model.transcribe(CLIPS[0], rule="agreement", threshold=0, rate=16000)
    assert agreed[["text", "exit"]].values.tolist() == [[text, 6]]
    assert with_path([0, 0, 0], labels).predict(CLIPS[0], rate=16000)[["text", "confidence"]].values.tolist() == [
        ["", 0.0]
    ]


def test_silence_gets_an_answer(model):
    assert model.predict(torch.zeros(8000), rate=16000)["confidence"].notna().all()


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ([], {}, "the list of recordings is empty"),
        (None, {}, "recordings must be a list of files or waveforms, not a NoneType"),
        (CLIPS[0], {}, r"does not state its rate; give it in Hz, e\.g\. rate=16000"),
        ("x.wav", {"rate": 16000}, "rate=16000 is for waveforms"),
        (CLIPS[0], {"rate": 0}, "rate is 0 Hz; give 1000 to 1000000"),
        (CLIPS[0], {"rate": 16e3}, "rate must be a whole number"),
        (torch.zeros(4, 16000), {"rate": 16000}, r"waveform 0 has shape \(4, 16000\); give \(T,\)"),
        (CLIPS[0][:300], {"rate": 16000}, "waveform 0: 300 samples at 16 kHz are too short"),
        ([CLIPS[0], CLIPS[0] / 0], {"rate": 16000}, "waveform 1 holds no samples, NaN or infinity"),
        (torch.zeros(0), {"rate": 16000}, "waveform 0 holds no samples"),
        (CLIPS[0].bool(), {"rate": 16000}, "waveform 0 holds values of type bool"),
        (CLIPS[0] * 1j, {"rate": 16000}, "waveform 0 holds values of type complex64"),
        ([0.1, 0.2], {}, "recording 0 is a float; give the path of a file, or a tensor or array"),
        (CLIPS[0], {"rate": 16000, "exit": 5}, "exit 5 does not exist in nano; known: 3, 6, 9, 12"),
        (CLIPS[0], {"rate": 16000, "exit": "3"}, "exit must be a whole number"),
        (CLIPS[0], {"rate": 16000, "exit": 3, "rule": "entropy", "threshold": 0}, "exclude each other"),
        (CLIPS[0], {"rate": 16000, "rule": "entropy"}, "threshold must be a number, not None"),
        (CLIPS[0], {"rate": 16000, "rule": "margin", "threshold": 1}, "unknown rule 'margin'"),
        (CLIPS[0], {"rate": 16000, "threshold": 0.5}, r"threshold=0\.5 needs a rule"),
        (CLIPS[0], {"rate": 16000, "batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_wrong_input_is_refused_in_one_line(model, given, options, says):
    with pytest.raises(FedexitError, match=says) as caught:
        model.predict(given, **options)
    assert "\n" not in str(caught.value)


def test_a_model_of_labels_transcribes_nothing(model):
    with pytest.raises(FedexitError, match="predicts labels, not texts; use predict"):
        model.transcribe(CLIPS[0], rate=16000)


def test_all_bad_files_are_named_before_any_answer(model, files, tmp_path, monkeypatch):
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.wav").touch()
    monkeypatch.setattr(MultiExitModel, "forward", None)
    bad = [str(tmp_path / name) for name in ("text.wav", "empty.wav", "absent.wav")]
    with pytest.raises(FedexitError, match=r"text\.wav: not readable as audio .*\(2 more cannot be read") as caught:
        model.predict([files[0], *bad])
    assert all(name in str(caught.value) for name in bad) and files[0] not in str(caught.value)


def test_labels_of_ctc_models_are_distinct_texts():
    for labels in (["a", "a"], ["a", ""], ["a", 3]):
        with pytest.raises(FedexitError, match=r"cannot spell texts; give each character once, as a string"):
            MultiExitModel(load_backbone("nano"), labels, head="ctc")


# ---- saved models ------------------------------------------------------------------------------------------------


def test_a_saved_model_states_its_version_and_input(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {"fedexit_version": __version__, "sampling_rate": 16000, "do_normalize": True}
    assert {key: config[key] for key in expected} == expected

    def rewrite(changed):
        """Write the model as a version with this configuration does."""
        text = json.dumps(changed)
        (tmp_path / "config.json").write_text(text)
        write_tensors(tmp_path / "model.safetensors", model.state_dict(), {"config": text})

    for key, value in (("sampling_rate", 8000), ("do_normalize", False)):
        rewrite({**config, key: value})
        with pytest.raises(FedexitError, match=f"reads other waveforms than fedexit's: .*{key}.*{value}"):
            MultiExitModel.from_pretrained(tmp_path)
    rewrite({key: config[key] for key in config if key not in expected})
    assert MultiExitModel.from_pretrained(tmp_path).labels == LABELS  # written before these were stored


def test_a_model_is_loaded_by_its_hub_id(model, tmp_path, monkeypatch):
    stored = tmp_path / "models--ann--keywords"
    model.save_pretrained(stored / "snapshots" / "1234abcd")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("1234abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    again = MultiExitModel.from_pretrained("ann/keywords")
    pd.testing.assert_frame_equal(again.predict(CLIPS, rate=16000), model.predict(CLIPS, rate=16000))
    with pytest.raises(FedexitError, match=r"^ben/keywords is not .*: there is no such folder, and as a hub") as caught:
        MultiExitModel.from_pretrained("ben/keywords")
    assert "\n" not in str(caught.value)


def test_a_misspelt_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "cached_file", None)
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    for name in ("my_model", "./my_model", "../models/mine", "a/b/c", Path("ann/keywords"), "models/mine"):
        with pytest.raises(FedexitError, match=r"is not a multi-exit model .*No such file.*; give the folder of"):
            MultiExitModel.from_pretrained(name)
    for name in ("my_model", "a/b/c"):
        with pytest.raises(FedexitError, match="is no folder, and no hub id, which is OWNER/NAME; check the name"):
            load_backbone(name)


def test_a_backbone_or_a_file_is_not_taken_for_a_model(tmp_path):
    load_backbone("nano").model.save_pretrained(tmp_path)
    for given, says in (
        (tmp_path, "its config.json lacks backbone, exits, labels; train a MultiExitModel of it first"),
        (tmp_path / "config.json", "it is a file; give the folder of a trained model"),
    ):
        with pytest.raises(FedexitError, match=says):
            MultiExitModel.from_pretrained(given)


# ---- command line and notebooks -----------------------------------------------------------------------------------


def test_the_command_prints_a_table(model, files, tmp_path, capsys):
    folder = str(tmp_path / "model")
    model.save_pretrained(folder)
    assert cli.main(["predict", folder, *files]) == 0
    table = pd.read_csv(StringIO(capsys.readouterr().out))
    pd.testing.assert_frame_equal(table, model.predict(files), atol=1e-4)
    assert cli.main(["predict", folder, files[0], "--rule", "probability", "--threshold", "0"]) == 0
    assert capsys.readouterr().out.endswith(",3\n")
    assert cli.main(["predict", folder, files[0], "--exit", "6"]) == 0
    assert capsys.readouterr().out.endswith(",6\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.wav"], "absent.wav: cannot be read (No such file or directory)"),
        (["--exit", "4"], "exit 4 does not exist in nano; known: 3, 6, 9, 12"),
        (["--rule", "entropy"], "threshold must be a number, not None"),
        (["--threshold", "1"], "threshold=1.0 needs a rule"),
        (
            ["--rule", "probability", "--threshold", "9"],
            "--threshold 9.0 is outside 0 to 1, the confidence of probability",
        ),
    ],
)
def test_mistakes_of_the_command_are_one_line(model, files, tmp_path, capsys, arguments, says):
    folder = str(tmp_path / "model")
    model.save_pretrained(folder)
    assert cli.main(["predict", folder, files[0], *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and says in printed.err and printed.err.count("\n") == 1
    assert cli.main(["predict", str(tmp_path), files[0]]) == 2
    assert "is not a multi-exit model" in capsys.readouterr().err


def test_a_federation_is_shown_with_its_last_errors():
    data = [(clip, number) for number, clip in enumerate(CLIPS)]
    model = MultiExitModel(load_backbone("nano"), LABELS)
    result = federate(model, [Client("ann", data, 3), Client("ben", data, 6)], rounds=2, dev=data)
    shown = result._repr_html_()
    assert "2 rounds, 4 local rounds" in shown and "<table" in shown and len(shown) < 2000
    for value in result.table.query("round == 2")["value"]:
        assert f"{value:.3f}" in shown
    assert "<table" not in federate(model, [Client("ann", data, 3)], rounds=1)._repr_html_()
