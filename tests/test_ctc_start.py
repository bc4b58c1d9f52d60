"""Test a start for ASR, trained from `nano` on the tones of a public voice: its files, resuming and refusals."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus

from fedexit import FedexitError, MultiExitModel, cli, load_backbone, open_corpus
from fedexit.central import ctc_start
from fedexit.central import fine_tuning as central
from fedexit.central.ctc_start import HEADS_FILE, RECIPE, SPEEDS, ctc_recipe, load_start_heads, train_ctc_start
from fedexit.data.audio import write_audio
from fedexit.data.tasks import make_task
from fedexit.data.text import CHARACTERS, characters, spell

QUICK = {"epochs": 1, "spec_augment": False, "bfloat16": False}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDEXIT_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a corpus called queen with the public voice JOE and texts that fit into its clips of 0.25 s."""
    folder = write_small_corpus(tmp_path_factory.mktemp("corpus") / "queen", clips=3)
    table = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    table["speaker"] = table["speaker"].replace("ANN", "JOE")
    table["text"] = [("yes", "no we", "it's")[n % 3] for n in range(len(table))]
    table.to_csv(folder / "manifest.csv", index=False)
    return str(folder)


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("starts") / "nano-ctc"
    settings = [part for name, value in QUICK.items() for part in ("-p", f"{name}={str(value).lower()}")]
    assert cli.main(["ctc", str(out), "--start", "nano", "--corpus", corpus, *settings]) == 0
    return out


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def ctc_model(backbone, head="ctc", exits=(3, 12)):
    return MultiExitModel(load_backbone(backbone), CHARACTERS, exits, head=head)


def test_a_start_is_a_model_folder_with_heads_and_the_record_of_its_training(start):
    assert {str(file) for file in contents(start)} == {
        "config.json", "model.safetensors", HEADS_FILE, "README.md", "training/ctc.json", "training/ctc.csv",
    }  # fmt: skip
    record = json.loads((start / "training" / "ctc.json").read_text())
    assert record["clips"] == 12 and record["start"] == "nano"
    assert {name: record[name] for name in QUICK} == QUICK and record["learning_rate"] == RECIPE.learning_rate
    backbone, untrained = load_backbone(start), load_backbone("nano")
    rounded = {name: tensor.half().float() for name, tensor in untrained.state_dict().items()}  # as it is stored
    moved = [name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, rounded[name])]
    assert any("encoder.layers.11." in name for name in moved) and not any("feature_extractor" in n for n in moved)


def test_models_take_the_heads_of_their_start(start):
    model, drawn = ctc_model(start), ctc_model(start)
    assert load_start_heads(model, str(start))
    for depth in ("3", "12"):
        assert not torch.equal(model.heads[depth].linear.weight, drawn.heads[depth].linear.weight)
        assert model.heads[depth].scale.std() > 0 and (drawn.heads[depth].scale == 1).all()
    assert not load_start_heads(ctc_model(start, "ctc-bilstm"), str(start))
    assert not load_start_heads(MultiExitModel(load_backbone(start), ["a", "b"]), str(start))
    assert not load_start_heads(ctc_model("nano"), "nano")
    with pytest.raises(FedexitError, match=r"ctc_heads\.safetensors holds no heads for exits \[5\]"):
        load_start_heads(ctc_model(start, exits=[5]), str(start))


def test_the_card_lists_the_errors_of_the_record(start):
    card = (start / "README.md").read_text()
    errors = pd.read_csv(start / "training" / "ctc.csv")
    assert set(errors["metric"]) == {"CER", "WER"} and set(errors["exit"]) == {3, 6, 9, 12}
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| (\d+) \| (CER|WER) \|$", card, re.MULTILINE)
    assert [(int(row[0]), float(row[1]), row[3]) for row in rows] == [
        (row.exit, round(row.value, 3), row.metric) for row in errors.itertuples()
    ]
    assert "# nano-ctc: nano after central CTC training" in card and "the 12 clips of the public voice" in card


def test_a_clip_is_used_at_every_speed_at_which_it_can_be_spelled(corpus, monkeypatch):
    """A clip of 0.25 s has about 12 frames, 15 at the lowest speed and 9 at the highest: short texts always fit."""
    used = []

    def look(model, data, *_, **__):
        used.extend((features.shape[1], spell(target)) for features, target in data)
        raise Interrupted

    task = make_task("asr", open_corpus(corpus))
    public = task.rows["split"] == "public"
    first = task.rows.index[public][0]
    task.rows.at[first, "target"] = characters("twelve chars")  # no letter twice in a row
    monkeypatch.setattr(ctc_start, "make_task", lambda *_: task)
    monkeypatch.setattr(ctc_start, "fine_tune", look)
    with pytest.raises(Interrupted):
        train_ctc_start("unused", "nano", corpus, QUICK)
    long, short = ([n for n, text in used if (text == "twelve chars") == same] for same in (True, False))
    assert len(short) == len(SPEEDS) * (public.sum() - 1) and len(set(short)) == len(SPEEDS)
    assert 0 < len(long) < len(SPEEDS) and min(long) >= len("twelve chars")


class Interrupted(Exception):
    pass


def test_an_interrupted_training_resumes_with_identical_files(start, corpus, tmp_path, monkeypatch):
    out, save = tmp_path / "nano-ctc", central.save_checkpoint

    def save_and_stop(*arguments):
        save(*arguments)
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(central, "save_checkpoint", save_and_stop)
        train_ctc_start(out, "nano", corpus, QUICK)
    train_ctc_start(out, "nano", corpus, QUICK)
    assert contents(out) == contents(start)


