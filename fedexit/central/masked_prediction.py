"""Masked prediction, HuBERT's way (Hsu et al. 2021), in the small: how the backbone that the project ships was made.

A run lives in a folder. Its subfolder work/ has settings, codebooks, checkpoint and loss curve while it goes on; in the
end the folder is a model in the Hugging Face format, with a model card and, in training/, settings and curve of each
stage. Killed and started again it goes on to the same bits.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
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

from fedexit.central.codes import CODEBOOK_PARTS, Codebook, features_of, fit_codebook
from fedexit.central.model_card import write_card
from fedexit.central.speech_pool import SpeechPool, augmented, open_pool
from fedexit.model.backbone import PRESETS, Backbone, load_backbone
from fedexit.model.pretrained import pretrained_model, quiet_transformers
from fedexit.model.training import schedule
from fedexit.support.checkpoints import MOMENTS
from fedexit.support.errors import FedexitError
from fedexit.support.progress import progress
from fedexit.support.streams import seeded

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FIT_BATCHES, _DEV_BATCHES = 400, 8
_BETAS, _DECAY, _CLIP_NORM = (0.9, 0.98), 0.01, 1.0  # HuBERT's


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides the bits of a run (with the number of threads); all else may change on resuming.

    `backbone` is a preset and `config` what differs from it; `start` is a model folder to begin from instead of random
    weights. A codebook is a feature of `fedexit.central.codes`, its number of clusters and its weight in the loss;
    `teacher` is
    the model folder whose layers `layerL` means. A batch is of `seconds` of speech. Masks cover about half of the
    frames; the loss is that of the masked frames and `seen_weight` times that of the others (HuBERT, eq. 2).
    `precision` is that of the model's products: bfloat16 is faster on processors that know it, slower on others.
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
    precision: str = "float32"
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
    if values.get("precision") not in (None, *PRECISIONS):
        raise FedexitError(f"unknown precision {values['precision']!r}; known: {', '.join(PRECISIONS)}")
    return Pretraining(**values)


class MaskedPrediction(nn.Module):
    """A speech model and one linear classifier per codebook.

    A classifier's bias starts at the log frequency of its codes. Otherwise these frequencies are the first thing that
    the model learns, by one and the same hidden state for all frames, which it is slow to leave again.
    """

    def __init__(self, model: PreTrainedModel, books: dict[str, Codebook], precision: str = "float32"):
        super().__init__()
        self.model, self.precision = model, PRECISIONS[precision]
        sizes = [len(book.centres) for book in books.values()]
        self.classifiers = nn.ModuleList(nn.Linear(model.config.hidden_size, size) for size in sizes)
        for classifier, book in zip(self.classifiers, books.values(), strict=True):
            classifier.bias.data.copy_(book.frequencies.log())

    def forward(self, waveforms: Tensor, codes: list[Tensor], mask: Tensor) -> Tensor:
        """For each codebook: cross-entropy of masked and of seen frames in nats per frame, accuracy of both: (4, C).

        waveforms: (B, T); codes: for each codebook (B, F) int64; mask: (B, F) bool, True where the model is blinded.
        """
        with torch.autocast("cpu", self.precision, enabled=self.precision is not torch.float32):
            hidden = self.model(waveforms, mask_time_indices=mask).last_hidden_state.float()
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
    _claim(settings, out / "work")
    run = _Run(settings, out / "work")
    bar = progress(range(run.done, settings.updates), "pre-training")
    bar.initial, bar.total = run.done, settings.updates
    for update in bar:
        run.update(update)
        last = run.done == settings.updates
        if last or run.done % settings.log_every == 0:
            run.log(last)
            if last or run.done % checkpoint_every == 0 or time.monotonic() > deadline:
                run.checkpoint()
                if time.monotonic() > deadline:
                    break
    if run.done == settings.updates:
        run.finish(out)
    return run.done == settings.updates


def mask_frames(shape: tuple[int, int], probability: float, span: int, *name: str | int) -> Tensor:
    """A mask (B, F) bool of spans of `span` frames, overlapping at will, `probability` F / span of them in each row.

    `name` is that of the random stream. With 0.65 and 10 about half of the frames are masked (HuBERT: 0.8 and 10).
    """
    with seeded(*name):
        return torch.from_numpy(_compute_mask_indices(shape, probability, span, min_masks=1))


class _Run:
    """A run in its working folder: model, optimiser, data and the curve so far."""

    def __init__(self, settings: Pretraining, work: Path):
        self.settings, self.work = settings, work
        self.train, self.dev = (open_pool(list(settings.corpora), part) for part in ("train", "dev"))
        self.books = open_codebooks(settings, self.train, work / "codebooks.safetensors")
        with seeded(settings.seed, "pre-training", "start"):
            self.task = MaskedPrediction(_start_model(settings), self.books, settings.precision).train()
        self.optimiser = torch.optim.AdamW(
            self.task.parameters(), settings.learning_rate, _BETAS, weight_decay=_DECAY, fused=True
        )
        self.done, self.rows, self.sums = 0, [], []
        self.seconds, self.since = 0.0, time.monotonic()
        if (work / "checkpoint.safetensors").is_file():
            self._restore(work / "checkpoint.safetensors")

    def update(self, number: int) -> None:
        """One update."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * schedule(number, self.settings.updates)
        measures = self._predict(self.train, "train", number)
        weights = torch.tensor([weight for _, _, weight in _codebooks(self.settings)])
        self.optimiser.zero_grad()
        ((measures[0] + self.settings.seen_weight * measures[1]) * weights).sum().backward()
        nn.utils.clip_grad_norm_(self.task.parameters(), _CLIP_NORM)
        self.optimiser.step()
        self.sums.append(measures.detach().numpy())
        self.done = number + 1

    def log(self, last: bool) -> None:
        """Add a line to the curve: means since the line before, and at times the same on development speech.

        Raises FedexitError when the loss is no number any more.
        """
        means = np.mean(self.sums, axis=0)
        if not np.isfinite(means[:2]).all():
            raise FedexitError(
                f"the loss is {means[:2].sum()} at update {self.done}; lower learning_rate, in a new folder"
            )
        row = {"update": self.done} | self._named("train", means)
        self.sums = []
        if last or self.done % self.settings.dev_every == 0:
            self.task.eval()
            with torch.no_grad():
                predicted = [self._predict(self.dev, "dev", number) for number in range(_DEV_BATCHES)]
            self.task.train()
            row |= self._named("dev", torch.stack(predicted).mean(0).numpy())
        self.rows.append(row)

    def checkpoint(self) -> None:
        """Write everything that going on needs, and the curve."""
        tensors = dict(self.task.state_dict())
        for name, parameter in self.task.named_parameters():
            tensors |= {f"{part}:{name}": self.optimiser.state[parameter][part] for part in MOMENTS}
        self.seconds, self.since = self.seconds + time.monotonic() - self.since, time.monotonic()
        about = {"update": self.done, "rows": self.rows, "seconds": self.seconds}
        metadata = {name: json.dumps(value) for name, value in about.items()}
        _atomically(self.work / "checkpoint.safetensors", lambda part: save_file(tensors, part, metadata))
        curve = pd.DataFrame(self.rows)
        _atomically(self.work / "curve.csv", lambda part: curve.to_csv(part, index=False, lineterminator="\n"))

    def finish(self, out: Path) -> None:
        """Make `out` a model folder with the record of this stage and, if it started from one, of those before."""
        save_model(self.task.model, out)
        record = out / "training"
        if self.settings.start:
            shutil.copytree(Path(self.settings.start) / "training", record, dirs_exist_ok=True)
        record.mkdir(exist_ok=True)
        stage = len(list(record.glob("*.json"))) + 1
        facts = {"minutes": round(self.seconds / 60, 1), "threads": torch.get_num_threads()}
        text = json.dumps(asdict(self.settings) | facts, indent=1, sort_keys=True) + "\n"
        (record / f"stage{stage}.json").write_text(text)
        shutil.copyfile(self.work / "curve.csv", record / f"stage{stage}.csv")
        write_card(out)

    def _restore(self, file: Path) -> None:
        with safe_open(file, "pt") as stored:
            about = {name: json.loads(text) for name, text in stored.metadata().items()}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        self.done, self.rows, self.seconds = about["update"], about["rows"], about["seconds"]
        self.task.load_state_dict({name: tensors[name] for name in self.task.state_dict()})
        for name, parameter in self.task.named_parameters():
            self.optimiser.state[parameter] = {part: tensors[f"{part}:{name}"] for part in MOMENTS}

    def _predict(self, pool: SpeechPool, part: str, number: int) -> Tensor:
        """What MaskedPrediction gives, (4, C), for batch `number` of `pool`."""
        settings, name = self.settings, (self.settings.seed, part, number)
        clean = pool.batch(settings.seconds, *name)
        codes = [book(clean) for book in self.books.values()]  # of clean speech: what was added has to be seen through
        stream = (*name, "mask and dropout")
        mask = mask_frames(tuple(codes[0].shape), settings.mask_probability, settings.mask_frames, *stream)
        with seeded(*stream):
            return self.task(augmented(clean, *name, "augmentation"), codes, mask)

    def _named(self, part: str, values: np.ndarray) -> dict[str, float]:
        measures = ("masked_loss", "seen_loss", "masked_accuracy", "seen_accuracy")
        return {
            f"{part}_{measure}_{name}": round(float(value), 5)
            for measure, line in zip(measures, values, strict=True)
            for name, value in zip(self.books, line, strict=True)
        }


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
    with quiet_transformers():
        half.half().save_pretrained(out)


def _claim(settings: Pretraining, work: Path) -> None:
    """Say in `work` whose run it is, or make sure that it is this one."""
    work.mkdir(parents=True, exist_ok=True)
    file, text = work / "settings.json", json.dumps(asdict(settings), indent=1, sort_keys=True) + "\n"
    if file.is_file() and file.read_text() != text:
        raise FedexitError(f"{work.parent}: holds a run of other settings ({file}); name a new folder, or use the same")
    file.write_text(text)


def _start_model(settings: Pretraining) -> PreTrainedModel:
    """The model before the first update, in single precision.

    On short rows of few heads the plain ("eager") attention is faster than the fused one.
    """
    if settings.start:
        return pretrained_model(settings.start, attn_implementation="eager", **settings.config)
    config = PRESETS[settings.backbone] | {"layerdrop": 0.0} | settings.config
    return AutoModel.from_config(AutoConfig.for_model(**config), attn_implementation="eager")


def _atomically(file: Path, write: Callable[[Path], object]) -> None:
    part = file.with_name(file.name + ".part")
    write(part)
    os.replace(part, file)
