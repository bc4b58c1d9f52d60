"""Central fine-tuning: all clips in one place, one exit. What federations are measured against.

Unlike a client, who trains for an epoch or two, it has the time to overfit; hence random crops, weight decay, smoothed
labels, and a learning rate that goes to zero.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedexit.data.batches import Example, batches
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import masked_features
from fedexit.model.heads import task_loss
from fedexit.model.training import check_numbers, for_bfloat16, schedule
from fedexit.support.checkpoints import MOMENTS, load_checkpoint, save_checkpoint
from fedexit.support.errors import FedexitError
from fedexit.support.progress import progress
from fedexit.support.streams import numpy_stream, seeded


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune centrally. The defaults were chosen on dev, for the voices of queen from `tiny` (notebook 05).

    `crop`: of each clip a random stretch of so many frames (samples, if the clips are waveforms) is taken per epoch;
    None takes all of it, as texts need. `spec_augment`: features of training clips are masked
    (`clients.spec_augment`). `bfloat16`: matrix products are taken in it, faster on processors that know it; the bits
    then depend on the processor. Raises FedexitError for numbers that cannot train.
    """

    epochs: int = 60
    batch_size: int = 16
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-2
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    crop: int | None = 75
    clip_norm: float = 1.0
    spec_augment: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        if not (self.weight_decay >= 0 and 0 <= self.label_smoothing <= 1) or (self.crop is not None and self.crop < 1):
            raise FedexitError(
                f"weight_decay must be >= 0, label_smoothing in [0, 1] and crop >= 1 or None, not {self}"
            )


def fine_tune(
    model: MultiExitModel,
    data: Sequence[Example],
    exits: Sequence[int],
    recipe: Recipe,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> None:
    """Train `model` in place on `data`, with the loss at one exit or the mean of those at several.

    `checkpoint`: a file that keeps the state after every epoch; a run that finds it goes on to the same bits.
    Raises FedexitError for no clips, crops of clips with texts, a checkpoint of another run and a loss that is not
    finite.
    """
    if not len(data):
        raise FedexitError("there are no clips to train on")
    if recipe.crop is not None and model.head != "pooled":
        raise FedexitError("a stretch of a clip does not say all of its text; train CTC heads with crop=None")
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in model.backbone.parameters() if p.requires_grad], "full": recipe.learning_rate},
            {"params": list(model.heads.parameters()), "full": recipe.head_learning_rate},
        ],
        weight_decay=recipe.weight_decay,
    )
    identity = json.dumps([asdict(recipe), list(exits), seed, len(data), model.checksum()])
    done = _resume(model, optimiser, identity, checkpoint)
    steps = -(-len(data) // recipe.batch_size)
    for epoch in progress(range(done, recipe.epochs), f"fine-tuning to exit {max(exits)}"):
        model.train()
        rng = numpy_stream(seed, "central", epoch)
        crops = [(_crop(clip, recipe.crop, rng), label) for clip, label in data]
        with seeded(seed, "central", "dropout", epoch), for_bfloat16(model.backbone, recipe.bfloat16):
            for step, batch in enumerate(batches(crops, recipe.batch_size, rng)):
                for group in optimiser.param_groups:
                    group["lr"] = group["full"] * schedule(epoch * steps + step, recipe.epochs * steps)
                _step(model, optimiser, batch, exits, recipe)
        if checkpoint is not None:
            _save(model, optimiser, identity, epoch + 1, checkpoint)
    model.eval()


def _crop(clip: Tensor, length: int | None, rng: np.random.Generator) -> Tensor:
    """A random stretch of `length` of `clip` (..., T); all of it if it is not longer, or `length` None."""
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
) -> None:
    clips, lengths, targets = batch
    if recipe.spec_augment:
        clips, lengths = masked_features(model, clips, lengths)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        outputs = model(clips, lengths, exits).values()
    losses = [task_loss(logits.float(), targets, recipe.label_smoothing) for logits in outputs]
    loss = torch.stack(losses).mean()
    if not torch.isfinite(loss):
        raise FedexitError(f"the loss is {loss.item()}; lower the learning rate")
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimiser.step()


def _save(model: MultiExitModel, optimiser: torch.optim.Optimizer, identity: str, done: int, file: Path) -> None:
    tensors = {f"model:{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{part}:{name}": value for part, value in optimiser.state.get(parameter, {}).items()}
    save_checkpoint(file, identity, done, tensors)


def _resume(model: MultiExitModel, optimiser: torch.optim.Optimizer, identity: str, file: str | Path | None) -> int:
    """Epochs done according to the checkpoint, whose state is loaded; 0 without one."""
    if not (found := load_checkpoint(file, identity)):
        return 0
    done, tensors = found
    model.load_state_dict({name: tensors[f"model:{name}"] for name in model.state_dict()})
    for name, parameter in model.named_parameters():
        if f"step:{name}" in tensors:  # else it is not trained
            optimiser.state[parameter] = {part: tensors[f"{part}:{name}"] for part in MOMENTS}
    return done
