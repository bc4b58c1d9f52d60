"""Run and read pre-trainings (notebook 05): short runs with and without stops, training records, changed choices."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from fedexit.central.masked_prediction import pretrain
from fedexit.central.pretraining import Pretraining
from fedexit.central.probes import log_mel
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus
from fedexit.data.folder import save_manifest
from fedexit.support.paths import backbone_folders

FRAME_SECONDS = 0.02


def masked_frames(waveform: Tensor, codes: Tensor, mask: Tensor) -> pd.DataFrame:
    """Return the rows of `figures_basics.masking`: `second, code, masked` and the mel bands of each frame.

    Args:
        waveform: (T,) at 16 kHz.
        codes: (F,) code of each frame of 20 ms.
        mask: (F,) whether a frame is masked.
    """
    bands = log_mel(waveform, hop=int(FRAME_SECONDS * SAMPLE_RATE))[: len(codes)].double().numpy().round(2)
    frames = pd.DataFrame({"second": np.arange(len(codes)) * FRAME_SECONDS, "code": codes, "masked": mask})
    return frames.join(pd.DataFrame(bands).add_prefix("mel "))


def part_of_corpus(corpus: Corpus, folder: Path, sizes: Mapping[str, int]) -> str:
    """Write a small corpus to `folder`: the first clips with a text of each split, as many as `sizes` says.

    Returns:
        The folder as text, which names a corpus.
    """
    rows = pd.concat([corpus.select(split, having="text")[:size] for split, size in sizes.items()])
    for path in rows["path"]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(corpus.folder / path, folder / path)
    save_manifest(rows, folder / "manifest.csv")
    return str(folder)


def with_and_without_stops(settings: Pretraining) -> tuple[bool, pd.DataFrame]:
    """Pre-train twice, the second time with a stop at every checkpoint.

    Returns:
        Whether the weights of both runs are bit-identical, and the loss of the first on seen frames by update.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        pretrain(settings, whole)
        while not pretrain(settings, parts, minutes=0):  # stops at every checkpoint
            pass
        weights = [(out / "model.safetensors").read_bytes() for out in (whole, parts)]
        curve = pd.read_csv(whole / "work/curve.csv").filter(regex="update|train_seen_loss")
    return weights[0] == weights[1], curve


def training_records(models: Iterable[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how each shipped backbone was trained: a row per stage, and the loss on masked frames.

    A stage that two backbones share is listed for the last of them. Models without a record, such as those with random
    weights, are left out.

    Returns:
        The stages as `backbone, stage, predicts, teacher, updates, hours of speech, minutes`, and the rows of
        `figures_basics.loss_curve`.
    """
    folders, known, stages, curves = backbone_folders(), [], [], []
    for name in reversed([name for name in models if name in folders]):
        for file in sorted((folders[name] / "training").glob("stage*.json")):
            if (settings := json.loads(file.read_text())) not in known:
                known.append(settings)
                stages.append({"backbone": name, "stage": file.stem, **_stage(settings)})
                losses = _masked_losses(pd.read_csv(file.with_suffix(".csv")))
                curves.append(losses.assign(backbone=name, stage=file.stem))
    return pd.DataFrame(stages), pd.concat(curves, ignore_index=True)


def _stage(settings: dict) -> dict[str, object]:
    return {
        "predicts": " ".join([*settings["codebooks"], *settings.get("distil", [])]),
        "teacher": settings["teacher"] or "",
        "updates": int(settings["updates"]),
        "hours of speech": round(settings["updates"] * settings["seconds"] / 3600, 1),
        "minutes": settings["minutes"],
    }


def _masked_losses(curve: pd.DataFrame) -> pd.DataFrame:
    """Return the columns `train_masked_loss_*` and `dev_masked_loss_*` as rows `update, loss, part, target`."""
    long = curve.melt("update", var_name="measure", value_name="loss").dropna()
    long = long[long["measure"].str.contains("_masked_loss_")]
    long[["part", "target"]] = long["measure"].str.extract(r"(train|dev)_masked_loss_(\w+)")
    return long.drop(columns="measure")


def changed_choices(
    backbone: str, teacher: str, corpora: Sequence[str], updates: int, seconds: float, seed: int
) -> dict[str, Pretraining]:
    """Return short runs of pre-training by name; each changes one choice of the first and has the same batches.

    The run from random weights is left out where the first one has them already.

    Args:
        backbone: geometry of the students. `tiny-random` starts from the weights of `tiny` where the name does not say
            otherwise.
        teacher: teacher of those that distil.
        corpora: speech of all runs.
        updates: updates of each run.
        seconds: speech per update.
        seed: names all random streams.
    """
    exits, size = (3, 6, 9, 12), 32 if backbone == "nano" else 64
    layers = {"whisper-base": (1, 2, 4, 6)}.get(teacher, exits)
    states, codes = (
        tuple(f"{kind}{layer}:{width}:1@{exit}" for layer, exit in zip(layers, exits, strict=True))
        for kind, width in (("state", size), ("layer", 4 * size))
    )
    start = "tiny" if backbone == "tiny-random" else None

    def run(distil: tuple[str, ...] = (), start: str | None = start, masked: float = 0.2, **given: Any) -> Pretraining:
        return Pretraining(
            backbone, corpora=tuple(corpora), updates=updates, seconds=seconds, log_every=1, dev_every=updates,
            speeds=(1.0,), seen_weight=4.0, seed=seed, distil=distil, start=start, mask_probability=masked, **given,
        )  # fmt: skip

    untrained = {"states of four layers, from random weights": run(states, start=None, teacher=teacher)}
    return {
        "states of four layers": run(states, teacher=teacher),
        **(untrained if start else {}),
        "states of four layers, more of them masked": run(states, teacher=teacher, masked=0.65),
        "codes of four layers": run(codebooks=codes, teacher=teacher),
        "states of the last layer": run(states[-1:], teacher=teacher),
        "self-supervised, codes at layers 3 and 12": run(
            codebooks=("mfcc:64:1@3", "voice:32:0.3@3", "content:64:1@12"), masked=0.65
        ),
    }
