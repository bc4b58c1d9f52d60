"""Masked prediction, HuBERT's way (Hsu et al. 2021), in the small: how the backbone that the project ships was made.

A run lives in a folder: settings.json, codebooks.safetensors, checkpoint.safetensors and curve.csv while it goes on; in
the end it is a model in the Hugging Face format. Killed and started again it goes on to the same bits.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.hubert.modeling_hubert import _compute_mask_indices

from fedexit.backbone import PRESETS, Backbone, load_backbone
from fedexit.codes import CODEBOOK_PARTS, Codebook, features_of, fit_codebook
from fedexit.errors import FedexitError
from fedexit.progress import progress
from fedexit.speech_pool import SpeechPool, augmented, open_pool
from fedexit.streams import seeded

_FIT_BATCHES, _DEV_BATCHES = 400, 8
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter
_BETAS, _DECAY, _CLIP_NORM, _WARM_UP = (0.9, 0.98), 0.01, 1.0, 0.05  # HuBERT's, but for a shorter warm-up


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides the bits of a run (with the number of threads); all else may change on resuming.

    `backbone` is a preset and `config` what differs from it; `start` is a model folder to begin from instead of random
    weights. A codebook is a feature of `fedexit.codes`, its number of clusters and its weight in the loss; `teacher` is
    the model folder whose layers `layerL` means. A batch is of `seconds` of speech. Masks cover about half of the
    frames; the loss is that of the masked frames and `seen_weight` times that of the others (HuBERT, eq. 2).
    """

    backbone: str = "tiny-random"
    config: dict = field(default_factory=dict)
    corpora: tuple[str, ...] = ("unlabelled", "queen")
    codebooks: tuple[str, ...] = ("mfcc:256:1", "content:256:1", "voice:128:0.2")
    teacher: str | None = None
    start: str | None = None
    updates: int = 20_000
    seconds: float = 16.0
    learning_rate: float = 1e-3
    seen_weight: float = 1.0
    mask_probability: float = 0.65
    mask_frames: int = 10
    log_every: int = 50
    dev_every: int = 500
    seed: int = 0


def pretraining_settings(given: dict[str, object]) -> Pretraining:
    """`Pretraining` with what is `given` by name. Raises FedexitError for an unknown name or another type."""
    values = {}
    for name, value in given.items():
        default = getattr(Pretraining(), name, given)
        if default is given:
            raise FedexitError(f"unknown setting {name!r}; known: {', '.join(asdict(Pretraining()))}")
        kind = str if default is None else type(default)
        value = [value] if kind is tuple and isinstance(value, str) else value
        try:
            values[name] = value if value is None and default is None else kind(value)
        except (TypeError, ValueError):
            raise FedexitError(f"setting {name}={value!r}: expected {kind.__name__}, as in {default!r}") from None
    return Pretraining(**values)


class MaskedPrediction(nn.Module):
    """A speech model and one linear classifier per codebook.

    A classifier's bias starts at the log frequency of its codes. Otherwise these frequencies are the first thing that
    the model learns, by one and the same hidden state for all frames, which it is slow to leave again.
    """

    def __init__(self, model: PreTrainedModel, books: dict[str, Codebook]):
        super().__init__()
        self.model = model
        sizes = [len(book.centres) for book in books.values()]
        self.classifiers = nn.ModuleList(nn.Linear(model.config.hidden_size, size) for size in sizes)
        for classifier, book in zip(self.classifiers, books.values(), strict=True):
            classifier.bias.data.copy_(book.frequencies.log())

    def forward(self, waveforms: Tensor, codes: list[Tensor], mask: Tensor) -> Tensor:
        """For each codebook: cross-entropy of masked and of seen frames in nats per frame, accuracy of both: (4, C).

        waveforms: (B, T); codes: for each codebook (B, F) int64; mask: (B, F) bool, True where the model is blinded.
        """
        hidden = self.model(waveforms, mask_time_indices=mask).last_hidden_state
        rows = []
        for frames in (mask, ~mask):
            logits = [classifier(hidden[frames]) for classifier in self.classifiers]
            pairs = [(out, code[frames]) for out, code in zip(logits, codes, strict=True)]
            rows.append(torch.stack([nn.functional.cross_entropy(*pair) for pair in pairs]))
            rows.append(torch.stack([(out.argmax(-1) == code).float().mean() for out, code in pairs]))
        return torch.stack([rows[0], rows[2], rows[1], rows[3]])


