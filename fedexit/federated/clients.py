"""Define a client and its local round: a pure function from global weights and data to an update (paper, sec. 2.2)."""

import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedexit.data.batches import Example, batches
from fedexit.data.inspection import check_sized
from fedexit.federated.aggregation import Update
from fedexit.federated.objectives import Objective, objective_loss
from fedexit.model.exits import MultiExitModel, check_trainable
from fedexit.model.features import masked_features
from fedexit.model.training import for_training
from fedexit.support.errors import FedexitError, naming_memory
from fedexit.support.placement import finite_losses, moved
from fedexit.support.settings import AtLeastOne, Positive, check_fields
from fedexit.support.streams import numpy_stream, seeded

_OPTIMISERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Client:
    """A participant of a federation.

    A clip is a waveform (T,), float32 at 16 kHz, or frozen features (C, F). A target is as the model's `targets` say
    (`MultiExitModel`), e.g. a label's index. `own` holds weights that the client keeps between rounds
    and starts from instead of the global ones.
    """

    name: str  # unique in a federation
    data: Sequence[Example]  # pairs (clip, target): see above
    depth: int  # L_i, the exit that it trains to
    tier: str = ""  # the class of its device, for the ledger
    own: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    dev: Sequence[Example] = field(default=(), compare=False)  # held-out pairs, for `Federation.by_client`

    def __post_init__(self) -> None:
        if isinstance(self.depth, numbers.Integral) and not isinstance(self.depth, bool):  # NumPy's as well
            object.__setattr__(self, "depth", int(self.depth))


@dataclass(frozen=True)
class LocalTraining:
    """Options of local training. The paper states only the loss and 1 to 3 local epochs; the defaults are ours.

    Raises FedexitError for a value of another type or out of range.
    """

    epochs: AtLeastOne = 1  # passes over the client's clips per round
    batch_size: AtLeastOne = 8  # clips per update
    learning_rate: Positive = 1e-4  # of the backbone
    head_learning_rate: Positive = 1e-2  # of the heads, which start from random weights
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 1.0  # largest norm of the gradient; inf: no limit
    optimiser: Literal["adam", "sgd"] = "adam"  # its state ends with the round
    spec_augment: bool = False  # mask features of training clips (SpecAugment)
    bfloat16: bool = False  # matrix products in bfloat16; bit-identical only on equal processors
    recompute: bool = False  # compute layers again in the backward pass: less memory, more time, the same numbers

    def __post_init__(self) -> None:
        check_fields(self)


def at_share(training: LocalTraining, share: float) -> LocalTraining:
    """Return `training` with its learning rates times `share`."""
    if share == 1.0:
        return training
    backbone, heads = share * training.learning_rate, share * training.head_learning_rate
    return replace(training, learning_rate=backbone, head_learning_rate=heads)


@dataclass(frozen=True)
class RoundReport:
    """Statistics of one local round, for the ledger."""

    loss: float  # mean loss per clip over the last epoch
    seconds: float  # wall time
    lengths: Sequence[int]  # lengths of the clips in samples, or in frames if `cached`
    cached: bool = False  # whether the clips are frozen features


