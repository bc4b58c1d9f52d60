"""Give the corpora and the backbone of the paper their sizes, also where neither is on this machine."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus
from fedexit.data.folder import COLUMNS
from fedexit.data.places import place_of
from fedexit.data.tasks.official import COMMANDS, SILENCE
from fedexit.lab.material import opened
from fedexit.model.backbone import Backbone, backbone_from_config, load_backbone
from fedexit.support.errors import FedexitError

# The hub ids of the paper's backbone and of its neighbours of the same size, with their architecture.
BASES = {
    "facebook/wav2vec2-base": "wav2vec2",
    "facebook/hubert-base-ls960": "hubert",
    "microsoft/wavlm-base": "wavlm",
    "microsoft/wavlm-base-plus": "wavlm",
}
_SAMPLE = 2  # bytes of a sample on disk
_WORDS = [*COMMANDS, *(f"other word {number}" for number in range(25))]
_LABELS = {"speech_commands": _WORDS, "iemocap": ["angry", "happy", "neutral", "sad"]}


class Part(NamedTuple):
    """Size of one split of a corpus, as published.

    split: `train`, `dev` or `test`.
    speakers: their number.
    clips: their number.
    seconds: mean length of a clip.
    """

    split: str
    speakers: int
    clips: int
    seconds: float


# Warden 2018 (the 506 speakers of dev and test are divided evenly here); Panayotov et al. 2015 (train-clean-100, dev
# and test); Busso et al. 2008 (four classes; three sessions, one, one); Nagrani et al. 2017 (identification split).
PUBLISHED = {
    "speech_commands": [Part("train", 2112, 84_843, 1), Part("dev", 253, 9_981, 1), Part("test", 253, 11_005, 1)],
    "librispeech": [Part("train", 251, 28_539, 12.7), Part("dev", 73, 5_567, 6.9), Part("test", 73, 5_559, 6.8)],
    "iemocap": [Part("train", 6, 3_319, 4.5), Part("dev", 2, 1_106, 4.5), Part("test", 2, 1_106, 4.5)],
    "voxceleb1": [Part("train", 1251, 138_361, 8.2), Part("dev", 1251, 6_904, 8.2), Part("test", 1251, 8_251, 8.2)],
}


def stand_in(name: str) -> Corpus:
    """Return a corpus without audio that has the published size of the corpus `name`, one of `PUBLISHED`.

    All clips of a split have the mean length, and all of its speakers about as many clips. Speech Commands has one clip
    of silence for 35 others.
    """
    labels, rows = _LABELS.get(name, [""]), []
    for split, speakers, clips, seconds in PUBLISHED[name]:
        shared = "" if name == "voxceleb1" else split  # its splits have the same speakers
        for number in range(clips):
            clip, speaker = f"{split}{number}", f"{shared}{number % speakers}"
            rows.append((clip, clip, speaker, speaker, "a", labels[number // speakers % len(labels)], seconds, split))
        for number in range(clips // len(labels) if labels is _WORDS else 0):
            rows.append((f"{split}-{number}", f"{split}-{number}", "", "", "", SILENCE, seconds, split))
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"seconds": float})
    return Corpus(name, Path(), table)


@cache
def corpus_of(name: str) -> tuple[Corpus, str]:
    """Return the corpus `name` and "", or its stand-in and the reason why the real one cannot be used.

    Raises:
        FedexitError: the corpus is missing, and its size was not published either.
    """
    try:
        place_of(name)
    except FedexitError as error:
        if name not in PUBLISHED:
            raise
        return stand_in(name), str(error)
    return opened(name), ""


def audio_bytes(name: str) -> int:
    """Return the bytes of the audio of the corpus `name` on disk; those of a stand-in are 16-bit samples."""
    corpus, missing = corpus_of(name)
    if missing:
        return round(_SAMPLE * SAMPLE_RATE * sum(corpus.dataset["seconds"]))
    return sum((corpus.folder / path).stat().st_size for path in set(corpus.dataset["path"]))


@cache
def geometry(name: str) -> Backbone:
    """Return a backbone of the shape of `name`. Those of `BASES` are not loaded, and their weights take no memory."""
    if name not in BASES:
        return load_backbone(name)
    with torch.device("meta"):
        return backbone_from_config({"model_type": BASES[name], "num_hidden_layers": 12}, name, pretrained=False)