def pretrain(settings: Pretraining, out: str | Path, minutes: float = math.inf, checkpoint_every: int = 100) -> bool:
    """Pre-train in the folder `out`, going on from its checkpoint if there is one; True when all updates are done.

    Stops at a checkpoint after `minutes`. Raises FedexitError if `out` holds a run of other settings.
    """
    out, deadline = Path(out), time.monotonic() + 60 * minutes
    _same_settings(settings, out)
    pool, dev = open_pool(list(settings.corpora), "train"), open_pool(list(settings.corpora), "dev")
    books = open_codebooks(settings, pool, out / "codebooks.safetensors")
    task, optimiser, done, rows = _resume(settings, books, out)
    bar = progress(range(done, settings.updates), "pre-training")
    bar.initial, bar.total = done, settings.updates
    sums = []
    for update in bar:
        sums.append(_update(task, optimiser, settings, books, pool, update))
        done = update + 1
        if done % settings.log_every == 0:
            rows.append(_row(done, books, sums, task, settings, dev))
            sums = []
        last = done == settings.updates
        if last or (done % settings.log_every == 0 and (done % checkpoint_every == 0 or time.monotonic() > deadline)):
            _checkpoint(out, task, optimiser, done, rows)
            if time.monotonic() > deadline:
                break
    if done == settings.updates:
        save_model(task.model, out)
    return done == settings.updates


def open_codebooks(settings: Pretraining, pool: SpeechPool, file: Path) -> dict[str, Codebook]:
    """The codebooks of a run: read from `file`, or fitted on `pool` and written there."""
    teacher = load_backbone(settings.teacher) if settings.teacher else None
    wanted = {name: clusters for name, clusters, _ in _codebooks(settings)}
    if not file.is_file():
        _atomically(file, lambda part: save_file(_fitted(wanted, teacher, settings, pool), part))
    stored = load_file(file)
    return {
        name: Codebook(features_of(name, teacher), *(stored[f"{name}.{part}"] for part in CODEBOOK_PARTS))
        for name in wanted
    }


def _codebooks(settings: Pretraining) -> list[tuple[str, int, float]]:
    """Feature, clusters and weight of each codebook. Raises FedexitError for one that is written otherwise."""
    books = []
    for book in settings.codebooks:
        try:
            name, clusters, weight = book.split(":")
            books.append((name, int(clusters), float(weight)))
        except ValueError:
            raise FedexitError(f"codebook {book!r}: write feature:clusters:weight, for example mfcc:256:1") from None
    return books


def _fitted(
    wanted: dict[str, int], teacher: Backbone | None, settings: Pretraining, pool: SpeechPool
) -> dict[str, Tensor]:
    """The tensors of the codebooks, named `feature.part`."""
    tensors = {}
    for name, clusters in wanted.items():
        numbers = progress(range(_FIT_BATCHES), f"clustering {name}")
        batches = (pool.batch(settings.seconds, settings.seed, "k-means", number) for number in numbers)
        book = fit_codebook(features_of(name, teacher), batches, clusters, settings.seed)
        tensors |= {f"{name}.{part}": getattr(book, part).contiguous() for part in CODEBOOK_PARTS}
    return tensors


def save_model(model: PreTrainedModel, out: Path) -> None:
    """Write `model` to the folder `out` in the Hugging Face format, in half precision; `model` stays as it is."""
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)


