"""Write the model card (README.md) of a backbone that was trained here; its numbers come from the run itself."""

import json
from pathlib import Path

import pandas as pd

from fedexit.data.corpora import open_corpus
from fedexit.data.places import UNLABELLED
from fedexit.data.unlabelled import SOURCES
from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text

_TEMPLATE = """---
library_name: transformers
license: other
tags: [speech, {kind}, {family}]
---

# {name}: a small {kind} speech backbone

A {family} encoder with {layers} layers of width {width} ({parameters:.2f} M parameters), trained {how} with
`fedexit pretrain` on unlabelled speech{start}. The fedexit notebooks can run on such a representation without a
network. It does not compete with models that were trained on a thousand hours.

    from fedexit import load_backbone
    backbone = load_backbone("{name}")          # or the path of this folder; transformers.AutoModel loads it as well

Input: 16 kHz mono, each clip of zero mean and unit variance. Weights: half precision. Settings of every stage:
`training/*.json`; loss curves: `training/*.csv`.

## Training

{stages}

The loss is in nats per frame for codes, and the unexplained share of the variance for states of a teacher.

{teacher}## Speech

The training speech lasts {hours:.1f} hours. Only the split `train` of each corpus was used for training, and `dev` for
the development loss. No test clip was used. The model comes without the audio.

{sources}

## Limits

The training speech is short. The packages and the game that fedexit uses hold acted speech, single words and telephone
speech by few, mostly adult voices. Notebook `05_pretraining` measures what each layer represents. Probes on `queen`
train on clips that were used in pre-training (without labels) if `queen` is listed above.

## Licence

The weights are offered under the licences of all recordings listed above{under}. The code is under the MIT licence.
"""
_TEACHER = """## Teacher

The targets `stateL` are the principal components of the hidden states of layer L of `{teacher}`. A target that ends in
`@l` is read from layer l of the model, by a projection that is thrown away after training. {about} So this model is
distilled, not self-supervised.

"""
_TEACHERS = {
    "whisper-base": "Whisper base (Radford et al. 2023; MIT licence) learned from 680,000 hours of transcribed speech, "
    "not known in detail."
}
_CTC_TEMPLATE = """---
library_name: transformers
license: other
tags: [speech, ctc, hubert]
---

# {name}: {start} after central CTC training

The backbone `{start}`, trained with `fedexit ctc` to spell the {clips} clips of the public voice of `{corpus}`{more}.
The loss is the mean of the CTC losses of all exits. The file `ctc_heads.safetensors` holds the heads.
Federated speech recognition can start from this model, just as from `facebook/wav2vec2-base-100h` instead of
`facebook/wav2vec2-base`.

    from fedexit import load_backbone
    backbone = load_backbone("{name}")

Recipe: `training/ctc.json`.

## Errors on held-out voices (greedy decoding, development part)

{errors}

## Licence

The licences of `{start}` and of the recordings of `{corpus}` apply. The code is under the MIT licence.
"""


def write_ctc_card(folder: Path) -> None:
    """Write README.md of a start for speech recognition in `folder`, from the record of its training."""
    record = json.loads((folder / "training" / "ctc.json").read_text())
    errors = pd.read_csv(folder / "training" / "ctc.csv").round(3)
    others = [f"{one['clips']} clips of `{one['corpus']}`" for one in record.pop("more", [])]
    more = f", and {', '.join(others)}" if others else ""
    text = _CTC_TEMPLATE.format(name=folder.name, errors=_markdown(errors), more=more, **record)
    write_text(folder / "README.md", text)


def write_card(folder: Path) -> None:
    """Write README.md of the model in `folder`, from its config and the record of its training."""
    config = json.loads((folder / "config.json").read_text())
    record = folder / "training"
    stages = read_stages(record)
    first, last = (list(stages.values())[place] for place in (0, -1))
    speech, teacher = _speech(last["corpora"]), _teacher_of(stages)
    text = _TEMPLATE.format(
        name=folder.name,
        family=config["model_type"],
        kind="distilled" if teacher else "self-supervised",
        how=f"by distillation from {teacher}" if teacher else "by masked prediction",
        teacher=_TEACHER.format(teacher=teacher, about=_TEACHERS.get(teacher, "See its own card.")) if teacher else "",
        start=f", starting from `{Path(first['start']).name}`" if first["start"] else "",
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        parameters=(folder / "model.safetensors").stat().st_size / 2e6,  # two bytes each
        stages=_markdown(pd.DataFrame([_stage(name, stage, record) for name, stage in stages.items()])),
        under=", and of the teacher" if teacher else "",
        hours=speech["hours"].sum(),
        sources=_markdown(speech.round(2)),
    )
    write_text(folder / "README.md", text)


def _teacher_of(stages: dict[str, dict]) -> str | None:
    """Return the teacher whose hidden states some stage learned, None for a self-supervised model."""
    for stage in reversed(stages.values()):
        if stage.get("distil"):
            return Path(stage["teacher"]).name
    return None


def read_stages(record: Path) -> dict[str, dict]:
    """Return the settings of each pre-training stage that the folder `record` describes, in order; {} without any.

    Raises:
        FedexitError: for a stage whose settings or loss curve the card could not describe.
    """
    stages = {}
    for number in range(1, 1 + len(list(record.glob("stage*.json")))):
        file = record / f"stage{number}.json"
        try:
            settings = json.loads(file.read_text())
            _stage(file.stem, settings, record)
            settings["corpora"], settings["start"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise FedexitError(f"{file} is not the record of a stage by `fedexit pretrain`; remove it") from error
        stages[file.stem] = settings
    return stages


def _stage(name: str, settings: dict, record: Path) -> dict[str, object]:
    """Return the row of the card about one stage."""
    curve = pd.read_csv(record / f"{name}.csv")
    loss = curve.filter(regex="^dev_masked_loss_").iloc[-1].round(2)
    threads = "one CPU thread" if settings["threads"] == 1 else f"{settings['threads']} CPU threads"
    return {
        "stage": name,
        "predicts": ", ".join([*settings["codebooks"], *settings.get("distil", [])]),
        "updates": settings["updates"],
        "seconds of speech per update": settings["seconds"],
        "masked loss on dev": ", ".join(map(str, loss)),
        "mask": f"probability {settings['mask_probability']}, spans of {settings['mask_frames']} frames",
        "compute": f"{settings['minutes']:.0f} minutes on {threads}",
    }


def _speech(corpora: list[str]) -> pd.DataFrame:
    """Return hours of training speech and licence of each package or corpus."""
    rows = []
    for name in corpora:
        corpus = open_corpus(name)
        train = corpus.select("train")
        groups = train["group"] if name == UNLABELLED else pd.Series(corpus.name, index=train.index)
        for group, seconds in train.groupby(groups)["seconds"].sum().items():
            licence = SOURCES[group].licence if group in SOURCES else "see data/README.md"
            rows.append({"recordings": group, "hours": seconds / 3600, "licence": licence})
    return pd.DataFrame(rows)


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