def local_round(
    model: MultiExitModel,
    global_weights: Mapping[str, Tensor],
    client: Client,
    training: LocalTraining,
    stream: tuple[str | int, ...],
    objective: Objective = Objective(),  # noqa: B008 (frozen)
) -> tuple[Update, RoundReport]:
    """Train `client` from `global_weights`; return its update and a report. The result depends on no earlier round.

    Args:
        model: A model of the client's depth (`MultiExitModel.client_model`), used as scratch space: its weights are
            overwritten. Layers above L_i do not exist in it.
        global_weights: The weights of the server by name.
        client: The client and its clips.
        training: The options of training.
        stream: The name of the random stream, e.g. (seed, "round", 3, "client", "ann").
        objective: The loss; the default is the paper's, the task's loss at exit L_i only.

    Raises FedexitError for a model that cannot be trained or has other exits than the client, a client without clips,
    a clip that cannot be trained on, a loss that is not finite, and a batch that does not fit into memory.
    """
    check_trainable(model)
    owner, since = f"client {client.name}", time.perf_counter()
    exits = objective.exits(client.depth, model.exits)
    if client.depth > model.backbone.layers or (exits != model.exits and not model.shared_head):
        raise FedexitError(f"{owner} has depth {client.depth}, its model exits {model.exits}; make it by client_model")
    check_sized(client.data, owner)
    if not len(client.data):
        raise FedexitError(f"{owner} has no clips; leave it out of the federation")
    model.load_weights({**global_weights, **client.own})
    model.train()
    optimiser = make_optimiser(model, training)
    losses: list[tuple[Tensor, int]] = []
    sizes: list[int] = []
    options = for_training(model.backbone, training.bfloat16, training.recompute)
    with seeded(*stream, "dropout"), options, naming_memory(owner, training.batch_size):
        for epoch in range(training.epochs):
            losses.clear()
            sizes.clear()
            rng = numpy_stream(*stream, "batches", epoch)
            for batch in batches(client.data, training.batch_size, rng, f"{owner}, "):
                loss = _loss(model, batch, exits, training, objective)
                if loss.device.type == "cpu":  # a GPU would wait: its losses are checked after the epoch
                    finite_losses([loss], f"{owner}'s loss")
                _step(model, optimiser, loss, global_weights, training, objective)
                losses.append((loss.detach(), len(batch[1])))
                sizes += batch[1].tolist()
            values = finite_losses([loss for loss, _ in losses], f"{owner}'s loss")
    optimiser.zero_grad()
    del optimiser, loss  # its state and the gradients take three times the memory of the weights, which are copied now
    weights = {name: tensor.clone() for name, tensor in model.trainable_weights().items()}
    mean_loss = sum(value * n for value, (_, n) in zip(values, losses, strict=True)) / sum(n for _, n in losses)
    report = RoundReport(mean_loss, time.perf_counter() - since, sizes, cached=batch[0].dim() == 3)
    return Update(weights, examples=len(client.data), depth=client.depth), report


LocalRound = Callable[..., tuple[Update, RoundReport]]  # the arguments of `local_round`


def _loss(
    model: MultiExitModel,
    batch: tuple[Tensor, ...],
    exits: Sequence[int],
    training: LocalTraining,
    objective: Objective,
) -> Tensor:
    clips, lengths, targets = batch
    device, read = model.backbone.model.device, (clips, lengths)
    if training.spec_augment:
        read = masked_features(model, *read)
    with torch.autocast(device.type, torch.bfloat16, enabled=training.bfloat16):
        outputs = model(*read, exits=exits)
    found = {exit: logits.float() for exit, logits in outputs.items()}
    return objective_loss(found, moved(targets, device), objective, model.targets)


def _step(
    model: MultiExitModel,
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    global_weights: Mapping[str, Tensor],
    training: LocalTraining,
    objective: Objective,
) -> None:
    optimiser.zero_grad()
    loss.backward()
    if objective.proximal:
        _pull_back(model, global_weights, objective.proximal)
    take_step(optimiser, training)


def _pull_back(model: MultiExitModel, global_weights: Mapping[str, Tensor], proximal: float) -> None:
    """Add the gradient of proximal/2 |w - w(t)|^2 to that of the loss."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - global_weights[name].to(parameter), alpha=proximal)


def make_optimiser(model: MultiExitModel, training: LocalTraining) -> torch.optim.Optimizer:
    """Return a fresh optimiser with the learning rates of the backbone and of the heads."""
    backbone, heads = [p for p in model.backbone.parameters() if p.requires_grad], list(model.heads.parameters())
    return optimiser_of([(backbone, training.learning_rate), (heads, training.head_learning_rate)], training)


def optimiser_of(groups: Sequence[tuple[Sequence[Tensor], float]], training: LocalTraining) -> torch.optim.Optimizer:
    """Return a fresh optimiser of the `groups`: pairs of parameters and their learning rate."""
    rates = [{"params": parameters, "lr": rate} for parameters, rate in groups]
    fused = groups[-1][0][0].device.type == "cpu"  # in one pass over each tensor; elsewhere torch chooses well itself
    return _OPTIMISERS[training.optimiser](rates, fused=fused or None)


def take_step(optimiser: torch.optim.Optimizer, training: LocalTraining) -> None:
    """Step along the gradients, whose norm is limited."""
    if math.isfinite(training.clip_norm):
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        on_cpu = parameters[0].device.type == "cpu"
        torch.nn.utils.clip_grad_norm_(parameters, training.clip_norm, foreach=on_cpu or None)
    optimiser.step()