def _same_settings(settings: Pretraining, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file, text = out / "settings.json", json.dumps(asdict(settings), indent=1, sort_keys=True) + "\n"
    if file.is_file() and file.read_text() != text:
        raise FedexitError(
            f"{out}: holds a run of other settings ({file.name}); name a new folder, or use the same ones"
        )
    file.write_text(text)


def _resume(
    settings: Pretraining, books: dict[str, Codebook], out: Path
) -> tuple[MaskedPrediction, torch.optim.AdamW, int, list]:
    """The task, its optimiser, the number of updates done and the rows of the curve so far."""
    with seeded(settings.seed, "pre-training", "start"):
        if settings.start:
            model = AutoModel.from_pretrained(settings.start, dtype=torch.float32)
        else:
            model = AutoModel.from_config(
                AutoConfig.for_model(**PRESETS[settings.backbone] | {"layerdrop": 0.0} | settings.config)
            )
        task = MaskedPrediction(model, books).train()
    optimiser = torch.optim.AdamW(task.parameters(), settings.learning_rate, _BETAS, weight_decay=_DECAY)
    file = out / "checkpoint.safetensors"
    if not file.is_file():
        return task, optimiser, 0, []
    with safe_open(file, "pt") as stored:
        about = {name: json.loads(text) for name, text in stored.metadata().items()}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    task.load_state_dict({name: tensors[name] for name in task.state_dict()})
    for name, parameter in task.named_parameters():
        optimiser.state[parameter] = {part: tensors[f"{part}:{name}"] for part in _MOMENTS}
    return task, optimiser, about["update"], about["rows"]


def _update(task, optimiser, settings: Pretraining, books, pool: SpeechPool, update: int) -> np.ndarray:
    """One update; what MaskedPrediction gives, (4, C)."""
    for group in optimiser.param_groups:
        group["lr"] = settings.learning_rate * _rate(update / settings.updates)
    measures = _predict(task, settings, books, pool, "train", update)
    optimiser.zero_grad()
    weights = torch.tensor([weight for _, _, weight in _codebooks(settings)])
    ((measures[0] + settings.seen_weight * measures[1]) * weights).sum().backward()
    nn.utils.clip_grad_norm_(task.parameters(), _CLIP_NORM)
    optimiser.step()
    return measures.detach().numpy()


def _rate(done: float) -> float:
    """Share of the learning rate when a share `done` of the updates is: linear warm-up, then half a cosine to zero."""
    return min(done / _WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2


def _predict(task, settings: Pretraining, books, pool: SpeechPool, part: str, number: int) -> Tensor:
    name = (settings.seed, part, number)
    clean = pool.batch(settings.seconds, *name)
    codes = [book(clean) for book in books.values()]  # of the clean speech: the model has to see through what was added
    with seeded(*name, "mask and dropout"):
        mask = _compute_mask_indices(
            tuple(codes[0].shape), settings.mask_probability, settings.mask_frames, min_masks=1
        )
        return task(augmented(clean, *name, "augmentation"), codes, torch.from_numpy(mask))


def _row(done: int, books, sums: list[np.ndarray], task, settings: Pretraining, dev: SpeechPool) -> dict[str, float]:
    """One line of the curve: means since the last one; the same on development speech every `dev_every` updates."""
    row = {"update": done} | _named("train", books, np.mean(sums, axis=0))
    if done % settings.dev_every == 0 or done == settings.updates:
        task.eval()
        with torch.no_grad():
            predicted = [_predict(task, settings, books, dev, "dev", number) for number in range(_DEV_BATCHES)]
        task.train()
        row |= _named("dev", books, torch.stack(predicted).mean(0).numpy())
    return row


def _named(part: str, books, values: np.ndarray) -> dict[str, float]:
    return {
        f"{part}_{kind}_{name}": round(float(value), 5)
        for kind, line in zip(("masked_loss", "seen_loss", "masked_accuracy", "seen_accuracy"), values, strict=True)
        for name, value in zip(books, line, strict=True)
    }


def _checkpoint(out: Path, task, optimiser, done: int, rows: list) -> None:
    tensors = dict(task.state_dict())
    for name, parameter in task.named_parameters():
        tensors |= {f"{part}:{name}": optimiser.state[parameter][part] for part in _MOMENTS}
    about = {"update": json.dumps(done), "rows": json.dumps(rows)}
    _atomically(out / "checkpoint.safetensors", lambda part: save_file(tensors, part, about))
    _atomically(out / "curve.csv", lambda part: pd.DataFrame(rows).to_csv(part, index=False, lineterminator="\n"))


def _atomically(file: Path, write) -> None:
    part = file.with_name(file.name + ".part")
    write(part)
    os.replace(part, file)
