"""One client and its local round: a pure function from global weights and data to an update (paper, sec. 2.2)."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torchaudio
from torch import Tensor

from fedexit.aggregation import Update, in_layer, layer_of
from fedexit.backbone import for_bfloat16
from fedexit.errors import FedexitError
from fedexit.exits import MultiExitModel
from fedexit.objectives import OBJECTIVES, TEACHERS, objective_loss
from fedexit.streams import numpy_stream, seeded

Example = tuple[Tensor, int | list[int]]
OPTIMISERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
WINDOW = 8  # batches whose clips are sorted by length together
_WARM_UP = 0.05  # share of all updates in which a learning rate rises


@dataclass(frozen=True)
class Client:
    """A participant: its clips, as a sequence of (waveform (T,) float32 at 16 kHz, target), its depth and tier.

    A target is a label's index, or the numbers of a text's characters (`fedexit.ctc.characters`). `own`: weights that
    it has kept, and starts a round from in place of the global ones.
    """

    name: str
    data: Sequence[Example]
    depth: int
    tier: str = ""
    own: Mapping[str, Tensor] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class LocalTraining:
    """How every client trains. The defaults are ours: the paper states none but 1-3 local epochs, and the loss.

    The heads start from nothing and are one layer, so they learn at a rate of their own. `objective`, `distillation`
    (its teachers), `strength` and `temperature` make the loss: see `objective_loss`. `proximal` is FedProx's mu (Li et
    al. 2020): mu/2 |w - w(t)|^2 is added to it, w(t) being the global weights. `random_layers`: the L_i layers that a
    client has are drawn anew in each round, as FedRA does. `bfloat16`: matrix products are taken in it, faster on
    processors that know it; the bits then depend on the processor. Raises FedexitError for an unknown optimiser,
    objective or teacher, for teachers without pupils, and for numbers that cannot train.
    """

    epochs: int = 1
    batch_size: int = 8
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-2
    clip_norm: float = 1.0
    optimiser: str = "adam"
    spec_augment: bool = False
    bfloat16: bool = False
    objective: str = "last"
    distillation: str = ""
    strength: float = 1.0
    temperature: float = 1.0
    proximal: float = 0.0
    random_layers: bool = False

    def __post_init__(self) -> None:
        choices = {"optimiser": OPTIMISERS, "objective": OBJECTIVES, "distillation": TEACHERS}
        for what, known in choices.items():
            if (chosen := getattr(self, what)) not in known:
                raise FedexitError(f"unknown {what} {chosen!r}; known: {', '.join(filter(None, known))}")
        check_numbers(self)
        if not (self.strength >= 0 and self.proximal >= 0 and self.temperature > 0):
            raise FedexitError(f"strength and proximal must be >= 0 and temperature > 0, not {self}")
        if self.distillation and self.objective == "last":
            raise FedexitError(f"distillation {self.distillation!r} needs several exits; take objective 'all'")

    def exits(self, depth: int, known: Sequence[int]) -> list[int]:
        """Those of the `known` exits whose heads a client of `depth` holds, trains and sends."""
        return [depth] if self.objective == "last" else [exit for exit in sorted(known) if exit <= depth]


def check_numbers(training: object) -> None:
    """Raise FedexitError for numbers by which nothing trains, here or centrally: NaN is one."""
    above = training.learning_rate, training.head_learning_rate, training.clip_norm
    if min(training.epochs, training.batch_size) < 1 or not all(number > 0 for number in above):
        raise FedexitError(
            f"epochs and batch_size must be >= 1, learning rates and clip_norm (math.inf: none) > 0, not {training}"
        )


def collate(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """A zero-padded batch of clips, each of zero mean and unit variance (as wav2vec 2.0 expects).

    Returns waveforms (B, T) float32, lengths (B,) samples, labels (B,), of texts (B, L) with zeros behind. Clips that
    are frozen features already, (C, F), come back as (B, C, F) with lengths in frames. Raises FedexitError for an empty
    clip.
    """
    clips = [clip if clip.dim() == 2 else normalised(clip) for clip, _ in examples]
    lengths = torch.tensor([clip.shape[-1] for clip in clips])
    batch = torch.stack([torch.nn.functional.pad(clip, (0, int(lengths.max()) - clip.shape[-1])) for clip in clips])
    targets = [torch.tensor(target, dtype=torch.long) for _, target in examples]
    return batch, lengths, torch.nn.utils.rnn.pad_sequence(targets, True) if targets[0].dim() else torch.stack(targets)


def spec_augment(features: Tensor, masks: int = 2, time: int = 20, channels: float = 0.08) -> Tensor:
    """`features` (B, C, F) with random stretches set to zero (SpecAugment, Park et al. 2019, without warping).

    Each clip has `masks` of up to `time` frames, but no more than a fifth of the batch's frames in all, and as many of
    up to a share `channels` of the channels. Randomness is torch's.
    """
    spread = features[:, None]  # torchaudio masks (B, channel, frequency, time)
    for _ in range(masks):
        spread = torchaudio.functional.mask_along_axis_iid(spread, time, 0.0, axis=3, p=0.2 / masks)
        spread = torchaudio.functional.mask_along_axis_iid(spread, int(channels * features.shape[1]), 0.0, axis=2)
    return spread[:, 0]


def masked_features(model: MultiExitModel, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """`spec_augment` of a batch of `collate`, and its lengths in frames; waveforms are convolved first."""
    if clips.dim() == 2:
        clips, lengths = model.backbone.convolve(clips, lengths), model.backbone.frame_lengths(lengths)
    return spec_augment(clips), lengths


def normalised(clip: Tensor) -> Tensor:
    """`clip` (T,) with zero mean and unit variance. Raises FedexitError when it is empty."""
    if clip.numel() == 0:
        raise FedexitError("a clip holds no samples; drop it from the manifest")
    return (clip - clip.mean()) / (clip.std(correction=0) + 1e-7)


def by_length(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Positions of the examples in batches of `size`, clips of like length together: little of a batch is padding.

    Like is what differs by less than a factor of about 1.4; among these the order stays as it is, drawn or listed.
    """
    order = sorted(
        range(len(examples)), key=lambda position: round(2 * math.log2(examples[position][0].shape[-1] or 1))
    )
    return [order[start : start + size] for start in range(0, len(order), size)]


