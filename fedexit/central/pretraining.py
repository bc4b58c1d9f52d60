"""Define the settings of a pre-training run, and check everything that they name."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import save
from transformers import AutoConfig, AutoModel, PreTrainedModel

from fedexit.central.codes import features_of
from fedexit.central.model_card import read_stages
from fedexit.central.speech_pool import CROPS
from fedexit.data.constants import SAMPLE_RATE
from fedexit.model.backbone import PRESETS, Backbone, load_backbone, shipped_backbones
from fedexit.model.pretrained import pretrained_model
from fedexit.support.errors import FedexitError
from fedexit.support.paths import backbones_dir
from fedexit.support.settings import AtLeastOne, NotNegative, Positive, Texts, check_fields, with_given
from fedexit.support.streams import seeded


class Book(NamedTuple):
    """A codebook in the settings: its feature, the number of clusters and its weight in the loss."""

    feature: str
    clusters: int
    weight: float


@dataclass(frozen=True)
class Pretraining:
    """Settings that decide the result of a run, together with the number of threads.

    Attributes:
        backbone: preset whose geometry the model has.
        config: entries of the `transformers` config that differ from the preset's or the start's.
        corpora: names or folders of the corpora, each once.
        codebooks: one text `feature:clusters:weight` per codebook. The feature is `mfcc`, `content`, `voice`, or
            `layerL` or `contentL` of the teacher; the weight is that in the loss.
        teacher: model folder or name that provides the layers of `layerL`; None without such codebooks.
        start: model folder, name in data/backbones or hub id to start from, None for random weights.
        updates: number of updates, at least 1.
        seconds: speech per update, at least 1 (the shortest row).
        learning_rate: peak learning rate, above 0.
        seen_weight: weight of the loss of unmasked frames; that of masked frames is 1 (HuBERT, eq. 2).
        mask_probability: masked share of the frames if spans did not overlap, above 0 and at most 1.
        mask_frames: frames per masked span, fewer than the shortest row has.
        precision: of the model's matrix products; bfloat16 is faster on processors that support it.
        log_every: updates per line of the loss curve.
        dev_every: updates between measurements on development speech; a multiple of `log_every`.
        seed: names all random streams.

    Raises:
        FedexitError: for a value of another type or out of its range.
    """

    backbone: str = "tiny-random"
    config: dict[str, object] = field(default_factory=dict)
    corpora: Texts = ("unlabelled", "queen")
    codebooks: Texts = ("mfcc:256:1", "content:256:1", "voice:128:0.2")
    teacher: Annotated[str, Field(min_length=1)] | None = None
    start: Annotated[str, Field(min_length=1)] | None = None
    updates: AtLeastOne = 20_000
    seconds: Annotated[float, Field(ge=min(CROPS), le=3600)] = 16.0
    learning_rate: Positive = 1e-3
    seen_weight: NotNegative = 1.0
    mask_probability: Annotated[float, Field(gt=0, le=1)] = 0.65
    mask_frames: AtLeastOne = 10
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: AtLeastOne = 50
    dev_every: AtLeastOne = 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.backbone not in PRESETS:
            raise FedexitError(f"unknown backbone {self.backbone!r}; known: {', '.join(PRESETS)}")
        features = [book.feature for book in self.books]
        if len(set(features)) < len(features):
            raise FedexitError(f"codebooks {', '.join(self.codebooks)} use one feature twice; use each once")

    @property
    def books(self) -> list[Book]:
        """Return the codebooks. Raise FedexitError for one in another notation."""
        return [_book(text) for text in self.codebooks]


def pretraining_settings(given: dict[str, object]) -> Pretraining:
    """Return `Pretraining` with the `given` fields; raise FedexitError for an unknown name or a value out of range."""
    return with_given(Pretraining(), given)


def _book(text: str) -> Book:
    try:
        name, clusters, weight = text.split(":")
        book = Book(name.strip(), int(clusters), float(weight))
    except ValueError:
        raise FedexitError(f"codebook {text!r}: write feature:clusters:weight, for example mfcc:256:1") from None
    if book.clusters < 2 or not 0 < book.weight < float("inf"):
        raise FedexitError(f"codebook {text!r}: give at least 2 clusters and a finite weight above 0")
    return book


def start_model(settings: Pretraining) -> PreTrainedModel:
    """Return the model before the first update, in single precision.

    Plain ("eager") attention is faster than the fused one on short rows with few heads.
    """
    if settings.start:
        return pretrained_model(start_folder(settings.start), attn_implementation="eager", **settings.config)
    config = PRESETS[settings.backbone] | {"layerdrop": 0.0} | settings.config
    return AutoModel.from_config(AutoConfig.for_model(**config), attn_implementation="eager")


def start_folder(start: str) -> Path:
    """Return the folder of the model `start`; a hub id is returned as it is.

    Raises:
        FedexitError: for a preset, which has no weights to start from.
    """
    if start in PRESETS and not Path(start).is_dir():
        raise FedexitError(f"{start} is a preset with random weights; set backbone={start} and leave start out")
    return backbones_dir() / start if start in shipped_backbones() else Path(start)


def check_models(settings: Pretraining) -> dict[str, str]:
    """Try the start, the teacher and the codebooks on a second of noise, before anything is decoded or trained.

    Returns:
        Hashes of the weights of the start and the teacher, where the settings name one.

    Raises:
        FedexitError: for a model that cannot be built, masked or loaded after training, for codes with another frame
            rate, for spans longer than the shortest row and for a start whose training record is unreadable.
    """
    with _sentence(f"cannot start from {settings.start or settings.backbone!r} with config={settings.config}"):
        with seeded(settings.seed, "pre-training", "start"):
            model = start_model(settings)
        plain = AutoConfig.for_model(model.config.model_type)
        if unknown := [name for name in settings.config if not hasattr(plain, name)]:
            raise FedexitError(f"the config of {plain.model_type} has no entry {unknown[0]!r}")
        frames = _masked_frames(model, settings)
    found = {"start": _hash(model)} if settings.start else {}
    if settings.start:
        read_stages(start_folder(settings.start) / "training")
    teacher = load_backbone(settings.teacher) if settings.teacher else None
    if teacher is not None:
        found["teacher"] = _hash(teacher)
    for book in settings.books:
        codes = features_of(book.feature, teacher)(_noise()).shape[1]
        if codes != frames:
            raise FedexitError(
                f"codebook {book.feature} has {codes} frames in a second but the model has {frames}; take a model "
                "with the same frame rate"
            )
    return found


def _masked_frames(model: PreTrainedModel, settings: Pretraining) -> int:
    """Return the frames of the shortest row after a trial of the model with all of them masked."""
    backbone = Backbone(model, settings.start or settings.backbone, pretrained=False)
    if backbone.layers < 1 or not 0 <= model.config.layerdrop < 1:
        raise FedexitError("num_hidden_layers must be at least 1 and layerdrop at least 0 and below 1")
    if not (getattr(model.config, "apply_spec_augment", True) and hasattr(model, "masked_spec_embed")):
        raise FedexitError(
            "it does not mask its input; set config={apply_spec_augment: true, mask_time_prob: 0.05} and start again"
        )
    frames = int(backbone.frame_lengths(torch.tensor([int(min(CROPS) * SAMPLE_RATE)])))
    if settings.mask_frames >= frames:
        raise FedexitError(f"mask_frames={settings.mask_frames} would mask all {frames} frames of a row; take fewer")
    with seeded("pre-training", "trial"), torch.no_grad():
        states = model.train()(_noise(), mask_time_indices=torch.ones(1, frames, dtype=torch.bool)).last_hidden_state
    if not torch.isfinite(states).all():
        raise FedexitError("its hidden states are not finite")
    return frames


def _noise() -> torch.Tensor:
    """Return the shortest row (1, T), filled with noise."""
    return torch.randn(1, int(min(CROPS) * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))


def _hash(module: torch.nn.Module) -> str:
    return hashlib.sha256(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()})).hexdigest()


@contextmanager
def _sentence(problem: str) -> Iterator[None]:
    """Turn any error of `transformers` and torch about the user's model or config into one sentence."""
    try:
        yield
    except Exception as error:
        raise FedexitError(f"{problem}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
