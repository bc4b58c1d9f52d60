"""Train `tiny-ctc`: a backbone after long central CTC training on a public voice, with a CTC head on every exit.

It is the counterpart of `facebook/wav2vec2-base-100h`. A small model with a purely self-supervised start gives empty
transcripts for thousands of updates before CTC training makes progress. Federated ASR therefore starts here; the other
tasks can.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset

from fedexit.central.fine_tuning import Recipe, deciding, fine_tune
from fedexit.central.masked_prediction import save_model
from fedexit.central.model_card import write_ctc_card
from fedexit.data.batches import Example, collate
from fedexit.data.corpora import open_corpus
from fedexit.data.tasks import make_task
from fedexit.data.tasks.asr import played
from fedexit.data.tasks.contract import Clips
from fedexit.data.text import CHARACTERS, characters
from fedexit.model.backbone import load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import freezer
from fedexit.model.metrics import all_rates, predict
from fedexit.support.checkpoints import remove_checkpoint
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import write_text
from fedexit.support.paths import backbone_folders
from fedexit.support.placement import Device, find_device
from fedexit.support.settings import with_given

HEADS_FILE = "ctc_heads.safetensors"
MAX_SECONDS = 10.0  # clips are cut to this length
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.25)  # every clip is played at each; one voice sounds like several
# The best of three runs on the development voices: with the rates 1e-3 and 2e-3 (5 epochs) all layers follow the one
# public voice, and errors on other voices rise.
RECIPE = Recipe(
    epochs=3, batch_size=16, learning_rate=3e-4, head_learning_rate=5e-3, weight_decay=0.01, crop=None,
    spec_augment=True, bfloat16=True,
)  # fmt: skip


def train_ctc_start(
    out: str | Path,
    start: str = "tiny-distilled",
    corpus: str = "queen",
    given: dict | None = None,
    device: Device = "cpu",
    more: Sequence[str] = (),
) -> None:
    """Train all exits of a backbone together on the public clips of a corpus, and on the clips of others.

    If interrupted, the same call resumes after the last whole epoch. It does nothing when training is complete.

    Args:
        out: folder that becomes a model folder: the backbone in the Hugging Face format, the heads, a model card and,
            in training/, the recipe and the errors on the held-out voices of dev.
        start: the backbone to train, by name, folder or hub id.
        corpus: the corpus, by name or folder.
        given: fields that differ from `RECIPE`.
        device: where to train: `auto`, `cpu`, `cuda` or `mps`.
        more: further corpora, by name or folder. All their clips with a text are trained on, at their own speed: for
            example voices of the public or synthetic ones (`fedexit.data.synthetic`).

    Raises:
        FedexitError: for an unknown or unusable setting, a corpus without public or dev clips, a further corpus without
            a text that can be spelled, and a folder that holds another start or another model.
    """
    recipe, out = ctc_recipe(given or {}), Path(out)
    task = make_task("asr", open_corpus(corpus))
    model = MultiExitModel(load_backbone(start), task.labels, head=task.head).to(find_device(device))
    clips, dev = (Clips(task.corpus, task.rows.query("split == @s"), MAX_SECONDS) for s in ("public", "dev"))
    if not len(clips):
        raise FedexitError(f"corpus {corpus} has no public clips to train on; see PUBLIC in fedexit/data/tasks/asr.py")
    if not len(dev):
        raise FedexitError(f"corpus {corpus} has no dev clips to measure errors on; give it more voices")
    others = [_spoken(one) for one in more]
    record = {
        "start": str(start), "start_checksum": model.checksum(), "corpus": str(corpus),
        "corpus_checksum": task.corpus.checksum, "clips": len(clips), "speeds": list(SPEEDS), **deciding(recipe),
        "more": [{"corpus": one.corpus.name, "checksum": one.corpus.checksum, "clips": len(one)} for one in others],
    }  # fmt: skip
    checkpoint = out / "checkpoint.safetensors"
    if _is_complete(out, record, checkpoint):
        return
    spelled = [own for own in (played(clips, speed) for speed in SPEEDS) if len(own)]
    public: Any = ConcatDataset([_features(own, model) for own in (*spelled, *others)])  # type: ignore[misc]  # any sequences
    set_heads(model, start, [public[index] for index in range(min(200, len(public)))])
    fine_tune(model, public, model.exits, recipe, checkpoint=checkpoint)
    errors = all_rates(predict(model, _features(dev, model)))
    save_model(model.backbone.model, out)
    model.save_heads(out / HEADS_FILE)
    write_text(out / "training" / "ctc.json", json.dumps(record, indent=2) + "\n")
    write_text(out / "training" / "ctc.csv", errors.to_csv(index=False, lineterminator="\n"))
    write_ctc_card(out)
    remove_checkpoint(checkpoint)  # last: without it the folder is complete


def _spoken(corpus: str) -> Clips:
    """Return all clips of a corpus whose text can be spelled, and that need no cut, which would lose words.

    Raises FedexitError if there are none.
    """
    found = open_corpus(corpus)
    rows = found.manifest.assign(target=[characters(text) for text in found.manifest["text"]])
    whole = rows[(rows["target"].map(len) > 0) & (rows["seconds"] < MAX_SECONDS)]
    clips = Clips(found, whole, MAX_SECONDS)
    if not len(clips) or not len(clips := played(clips, 1.0)):
        raise FedexitError(
            f"corpus {found.name} has no clip of less than {MAX_SECONDS:g} s with a text that can be spelled; leave it "
            "out of more"
        )
    return clips


def _is_complete(out: Path, record: dict, checkpoint: Path) -> bool:
    """Return whether `out` holds the finished start of `record`; raise FedexitError if it holds something else."""
    if out.exists() and not out.is_dir():
        raise FedexitError(f"{out} is a file; name a folder")
    if checkpoint.is_file() or not (out / "config.json").is_file():
        return False
    file = out / "training" / "ctc.json"
    try:
        stored = {"more": []} | (json.loads(file.read_text()) if file.is_file() else {})
        changed = [name for name, value in record.items() if stored.get(name) != value]
    except (ValueError, TypeError, RecursionError) as error:
        raise FedexitError(f"{file} is damaged ({first_line(error)}); delete {out} and run again") from error
    if changed:
        raise FedexitError(f"{out} holds a model with another {', '.join(changed)}; name a new folder")
    return True


def _features(clips: Clips, model: MultiExitModel) -> Sequence[Example]:
    return freezer(clips, model.backbone)(clips)


def ctc_recipe(given: dict) -> Recipe:
    """Return `RECIPE` with the `given` fields.

    Raises:
        FedexitError: for an unknown name, a value out of range, and crops.
    """
    if given.get("crop") is not None:
        raise FedexitError(f"setting crop={given['crop']!r}: CTC heads need whole clips; leave crop out")
    return with_given(RECIPE, given)


def load_start_heads(model: MultiExitModel, backbone: str) -> bool:
    """Load the heads that are stored beside the `backbone` (name or folder) into a CTC `model`.

    Returns:
        False if the model has other heads or another alphabet, or the backbone comes without CTC heads.
    """
    folder = backbone_folders().get(backbone, Path(backbone))
    if model.head != "ctc" or model.labels != list(CHARACTERS) or not (folder / HEADS_FILE).is_file():
        return False
    model.load_heads(folder / HEADS_FILE)
    return True


def set_heads(model: MultiExitModel, backbone: str, clips: Sequence[Example]) -> None:
    """Load the heads that come with the start `backbone`; without any, standardise the model's own on `clips`.

    Standardising needs no labels.
    """
    if not load_start_heads(model, backbone):
        features, frames, _ = collate(clips)
        model.standardise(features, frames)