def batches(data: Sequence[Example], size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch of collated batches in an order drawn from `rng`.

    Clips are sorted by length (`by_length`) within stretches of `WINDOW` batches only, so that few are held at once.
    """
    order = rng.permutation(len(data))
    for start in range(0, len(order), WINDOW * size):
        window = [data[int(i)] for i in order[start : start + WINDOW * size]]
        groups = by_length(window, size)
        for group in rng.permutation(len(groups)):
            yield collate([window[position] for position in groups[group]])


def local_round(
    model: MultiExitModel,
    global_weights: dict[str, Tensor],
    client: Client,
    training: LocalTraining,
    stream: tuple[str | int, ...],
) -> tuple[Update, dict]:
    """Train `client` from `global_weights` and return what it sends, and what is to be told of it.

    That is `loss`, the mean of its last epoch, `seconds` of wall time, `lengths` of its clips, and whether they are
    `cached` features (lengths in frames) or waveforms (in samples).

    `model` is scratch space of the client's depth (`client_model`): the result depends on the other arguments alone.
    The loss is the task's at exit L_i only, as in the paper, or what `training` says; layers above L_i do not exist
    here. Randomness comes from the stream named `stream`. Raises FedexitError for a client without data and a loss that
    is not finite.
    """
    if not len(client.data):
        raise FedexitError(f"client {client.name} has no clips; leave it out of the federation")
    if training.random_layers:
        return _round_of_drawn_layers(model, global_weights, client, training, stream)
    since = time.perf_counter()
    model.load_weights({**global_weights, **client.own})
    model.train()
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = make_optimiser(model, training)
    exits = training.exits(client.depth, model.exits)
    kind = training.objective, training.distillation, training.strength, training.temperature
    losses: list[tuple[float, int]] = []
    sizes: list[int] = []
    with seeded(*stream, "dropout"), for_bfloat16(model.backbone, training.bfloat16):
        for epoch in range(training.epochs):
            losses.clear()
            sizes.clear()
            rng = numpy_stream(*stream, "batches", epoch)
            for waveforms, lengths, labels in batches(client.data, training.batch_size, rng):
                read = waveforms.to(device), lengths
                if training.spec_augment:
                    read = masked_features(model, *read)
                with torch.autocast(device.type, torch.bfloat16, enabled=training.bfloat16):
                    outputs = model(*read, exits=exits)
                outputs = {exit: logits.float() for exit, logits in outputs.items()}
                loss = objective_loss(outputs, labels.to(device), *kind)
                if not torch.isfinite(loss):
                    raise FedexitError(f"client {client.name}'s loss is {loss.item()}; lower the learning rate")
                optimiser.zero_grad()
                loss.backward()
                if training.proximal:
                    _pull_back(model, global_weights, training.proximal)
                if math.isfinite(training.clip_norm):
                    torch.nn.utils.clip_grad_norm_(parameters, training.clip_norm)
                optimiser.step()
                losses.append((loss.item(), len(labels)))
                sizes += lengths.tolist()
    optimiser.zero_grad()
    del optimiser  # its state and the gradients, three times the weights, before the weights are copied
    weights = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    mean_loss = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    told = dict(loss=mean_loss, seconds=time.perf_counter() - since, lengths=sizes, cached=waveforms.dim() == 3)
    return Update(weights, examples=len(client.data), depth=client.depth), told


def _round_of_drawn_layers(
    model: MultiExitModel,
    global_weights: dict[str, Tensor],
    client: Client,
    training: LocalTraining,
    stream: tuple[str | int, ...],
) -> tuple[Update, dict]:
    """`local_round` on L_i of all layers, drawn from the stream, in their order (FedRA, Su et al., ECCV 2024).

    The update's depth is the global model's, as its layers are of anywhere.
    """
    layers = max(layer_of(name) or 0 for name in global_weights)
    drawn = sorted(numpy_stream(*stream, "layers").choice(layers, client.depth, replace=False) + 1)
    places = {}
    for name in model.trainable_weights():
        place = in_layer(name, drawn[layer - 1]) if (layer := layer_of(name)) else name
        places[name] = place if place in global_weights else name  # WavLM's relative positions are the first layer's
    received = {name: global_weights[place] for name, place in places.items()}
    update, told = local_round(model, received, client, replace(training, random_layers=False), stream)
    return Update({places[name]: tensor for name, tensor in update.weights.items()}, update.examples, layers), told


def _pull_back(model: MultiExitModel, global_weights: dict[str, Tensor], proximal: float) -> None:
    """Add the gradient of proximal/2 |w - w(t)|^2 to those of the loss."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - global_weights[name].to(parameter), alpha=proximal)


def make_optimiser(model: MultiExitModel, training: LocalTraining) -> torch.optim.Optimizer:
    """A fresh optimiser: its state never outlives the round."""
    groups = [
        {"params": [p for p in model.backbone.parameters() if p.requires_grad], "lr": training.learning_rate},
        {"params": list(model.heads.parameters()), "lr": training.head_learning_rate},
    ]
    return OPTIMISERS[training.optimiser](groups)


def schedule(done: float) -> float:
    """Share of the learning rate when a share `done` of the updates is: linear warm-up, then half a cosine to zero."""
    return min(done / _WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2
