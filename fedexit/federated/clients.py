"""One client and its local round: a pure function from global weights and data to an update (paper, sec. 2.2)."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedexit.data.batches import Example, batches
from fedexit.federated.aggregation import Update
from fedexit.federated.objectives import OBJECTIVES, TEACHERS, objective_loss
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import masked_features
from fedexit.model.names import in_layer, layer_of
from fedexit.model.training import check_numbers, for_bfloat16
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream, seeded

OPTIMISERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Client:
    """A participant: its clips, as a sequence of (waveform (T,) float32 at 16 kHz, target), its depth and tier.

    A target is a label's index, or the numbers of a text's characters (`fedexit.data.text.characters`). `own`:
    weights that it has kept, and starts a round from in place of the global ones.
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
