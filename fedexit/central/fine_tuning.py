"""Fine-tune on all clips in one place, one exit or several. Federations are compared with this.

A client trains for an epoch or two; central training runs long enough to overfit. It therefore uses random crops,
weight decay, label smoothing and a learning rate that falls to zero.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedexit.data.batches import Example, batches, data_digest
from fedexit.model.costs import fewest_samples, memory
from fedexit.model.exits import MultiExitModel, check_trainable
from fedexit.model.features import masked_features
from fedexit.model.heads import task_loss
from fedexit.model.training import for_training
from fedexit.support.checkpoints import MOMENTS, load_checkpoint, owned_checkpoint, save_checkpoint
from fedexit.support.checks import check_exits, whole_number
from fedexit.support.errors import FedexitError, naming_memory
from fedexit.support.placement import Device, check_memory, device_for, finite_losses, in_words, moved
from fedexit.support.progress import progress
from fedexit.support.settings import AtLeastOne, NotNegative, Positive, check_fields
from fedexit.support.streams import numpy_stream, seeded

_WARM_UP = 0.05  # share of all updates in which a learning rate rises


@dataclass(frozen=True)
class Recipe:
    """Settings of central fine-tuning. The defaults were chosen on dev for the voices of queen (notebook 05).

    Attributes:
        epochs: passes over the data, at least 1.
        batch_size: clips per update, at least 1.
        learning_rate: peak rate of the backbone, above 0.
        head_learning_rate: peak rate of the heads, above 0.
        weight_decay: decay of AdamW, 0 for none.
        label_smoothing: share of the target probability spread over all labels, 0 to 1; CTC heads ignore it.
        crop: length of the random stretch taken of each clip in each epoch, in frames for stored features and in
            samples for waveforms. None takes whole clips, which CTC heads need.
        clip_norm: largest norm of the gradient, above 0; math.inf turns clipping off.
        spec_augment: whether stretches of time and channels of the training features are masked
            (`model.features.spec_augment`).
        bfloat16: whether matrix products are computed in bfloat16. This is faster on processors that support it; the
            result then depends on the processor.
        recompute: whether layers are computed again in the backward pass. This needs less memory and more time; the
            numbers are the same.

    Raises:
        FedexitError: for a value of another type or out of its range.
    """

    epochs: AtLeastOne = 60
    batch_size: AtLeastOne = 16
    learning_rate: Positive = 1e-3
    head_learning_rate: Positive = 1e-2
    weight_decay: NotNegative = 0.05
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.1
    crop: AtLeastOne | None = 75
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 1.0
    spec_augment: bool = False
    bfloat16: bool = False
    recompute: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def fine_tune(
    model: MultiExitModel,
    data: Sequence[Example],
    exits: Sequence[int],
    recipe: Recipe,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[int, MultiExitModel], object] | None = None,
    device: Device | None = None,
) -> None:
    """Train `model` in place on `data`, with the loss at one exit or the mean loss over several.

    Args:
        model: the model; training moves its heads at `exits` and the layers below the deepest of them.
        data: (clip, target) pairs. A clip is a waveform (T,) at 16 kHz or stored features (C, F); a target is as the
            model's `targets` say (`MultiExitModel`).
        exits: the layers (1-based) whose heads are trained.
        recipe: how to train.
        seed: names the random streams of order, crops, dropout and masks.
        checkpoint: a file that keeps the state after every epoch. If it exists, training resumes from it with
            bit-identical results, but only with the same start, data (by content and order), exits, recipe and seed.
        on_epoch: a function that is called with 0 before training, and after every epoch with its number, and with the
            model. If it returns True, training stops there. It is called before the epoch is stored, so a resumed run
            calls it again for an epoch that was not stored.
        device: where to train: `auto`, `cpu`, `cuda` or `mps`. The model is moved there and stays. None: where it lies.
            On a GPU results can differ in their last digits.

    Raises:
        FedexitError: for no clips, an unusable clip or target (named by its position), unknown or no exits, crops with
            CTC heads, a batch that needs more memory than is free, an unusable device, a checkpoint of another run and
            a loss that is not finite.
    """
    check_trainable(model)
    if not isinstance(recipe, Recipe):
        raise FedexitError(f"recipe must be a Recipe, not a {type(recipe).__name__}")
    exits, seed = check_exits(exits, model.exits, model.backbone.name), whole_number(seed, "seed")
    if recipe.crop is not None and model.targets == "text":
        raise FedexitError("a crop does not contain the whole text of its clip; train CTC heads with crop=None")
    place = device_for(model, device)
    _check_data(model, data, exits, recipe, place)
    model.to(place)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in model.backbone.parameters() if p.requires_grad], "full": recipe.learning_rate},
            {"params": list(model.heads.parameters()), "full": recipe.head_learning_rate},
        ],
        weight_decay=recipe.weight_decay,
    )
    with owned_checkpoint(checkpoint):
        _train(model, optimiser, data, exits, recipe, seed, checkpoint, on_epoch)
    model.eval()


def _train(
    model: MultiExitModel,
    optimiser: torch.optim.Optimizer,
    data: Sequence[Example],
    exits: Sequence[int],
    recipe: Recipe,
    seed: int,
    checkpoint: str | Path | None,
    on_epoch: Callable[[int, MultiExitModel], object] | None,
) -> None:
    """Train from the checkpoint, or from the start, to the last epoch."""
    done, identity = 0, {}
    if checkpoint is not None:
        settings = {"recipe": deciding(recipe), "exits": exits, "seed": seed}
        identity = {**settings, "start": model.checksum(), "data": data_digest(data)}
        done = _resume(model, optimiser, identity, checkpoint)
    steps = -(-len(data) // recipe.batch_size)
    if on_epoch and not done:
        on_epoch(0, model)
    for epoch in progress(range(done, recipe.epochs), f"fine-tuning to exit {max(exits)}"):
        model.train()
        rng = numpy_stream(seed, "central", epoch)
        crops = [(_crop(clip, recipe.crop, rng), target) for clip, target in data]
        options, losses = for_training(model.backbone, recipe.bfloat16, recipe.recompute), list[Tensor]()
        named = naming_memory("training data", recipe.batch_size)
        with seeded(seed, "central", "dropout", epoch), options, named:
            for step, batch in enumerate(batches(crops, recipe.batch_size, rng)):
                for group in optimiser.param_groups:
                    group["lr"] = group["full"] * schedule(epoch * steps + step, recipe.epochs * steps)
                losses.append(_step(model, optimiser, batch, exits, recipe))
            finite_losses(losses, "the loss")
        stop = on_epoch and on_epoch(epoch + 1, model) is True
        if checkpoint is not None:
            _save(model, optimiser, identity, epoch + 1, checkpoint)
        if stop:
            break


def deciding(recipe: Recipe) -> dict:
    """Return the fields of `recipe` that decide the numbers."""
    return {name: value for name, value in asdict(recipe).items() if name != "recompute"}


def _check_data(
    model: MultiExitModel, data: Sequence[Example], exits: Sequence[int], recipe: Recipe, device: torch.device
) -> None:
    """Raise FedexitError for no clips, an unusable clip or target, too short crops, and too little memory."""
    crop = recipe.crop
    lengths, cached = model.check_clips(data, "training data", spells=True)
    if not lengths:
        raise FedexitError("there are no clips to train on; give at least one")
    if crop is not None and not cached and model.backbone.frame_lengths(torch.tensor([crop])) < 1:
        raise FedexitError(f"crop={crop} samples are shorter than one frame of {model.backbone.name}; enlarge crop")
    size, longest = min(recipe.batch_size, len(lengths)), min(max(lengths), crop or max(lengths))
    samples = fewest_samples(model.backbone.model.config, longest) if cached else longest
    held = memory(model, samples, size, max(exits), "adam", cached, exits, recipe.recompute)
    need = held.training - held.weights  # these are there already
    check_memory(need, device, "training data", in_words(size, longest, cached), max(exits))


def _crop(clip: Tensor, length: int | None, rng: np.random.Generator) -> Tensor:
    """Return a random stretch of `length` of `clip` (..., T), or the clip if it is not longer or `length` is None."""
    if length is None or clip.shape[-1] <= length:
        return clip
    start = int(rng.integers(clip.shape[-1] - length + 1))
    return clip[..., start : start + length]


def _step(
    model: MultiExitModel,
    optimiser: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, Tensor],
    exits: Sequence[int],
    recipe: Recipe,
) -> Tensor:
    """Do one update and return its loss."""
    clips, lengths, targets = batch
    device = model.backbone.model.device
    if recipe.spec_augment:
        clips, lengths = masked_features(model, clips, lengths)
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
        outputs = model(clips, lengths, exits).values()
    targets = moved(targets, device)
    losses = [task_loss(logits.float(), targets, recipe.label_smoothing, model.targets) for logits in outputs]
    loss = torch.stack(losses).mean()
    if device.type == "cpu":  # a GPU would wait: its losses are checked after the epoch
        finite_losses([loss], "the loss")
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimiser.step()
    return loss.detach()


def schedule(step: int, steps: int) -> float:
    """Return the share of the full learning rate at update `step` (from 0) of `steps`.

    The share rises linearly over the first 5 % of the updates, then falls along half a cosine. No update has rate 0.
    """
    return min((step + 1) / (_WARM_UP * steps), 1.0) * (1 + math.cos(math.pi * step / steps)) / 2


def _save(model: MultiExitModel, optimiser: torch.optim.Optimizer, identity: dict, done: int, file: str | Path) -> None:
    tensors = {f"model:{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= moments_of(model, optimiser)
    save_checkpoint(file, identity, done, tensors)


def _resume(model: MultiExitModel, optimiser: torch.optim.Optimizer, identity: dict, file: str | Path) -> int:
    """Load the checkpoint if there is one; return the number of epochs it has done, or 0."""
    if not (found := load_checkpoint(file, identity)):
        return 0
    done, tensors = found
    model.load_state_dict({name: tensors[f"model:{name}"] for name in model.state_dict()})
    load_moments(model, optimiser, tensors)
    return done


def moments_of(module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return Adam's state of each parameter as `part:name`; a parameter that never had a gradient has none."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors |= {f"{part}:{name}": value for part, value in optimiser.state.get(parameter, {}).items()}
    return tensors


def load_moments(module: torch.nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give `optimiser` the state that `moments_of` returned."""
    for name, parameter in module.named_parameters():
        if f"step:{name}" in tensors:
            state = {part: tensors[f"{part}:{name}"] for part in MOMENTS}
            moved = {part: value.to(parameter.device) for part, value in state.items() if part != "step"}
            optimiser.state[parameter] = state | moved
