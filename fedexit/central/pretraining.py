"""Define the settings of a pre-training run, and check everything that they name."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import save
from transformers import AutoConfig, AutoModel, PreTrainedModel

from fedexit.central.codes import FEATURES, frames_of, teacher_layer
from fedexit.central.model_card import read_stages
from fedexit.central.speech_pool import CROPS, SPEEDS
from fedexit.central.teachers import COMPONENTS, load_teacher, teacher_hash
from fedexit.data.constants import SAMPLE_RATE
from fedexit.model.backbone import PRESETS, Backbone
from fedexit.model.pretrained import pretrained_model
from fedexit.support.errors import FedexitError
from fedexit.support.paths import backbone_folders
from fedexit.support.placement import check_half
from fedexit.support.settings import AtLeastOne, NotNegative, Positive, Texts, check_fields, with_given
from fedexit.support.streams import seeded

_CODEBOOKS = ("mfcc:256:1", "content:256:1", "voice:128:0.2")
_FORMS = {
    "codebook": ("feature:clusters:weight", "mfcc:256:1"),
    "state": ("stateL:components:weight", "state3:64:1"),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TargetText(NamedTuple):
    """A target in the settings.

    Attributes:
        feature: what it is computed from.
        size: number of clusters, or of components of `stateL`.
        weight: its weight in the loss.
        layer: layer of the model that it is read from; None for the last.
    """

    feature: str
    size: int
    weight: float
    layer: int | None


@dataclass(frozen=True)
class Pretraining:
    """Settings that decide the result of a run, together with the number of threads.

    Attributes:
        backbone: preset whose geometry the model has.
        config: entries of the `transformers` config that differ from the preset's or the start's.
        corpora: names or folders of the corpora, each once.
        codebooks: one text `feature:clusters:weight` or `feature:clusters:weight@layer` per codebook, whose codes the
            model predicts. The feature is `mfcc`, `content`, `voice`, or `layerL` or `contentL` of the teacher; the
            weight is that in the loss; `layer` is the layer of the model that must predict them (default: the last).
            None takes three codebooks of the sound itself, or none if the model distils.
        distil: one text `stateL:components:weight` or `stateL:components:weight@layer` per layer L of the teacher,
            whose first principal components the model predicts.
        teacher: name of the teacher (`load_teacher`); None if nothing comes from its layers.
        start: model folder, name or hub id to start from, None for random weights.
        updates: number of updates, at least 1.
        seconds: speech per update, at least 1 (the shortest row).
        learning_rate: peak learning rate, above 0.
        seen_weight: weight of the loss of unmasked frames; that of masked frames is 1 (HuBERT, eq. 2).
        mask_probability: masked share of the frames if spans did not overlap, above 0 and at most 1.
        mask_frames: frames per masked span, fewer than the shortest row has.
        precision: of the model's matrix products; bfloat16 is faster on processors that support it.
        log_every: updates per line of the loss curve.
        dev_every: updates between measurements on development speech; a multiple of `log_every`.
        speeds: speeds at which clips are played, multiples of 0.1.
        seed: names all random streams.

    Raises:
        FedexitError: for a value of another type or out of its range.
    """

    backbone: str = "tiny-random"
    config: dict[str, object] = field(default_factory=dict)
    corpora: Texts = ("unlabelled", "queen")
    codebooks: Texts | None = None
    distil: Annotated[tuple[str, ...], Field(strict=False)] = ()
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
    speeds: Annotated[tuple[Annotated[float, Field(ge=0.5, le=2)], ...], Field(strict=False, min_length=1)] = SPEEDS
    seed: int = 0

    def __post_init__(self) -> None:
        check_half(self.precision)
        check_fields(self)
        if self.backbone not in PRESETS:
            raise FedexitError(f"unknown backbone {self.backbone!r}; known: {', '.join(PRESETS)}")
        features = [target.feature for target in self.parsed]
        if len(set(features)) < len(features):
            raise FedexitError(f"targets {', '.join(self.targets)} use one feature twice; use each once")
        if off := [speed for speed in self.speeds if abs(10 * speed - round(10 * speed)) > 1e-9]:
            raise FedexitError(f"setting speeds: {off[0]} is no multiple of 0.1")
        if self.teacher is None and (lone := [name for name in features if teacher_layer(name) is not None]):
            raise FedexitError(f"{lone[0]} is a layer of a teacher; name the teacher with teacher=...")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Return the texts of the codebooks, also where `codebooks` is None."""
        if self.codebooks is None:
            return () if self.distil else _CODEBOOKS
        return self.codebooks

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the texts of all codebooks and states."""
        return (*self.chosen, *self.distil)

    @property
    def books(self) -> list[TargetText]:
        """Return the codebooks. Raise FedexitError for one in another notation."""
        return [_target(text, "codebook") for text in self.chosen]

    @property
    def states(self) -> list[TargetText]:
        """Return the states of the teacher. Raise FedexitError for one in another notation."""
        return [_target(text, "state") for text in self.distil]

    @property
    def parsed(self) -> list[TargetText]:
        """Return all targets."""
        return [*self.books, *self.states]

    @property
    def teacher_layers(self) -> list[int]:
        """Return the layers of the teacher that some target is computed from, in order."""
        layers = {teacher_layer(target.feature) for target in self.parsed}
        return sorted(layer for layer in layers if layer is not None)


def pretraining_settings(given: dict[str, object]) -> Pretraining:
    """Return `Pretraining` with the `given` fields; raise FedexitError for an unknown name or a value out of range."""
    return with_given(Pretraining(), given)


def _target(text: str, kind: str) -> TargetText:
    plain, _, layer = text.partition("@")
    try:
        name, size, weight = plain.split(":")
        target = TargetText(name.strip(), int(size), float(weight), int(layer) if layer else None)
    except ValueError:
        form, example = _FORMS[kind]
        raise FedexitError(f"{kind} {text!r}: write {form} or {form}@layer, for example {example}") from None
    if kind == "state" and not re.fullmatch(r"state\d+", target.feature):
        raise FedexitError(f"state {text!r}: name a layer of the teacher, for example state3")
    if (
        kind == "codebook"
        and target.feature not in FEATURES
        and not re.fullmatch(r"(layer|content)\d+", target.feature)
    ):
        raise FedexitError(
            f"unknown codebook {target.feature!r}: expected {', '.join(FEATURES)}, or layerL or contentL with a teacher"
        )
    if target.layer is not None and target.layer < 1:
        raise FedexitError(f"{kind} {text!r}: layers of the model count from 1")
    if target.size < 2 or not 0 < target.weight < float("inf"):
        size = "clusters" if kind == "codebook" else "components"
        raise FedexitError(f"{kind} {text!r}: give at least 2 {size} and a finite weight above 0")
    return target


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
    return backbone_folders().get(start, Path(start))


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
    if late := [target for target in settings.parsed if (target.layer or 1) > model.config.num_hidden_layers]:
        raise FedexitError(
            f"target {late[0].feature} is read from layer {late[0].layer}, but the model has layers 1 to "
            f"{model.config.num_hidden_layers}"
        )
    inner = [target.feature for target in settings.parsed if target.layer not in (None, model.config.num_hidden_layers)]
    if inner and model.config.layerdrop:
        raise FedexitError(
            f"target {inner[0]} is read from an inner layer, which LayerDrop may drop; set layerdrop to 0"
        )
    if settings.teacher:
        found["teacher"] = _checked_teacher(settings)
    if (wanted := frames_of(_noise().shape[1])) != frames:
        raise FedexitError(
            f"the model has {frames} frames in a second, but all targets have {wanted}; take a model with this rate"
        )
    return found


def _checked_teacher(settings: Pretraining) -> str:
    """Return the hash of the teacher's weights; raise FedexitError if it lacks a layer or components of a target."""
    teacher = load_teacher(str(settings.teacher))
    if settings.teacher_layers and (last := settings.teacher_layers[-1]) > teacher.layers:
        raise FedexitError(f"teacher {settings.teacher} has layers 0 to {teacher.layers}, but no layer {last}")
    width = min(COMPONENTS, teacher.hidden_states(_noise())[0].shape[-1])
    if large := [target for target in settings.states if target.size > width]:
        raise FedexitError(
            f"target {large[0].feature} asks for {large[0].size} components, but there are {width} of each layer of "
            f"teacher {settings.teacher}; take at most these"
        )
    return teacher_hash(teacher)


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
