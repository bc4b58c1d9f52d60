"""Train with central differential privacy of clients, aware of depth: clip each layer, add noise by its S_l.

    w_l <- w_l + sum_{sampled i in S_l} u_i clip(w_{l,i} - w_l, C_l) / D_l + N(0, sigma_l^2)
    u_i = min(n_i, N) L_i,    D_l = q sum_{i in S_l} N L_i,    sigma_l = z sqrt(G) C_l max_{i in S_l} N L_i / D_l

Depths, the cap N, the limits C_l and the sampling probability q are public; so is D_l, which no n_i enters. Otherwise
one client would move the denominator as well, and the bound would not hold. G is the largest number of groups (layers,
frontend, heads) that one client holds, so all groups together cost what the accountants say for z. Deep layers have
few clients, a small D_l and therefore more noise.

The server is trusted with the updates. What is released is the model after every round. A client's data is present or
absent; who is in the list of clients, and at which depth, is not protected. Keep the ledger secret: it says who took
part. Each client must take part with probability q on its own (`poisson`), not as a fixed share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fedexit.federated.aggregation import Update
from fedexit.federated.clients import Client
from fedexit.federated.methods import Method
from fedexit.federated.resuming import Depths
from fedexit.federated.rounds import drop_outs
from fedexit.model.exits import MultiExitModel
from fedexit.model.names import layer_of
from fedexit.support.errors import FedexitError
from fedexit.support.settings import AtLeastOne, NotNegative, Positive, check_fields
from fedexit.support.streams import stream_seed

_ROUND = "round"  # the moment that counts the rounds


@dataclass(frozen=True)
class Privacy:
    """The public numbers of private training. Raises FedexitError for a value out of range.

    noise: z, the noise over the sensitivity of one client (`fedexit.privacy.accounting`); 0 clips only.
    clip: C_l of layers and frontend, the largest norm of a client's change.
    head_clip: C_l of heads, which move faster.
    examples: N, the cap of n_i.
    sampling: q, the probability that a client takes part in a round.
    """

    noise: NotNegative
    clip: Positive = 0.1
    head_clip: Positive = 1.0
    examples: AtLeastOne = 100
    sampling: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sampling > 1:
            raise FedexitError(f"sampling is a probability, not {self.sampling}; give at most 1")


def group_of(name: str) -> str:
    """Return the group in which the weight `name` is clipped: a layer, a head or the frontend."""
    if layer := layer_of(name):
        return f"layer {layer}"
    return f"head {name.split('.')[1]}" if name.startswith("heads.") else "frontend"


class Groups:
    """The groups of weights that clients of public depths hold, with their denominators and noise.

    Args:
        model: the global model.
        depths: the depth of every client of the federation.
        privacy: the public numbers.

    Attributes:
        clip: C_l by group.
        denominator: D_l by group.
        sigma: the standard deviation of the noise by group.
    """

    def __init__(self, model: MultiExitModel, depths: Sequence[int], privacy: Privacy):
        held = {depth: {*map(group_of, model.client_model(depth).trainable_weights())} for depth in {*depths}}
        self.depths, self.held = tuple(depths), held
        self.clip, self.denominator, self.sigma = {}, {}, {}
        most = math.sqrt(max(len(groups) for groups in held.values()))
        for group in sorted(set().union(*held.values())):
            weights = [privacy.examples * depth for depth in depths if group in held[depth]]
            self.clip[group] = privacy.head_clip if group.startswith("head") else privacy.clip
            self.denominator[group] = privacy.sampling * sum(weights)
            self.sigma[group] = privacy.noise * most * self.clip[group] * max(weights) / self.denominator[group]

    def effective_noise(self, privacy: Privacy) -> float:
        """Return the noise over the joint sensitivity of all groups, for the client that needs most; at least z."""
        shares = []
        for depth in {*self.depths}:
            weight = privacy.examples * depth
            moved = [self.clip[g] * weight / (self.denominator[g] * self.sigma[g]) for g in self.held[depth]]
            shares.append(math.hypot(*moved))
        return 1 / max(shares)


@dataclass(frozen=True)
class ClippedSum:
    """A rule for `Method`: the global weights plus the clipped changes, over public denominators.

    privacy: the public numbers.
    groups: the groups of weights.
    """

    privacy: Privacy = field(repr=False)
    groups: Groups = field(repr=False)

    def __call__(self, old: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
        """Return the new weights without noise. Raises FedexitError for a depth or a layer that is not announced."""
        new = dict(old)
        for update in updates:
            if update.depth not in self.groups.held:
                known = ", ".join(map(str, sorted(self.groups.held)))
                raise FedexitError(f"an update has depth {update.depth}; announced: {known}: give its client's depth")
            weight = min(update.examples, self.privacy.examples) * update.depth
            for group, change in clipped(old, update, self.groups).items():
                for name, tensor in change.items():
                    new[name] = new[name] + weight / self.groups.denominator[group] * tensor
        return new


def clipped(old: Mapping[str, Tensor], update: Update, groups: Groups) -> dict[str, dict[str, Tensor]]:
    """Return the change of each weight by group, each group scaled to a norm of at most C_l."""
    changes: dict[str, dict[str, Tensor]] = {}
    for name, tensor in update.weights.items():
        if (group := group_of(name)) in groups.held[update.depth]:
            changes.setdefault(group, {})[name] = tensor.to(old[name]) - old[name]
    for group, change in changes.items():
        norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in change.values()))
        scale = min(1.0, groups.clip[group] / norm) if norm else 1.0
        changes[group] = {name: scale * tensor for name, tensor in change.items()}
    return changes


class Noise:
    """A server for `Method`: adds the noise of each group to all of its weights, in every round.

    The noise is drawn from a stream named by `seed` and the round, so a resumed run is bit-identical. Who knows the
    seed can subtract the noise: for a real release draw it by `secrets`, and forget it.

    Args:
        groups: the groups of weights.
        seed: seed of the noise.
    """

    def __init__(self, groups: Groups, seed: int):
        self.groups, self.seed = groups, seed
        self.facts = repr(sorted(groups.sigma.items()))  # part of the identity of a checkpoint

    def step(
        self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], moments: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the averages plus noise, also for a layer that nobody trained in this round: that is no secret."""
        number = int(moments.get(_ROUND, torch.zeros(1))) + 1
        moments[_ROUND] = torch.tensor([float(number)])
        new = dict(averages)
        for name in weights:
            if sigma := self.groups.sigma.get(group_of(name)):
                generator = torch.Generator().manual_seed(stream_seed(self.seed, "noise", number, name))
                drawn = torch.randn(averages[name].shape, generator=generator, dtype=torch.float64)
                new[name] = averages[name] + (sigma * drawn).to(averages[name])
        return new


def private_method(
    model: MultiExitModel, clients: Sequence[Client], privacy: Privacy, seed: int = 0, name: str = "private"
) -> Method:
    """Return the method that trains `model` with `clients` privately. Take `poisson` for the `depths` of `federate`.

    Raises FedexitError when no client has the model's depth: the trial of own parts, and deep layers, need one.

    Example:
        >>> privacy = Privacy(noise=noise_for(3.0, 1e-3, rounds=20, sampling=0.5), sampling=0.5)
        >>> way = private_method(model, clients, privacy)
        >>> federate(model, clients, way, rounds=20, depths=poisson(clients, privacy, seed=0))
    """
    depths = [client.depth for client in clients]
    if model.backbone.layers not in depths:
        raise FedexitError(f"no client has depth {model.backbone.layers}; cut the model (`client_model`) to {depths}")
    groups = Groups(model, depths, privacy)
    return Method(name, changes="clipped, noised", rule=ClippedSum(privacy, groups), server=Noise(groups, seed))


def poisson(clients: Sequence[Client], privacy: Privacy, seed: int) -> Depths:
    """Return the `depths` for `federate` by which each client takes part with probability q on its own."""
    return partial(drop_outs, [client.name for client in clients], 1 - privacy.sampling, seed)
