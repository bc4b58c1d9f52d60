"""`tiny-ctc`: the backbone after long central CTC training on a public voice, with a CTC head on every exit.

The counterpart of `facebook/wav2vec2-base-100h`: from a merely self-supervised start, a small model leaves the plateau
on which CTC says nothing only after thousands of updates. Federated ASR starts here; the other tasks may.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from torch.utils.data import ConcatDataset

from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.central.masked_prediction import save_model
from fedexit.central.model_card import write_ctc_card
from fedexit.data.batches import Example, collate
from fedexit.data.corpora import open_corpus
from fedexit.data.tasks import make_task
from fedexit.data.tasks.asr import played
from fedexit.data.tasks.contract import Clips
from fedexit.model.backbone import load_backbone, shipped_backbones
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import freezer
from fedexit.model.metrics import all_rates, predict
from fedexit.support.errors import FedexitError
from fedexit.support.paths import backbones_dir

HEADS_FILE = "ctc_heads.safetensors"
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.25)  # at which every clip is heard: one voice sounds like several
RECIPE = Recipe(
    epochs=5, batch_size=16, learning_rate=1e-3, head_learning_rate=2e-3, weight_decay=0.01, crop=None,
    spec_augment=True, bfloat16=True,
)  # fmt: skip


def train_ctc_start(out: str | Path, start: str = "tiny", corpus: str = "queen", given: dict | None = None) -> None:
    """Train all exits of the backbone `start` together on the public clips of `corpus`, and make `out` a model folder.

    In it lie the backbone in the Hugging Face format, the heads, a card, and in training/ the recipe and the errors on
    the voices of dev, none of whom was heard. `given`: what differs from `RECIPE`. Stopped or killed, the same call
    goes on after the last whole epoch, and does nothing when all is done. Raises FedexitError for a setting that cannot
    be, a corpus without public clips and a folder of another start.
    """
    recipe, out = ctc_recipe(given or {}), Path(out)
    task = make_task("asr", open_corpus(corpus))
    model = MultiExitModel(load_backbone(start), task.labels, head=task.head)
    clips, dev = (Clips(task.corpus, task.rows.query("split == @s"), 10.0) for s in ("public", "dev"))
    if not len(clips):
        raise FedexitError(f"corpus {corpus} has no public clips to train on; see PUBLIC in fedexit/data/tasks/asr.py")
    told = {"start": start, "corpus": corpus, "clips": len(clips), "speeds": list(SPEEDS), **asdict(recipe)}
    training, checkpoint = out / "training", out / "checkpoint.safetensors"
    if (training / "ctc.json").is_file() and not checkpoint.is_file():
        if json.loads((training / "ctc.json").read_text()) != told:
            raise FedexitError(f"{out} holds a start that was trained otherwise; name a new folder")
        return
    public = ConcatDataset([_features(played(clips, speed), model) for speed in SPEEDS])
    set_heads(model, start, [public[index] for index in range(min(200, len(public)))])
    fine_tune(model, public, model.exits, recipe, checkpoint=checkpoint)
    save_model(model.backbone.model, out)
    model.save_heads(out / HEADS_FILE)
    training.mkdir(exist_ok=True)
    (training / "ctc.json").write_text(json.dumps(told, indent=2) + "\n")
    all_rates(predict(model, _features(dev, model))).to_csv(training / "ctc.csv", index=False)
    write_ctc_card(out)
    checkpoint.unlink()  # last: without it the folder is complete


def _features(clips: Clips, model: MultiExitModel) -> Sequence[Example]:
    return freezer(clips, model.backbone)(clips)


def ctc_recipe(given: dict) -> Recipe:
    """`RECIPE` with what is `given`. Raises FedexitError for another setting or type, and as `Recipe`."""
    known = [field.name for field in fields(Recipe)]
    for name, value in given.items():
        if name not in known:
            raise FedexitError(f"unknown setting {name!r}; known: {', '.join(known)}")
        default = getattr(RECIPE, name)
        if not isinstance(value, int | float if isinstance(default, float) else type(default)):
            raise FedexitError(f"setting {name}={value!r}: expected {type(default).__name__}, as in {default!r}")
    return replace(RECIPE, **given)


def load_start_heads(model: MultiExitModel, backbone: str) -> bool:
    """Give a CTC `model` the heads that lie beside its `backbone`, name or folder; False if there are none for it."""
    folder = backbones_dir() / backbone if backbone in shipped_backbones() else Path(backbone)
    if model.head != "ctc" or not (folder / HEADS_FILE).is_file():
        return False
    model.load_heads(folder / HEADS_FILE)
    return True


def set_heads(model: MultiExitModel, backbone: str, clips: Sequence[Example]) -> None:
    """Heads as the start `backbone` brings them, or else as they are, standardised on `clips` (no labels needed)."""
    if not load_start_heads(model, backbone):
        features, frames, _ = collate(clips)
        model.standardise(features, frames)