def test_a_finished_start_is_left_alone_and_another_gets_a_new_folder(start, corpus, monkeypatch):
    before = contents(start)
    monkeypatch.setattr("fedexit.central.ctc_start.fine_tune", None)  # nothing may be trained
    train_ctc_start(start, "nano", corpus, QUICK)
    with pytest.raises(FedexitError, match="nano-ctc holds a model with another epochs; name a new folder"):
        train_ctc_start(start, "nano", corpus, QUICK | {"epochs": 3})
    assert contents(start) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_record_of_a_start_is_refused_in_one_line(start, corpus, tmp_path, content):
    folder = shutil.copytree(start, tmp_path / "nano-ctc")
    (folder / "training/ctc.json").write_text(content)
    with pytest.raises(FedexitError, match=r"^[^\n]*ctc\.json is damaged \([^\n]+\); delete [^\n]+ and run again$"):
        train_ctc_start(folder, "nano", corpus, QUICK)


def test_other_audio_or_another_model_in_the_folder_is_refused(start, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("fedexit.central.ctc_start.fine_tune", None)  # nothing may be trained
    folder = shutil.copytree(corpus, tmp_path / "queen")
    clip = folder / open_corpus(folder).manifest.query("speaker == 'JOE'")["path"].iloc[0]
    write_audio(clip, 0.1 * torch.ones(4_000))
    with pytest.raises(FedexitError, match=r"nano-ctc holds a model with another corpus, corpus_checksum; name a new"):
        train_ctc_start(start, "nano", str(folder), QUICK)
    with pytest.raises(FedexitError, match="holds a model with another start, start_checksum, corpus"):
        train_ctc_start(saved_backbone(tmp_path / "own"), "nano", corpus, QUICK)
    (tmp_path / "file").touch()
    with pytest.raises(FedexitError, match="file is a file; name a folder"):
        train_ctc_start(tmp_path / "file", "nano", corpus, QUICK)


def saved_backbone(folder):
    load_backbone("nano").model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; known: epochs, batch_size"),
        ({"epochs": "many"}, "setting epochs='many': input should be a valid integer"),
        ({"epochs": True}, "setting epochs=True: input should be a valid integer"),
        ({"learning_rate": None}, "setting learning_rate=None: input should be a valid number"),
        ({"crop": 75}, "setting crop=75: CTC heads need whole clips"),
        ({"epochs": 0}, "setting epochs=0: input should be greater than or equal to 1"),
    ],
)
def test_unusable_settings_are_refused_in_one_sentence(given, message):
    with pytest.raises(FedexitError, match=message) as caught:
        ctc_recipe(given)
    assert "\n" not in str(caught.value)


def test_given_fields_replace_those_of_the_recipe():
    assert ctc_recipe({}) == RECIPE
    changed = ctc_recipe({"learning_rate": 1, "spec_augment": False})
    assert (changed.learning_rate, changed.spec_augment, changed.epochs) == (1, False, RECIPE.epochs)


def test_a_corpus_without_public_clips_is_refused_and_nothing_is_written(corpus, tmp_path):
    folder = write_small_corpus(tmp_path / "private", clips=3)
    table = pd.read_csv(f"{corpus}/manifest.csv", keep_default_na=False)
    table.to_csv(folder / "manifest.csv", index=False)
    with pytest.raises(FedexitError, match="private has no public clips to train on; see PUBLIC"):
        train_ctc_start(tmp_path / "out", "nano", str(folder), QUICK)
    assert not (tmp_path / "out").exists()


def test_further_corpora_are_trained_on_and_named_in_the_record_and_the_card(corpus, tmp_path, monkeypatch):
    spoken = Path(write_small_corpus(tmp_path / "spoken", clips=3))
    table = pd.read_csv(spoken / "manifest.csv", keep_default_na=False)
    table["text"] = ["", "yes", *["a text far too long for its clip"] * (len(table) - 2)]
    table.to_csv(spoken / "manifest.csv", index=False)
    used = []
    real = ctc_start.fine_tune
    monkeypatch.setattr(
        ctc_start, "fine_tune", lambda model, data, *a, **k: used.append(len(data)) or real(model, data, *a, **k)
    )
    out, options = tmp_path / "out", [part for name, value in QUICK.items() for part in ("-p", f"{name}={value}")]
    command = ["ctc", str(out), "--start", "nano", "--corpus", corpus, *options, "--more", str(spoken)]
    assert cli.main(command) == 0 and cli.main(command) == 0  # the second finds it complete
    record = json.loads((out / "training" / "ctc.json").read_text())
    assert [(one["corpus"], one["clips"]) for one in record["more"]] == [("spoken", 1)]
    train_ctc_start(tmp_path / "alone", "nano", corpus, QUICK)
    assert used[0] == used[1] + 1
    assert "the public voice of `queen`, and 1 clips of `spoken`" in (out / "README.md").read_text().replace(
        corpus, "queen"
    )
    with pytest.raises(FedexitError, match="holds a model with another more; name a new folder"):
        train_ctc_start(out, "nano", corpus, QUICK)
    table.assign(text="").to_csv(spoken / "manifest.csv", index=False)
    with pytest.raises(FedexitError, match="corpus spoken has no clip of less than 10 s with a text"):
        train_ctc_start(tmp_path / "other", "nano", corpus, QUICK, more=[str(spoken)])
