"""A start for ASR, trained from `nano` on tones of a public voice: what it writes, resumes and refuses."""

import json
import re

import pandas as pd
import pytest
import torch
from small_corpus import write_small_corpus

from fedexit import FedexitError, MultiExitModel, cli, load_backbone, open_corpus
from fedexit.central import ctc_start
from fedexit.central import fine_tuning as central
from fedexit.central.ctc_start import HEADS_FILE, RECIPE, SPEEDS, ctc_recipe, load_start_heads, train_ctc_start
from fedexit.data.tasks import make_task
from fedexit.data.text import CHARACTERS, characters, spell

QUICK = {"epochs": 2, "spec_augment": False, "bfloat16": False}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDEXIT_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus called queen whose JOE is public, with texts that its quarter seconds can hold."""
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
    told = json.loads((start / "training" / "ctc.json").read_text())
    assert told["clips"] == 12 and told["start"] == "nano"
    assert {name: told[name] for name in QUICK} == QUICK and told["learning_rate"] == RECIPE.learning_rate
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


def test_the_card_tells_the_errors_of_the_record(start):
    card = (start / "README.md").read_text()
    errors = pd.read_csv(start / "training" / "ctc.csv")
    assert set(errors["metric"]) == {"CER", "WER"} and set(errors["exit"]) == {3, 6, 9, 12}
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| (\d+) \| (CER|WER) \|$", card, re.MULTILINE)
    assert [(int(row[0]), float(row[1]), row[3]) for row in rows] == [
        (row.exit, round(row.value, 3), row.metric) for row in errors.itertuples()
    ]
    assert "# nano-ctc: nano after central CTC training" in card and "the 12 clips of the public voice" in card


def test_a_clip_is_heard_at_every_speed_at_which_it_can_be_spelled(corpus, monkeypatch):
    """A clip of 0.25 s has about 12 frames, 15 at the least speed and 9 at the greatest: short texts always fit."""
    heard = []

    def look(model, data, *_, **__):
        heard.extend((features.shape[1], spell(target)) for features, target in data)
        raise Interrupted

    task = make_task("asr", open_corpus(corpus))
    public = task.rows["split"] == "public"
    first = task.rows.index[public][0]
    task.rows.at[first, "target"] = characters("twelve chars")  # no letter twice in a row
    monkeypatch.setattr(ctc_start, "make_task", lambda *_: task)
    monkeypatch.setattr(ctc_start, "fine_tune", look)
    with pytest.raises(Interrupted):
        train_ctc_start("unused", "nano", corpus, QUICK)
    long, short = ([n for n, text in heard if (text == "twelve chars") == same] for same in (True, False))
    assert len(short) == len(SPEEDS) * (public.sum() - 1) and len(set(short)) == len(SPEEDS)
    assert 0 < len(long) < len(SPEEDS) and min(long) >= len("twelve chars")


class Interrupted(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_bits(start, corpus, tmp_path, monkeypatch):
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
    with pytest.raises(FedexitError, match="nano-ctc holds a start that was trained otherwise; name a new folder"):
        train_ctc_start(start, "nano", corpus, QUICK | {"epochs": 3})
    assert contents(start) == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; known: epochs, batch_size"),
        ({"epochs": "many"}, "setting epochs='many': expected int, as in 5"),
        ({"learning_rate": None}, "setting learning_rate=None: expected float"),
        ({"crop": 75}, "setting crop=75: expected NoneType"),
        ({"epochs": 0}, "epochs and batch_size must be >= 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, says):
    with pytest.raises(FedexitError, match=says) as caught:
        ctc_recipe(given)
    assert "\n" not in str(caught.value)


def test_what_is_given_replaces_the_recipes_own():
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
