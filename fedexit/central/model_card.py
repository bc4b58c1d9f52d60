"""The model card (README.md) of a backbone that was pre-trained here; its numbers come from the run itself."""

import json
from pathlib import Path

import pandas as pd

from fedexit.data.corpora import open_corpus
from fedexit.data.places import UNLABELLED
from fedexit.data.unlabelled import SOURCES

_TEMPLATE = """---
library_name: transformers
license: other
tags: [speech, self-supervised, hubert]
---

# {name}: a small self-supervised speech backbone

A HuBERT encoder of {layers} layers and width {width} ({parameters:.2f} M parameters), trained by masked prediction with
`fedexit pretrain` on unlabelled speech. It ships with fedexit so that its notebooks run on a genuine self-supervised
representation without a network; it is no rival of the models that were trained on a thousand hours.

    from fedexit import load_backbone
    backbone = load_backbone("{name}")          # or transformers.AutoModel.from_pretrained("data/backbones/{name}")

Input: 16 kHz mono, each clip of zero mean and unit variance. Weights: half precision. Settings of every stage:
`training/*.json`; loss curves: `training/*.csv`.

## Training

{stages}

## Speech

{hours:.1f} hours of training speech. Only the split `train` of each corpus was used; `dev` gave the development loss;
the test clips of queen and all other corpora of fedexit were never seen. The audio does not come with the model.

{sources}

## Limits

Little speech, much of it acted, in single words, or of telephone band, by few and mostly adult voices. What its layers
can tell apart, and how well, is measured in notebook `05_pretraining`. Probes on `queen` train on clips that were in
pre-training (without labels).

## Licence

The weights are offered under the terms of the recordings that they were learned from, as listed above (where several
apply, all of them); the code is MIT.
"""
_CTC_TEMPLATE = """---
library_name: transformers
license: other
tags: [speech, ctc, hubert]
---

# {name}: {start} after central CTC training

The backbone `{start}`, trained with `fedexit ctc` to spell the {clips} clips of the public voice of `{corpus}`: the
loss is the mean of the CTC losses of all exits. The heads lie beside it in `ctc_heads.safetensors`. Federated speech
recognition starts from it, as one may start from `facebook/wav2vec2-base-100h` instead of `facebook/wav2vec2-base`.

    from fedexit import load_backbone
    backbone = load_backbone("{name}")

Recipe: `training/ctc.json`.

## Errors on voices that training never heard (greedy decoding, the development part)

{errors}

## Licence

As that of `{start}` and of the recordings of `{corpus}`; the code is MIT.
"""


def write_ctc_card(folder: Path) -> None:
    """Write README.md of a start for speech recognition in `folder`, from the record of its training."""
    told = json.loads((folder / "training" / "ctc.json").read_text())
    errors = pd.read_csv(folder / "training" / "ctc.csv").round(3)
    text = _CTC_TEMPLATE.format(name=folder.name, errors=_markdown(errors), **told)
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_card(folder: Path) -> None:
    """Write README.md of the model in `folder`, from its config and the record of its training."""
    config = json.loads((folder / "config.json").read_text())
    record = folder / "training"
    stages = {file.stem: json.loads(file.read_text()) for file in sorted(record.glob("*.json"))}
    speech = _speech(stages[max(stages)]["corpora"])
    text = _TEMPLATE.format(
        name=folder.name,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        parameters=(folder / "model.safetensors").stat().st_size / 2e6,  # two bytes each
        stages=_markdown(pd.DataFrame([_stage(name, stage, record) for name, stage in stages.items()])),
        hours=speech["hours"].sum(),
        sources=_markdown(speech.round(2)),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _stage(name: str, settings: dict, record: Path) -> dict[str, object]:
    curve = pd.read_csv(record / f"{name}.csv")
    loss = curve.filter(regex="^dev_masked_loss_").iloc[-1].round(2)
    return {
        "stage": name,
        "predicts": ", ".join(settings["codebooks"]),
        "updates": settings["updates"],
        "seconds of speech per update": settings["seconds"],
        "masked loss on dev, nats per frame": ", ".join(map(str, loss)),
        "compute": f"{settings['minutes']:.0f} minutes on {settings['threads']} CPU threads",
    }


def _speech(corpora: list[str]) -> pd.DataFrame:
    """Hours of training speech and licence of each package."""
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
