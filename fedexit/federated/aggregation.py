"""Aggregate layer by layer, aware of depth: Eq. (1) of the paper, and the rules that it is compared with.

    w_l(t+1) = sum_{i in S_l} (n_i * L_i^g) * w_{l,i}(t+1) / sum_{j in S_l} (n_j * L_j^g)

S_l = the clients that trained layer l, n_i = local examples, L_i = depth, g = depth exponent (1 in the paper).
The functions are pure and work on named tensors; they know nothing of models.
"""

import itertools
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedexit.model.names import in_layer, layer_of
from fedexit.support.checks import whole_number
from fedexit.support.errors import FedexitError

Rule = Callable[[Mapping[str, Tensor], "list[Update]"], Mapping[str, Tensor]]  # one of your own: see `aggregate`
RULES = ("layerwise", "masked", "stale", "unmasked", "count", "inclusive")
_WHOLE = ("stale", "unmasked")  # these rules average whole models, with untouched layers
_MOMENTUM = 0.2  # of InclusiveFL


@dataclass(frozen=True)
class Update:
    """The update that one client sends."""

    weights: Mapping[str, Tensor]  # by name
    examples: int  # n_i, number of local examples, >= 1
    depth: int  # L_i, the depth that it trained to, >= 1


def client_weight(update: Update, method: str, depth_exponent: float) -> float:
    """Return n_i * L_i^g for `layerwise` (Eq. 1) and `unmasked`, 1 for `count`, n_i for `masked` and `stale`."""
    if method == "count":
        return 1.0
    by_depth = method in ("layerwise", "unmasked")
    examples, depth = int(update.examples), int(update.depth)
    return examples * depth**depth_exponent if by_depth else float(examples)


def check_exponent(depth_exponent: float) -> float:
    """Return g of Eq. (1) as a float. Raise FedexitError beyond +-10, where L_i^g could overflow in the sums."""
    if not isinstance(depth_exponent, numbers.Real) or not abs(depth_exponent) <= 10:
        raise FedexitError(f"depth_exponent must be a number from -10 to 10, not {depth_exponent!r}")
    return float(depth_exponent)


def _layers_in(weights: Mapping[str, Tensor]) -> int:
    """Return the number of layers of a model with these `weights`; 0 unless they name layers 1 to n without a gap."""
    named = {layer for name in weights if (layer := layer_of(name))}
    return len(named) if len(named) > 1 and max(named) == len(named) else 0


class Aggregator:
    """Streaming weighted mean with one accumulator of the global model's size, for any number of clients.

    The sums (n_i L_i^g w_i and n_i L_i^g) are linear in the updates, so they can run under secure aggregation. The
    order of clients matters only by rounding. Sums are in float32, or in float64 for weights of that type.
    """

    def __init__(
        self,
        global_weights: Mapping[str, Tensor],
        method: str = "layerwise",
        depth_exponent: float = 1.0,
        layers: int | None = None,
    ):
        self.global_weights, self.method = global_weights, method
        self.depth_exponent = check_exponent(depth_exponent)
        self._layers = layers or _layers_in(global_weights)
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, float] = {}
        self._all_clients = 0.0
        self._finished = False

    def add(self, update: Update) -> None:
        """Add one client's update to the sums. An update that is refused changes nothing.

        Raises FedexitError for anything but an `Update`, unknown names, other shapes, values that are not finite, n_i
        or L_i that is not a whole number >= 1, L_i beyond the model's layers, and after `result`.
        """
        self.check(update)
        weight = client_weight(update, self.method, self.depth_exponent)
        self._all_clients += weight
        for name, tensor in update.weights.items():
            if self._trained(name, update.depth):
                self._accumulate(name, tensor, weight)

    def check(self, update: Update) -> None:
        """Raise FedexitError for an update that `add` would refuse."""
        _check_update(self, update)
        whole_number(update.examples, "examples n_i of an update", 1)
        whole_number(update.depth, "depth L_i of an update", 1)
        if self._layers and update.depth > self._layers:
            raise FedexitError(f"depth L_i of an update is {update.depth}; the model has {self._layers} layers")
        for name, tensor in update.weights.items():
            self._check(name, tensor)

    def _trained(self, name: str, depth: int) -> bool:
        """Return whether the client is in S_l. Plain FedAvg averages all that it receives."""
        layer = layer_of(name)
        return self.method in _WHOLE or layer is None or layer <= depth

    def _check(self, name: str, tensor: Tensor) -> None:
        if name not in self.global_weights:
            raise FedexitError(f"an update holds {name!r}, which is not in the global model")
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise FedexitError(f"an update's {name!r} is of type {kind}; send a tensor of real numbers")
        if tensor.shape != self.global_weights[name].shape:
            expected = tuple(self.global_weights[name].shape)
            raise FedexitError(
                f"an update's {name!r} has shape {tuple(tensor.shape)}; the global model's is {expected}"
            )
        if not _is_finite(tensor):
            raise FedexitError(f"an update's {name!r} is not finite: the client diverged; lower its learning rate")

    def _accumulate(self, name: str, tensor: Tensor, weight: float) -> None:
        old = self.global_weights[name]
        tensor = tensor.detach().to(old.device, _exact(old))
        if name in self._sums:
            self._sums[name].add_(tensor, alpha=weight)
        else:
            self._sums[name] = tensor * weight
        self._totals[name] = self._totals.get(name, 0.0) + weight

    def result(self) -> dict[str, Tensor]:
        """Return the new global weights. A weight that no client trained is returned as the same tensor object.

        The means take the memory of the sums. Raises FedexitError for a mean that is not finite and a second call.
        """
        _check_open(self)
        self._finished = True
        return {name: self._mean(name, old) for name, old in self.global_weights.items()}

    def _mean(self, name: str, old: Tensor) -> Tensor:
        if name not in self._sums:
            return old
        total, mean = self._totals[name], self._sums.pop(name)
        if self.method in _WHOLE:  # a client that did not send it holds an untouched copy, with that client's weight
            mean.add_(old.detach().to(mean.dtype), alpha=self._all_clients - total)
            total = self._all_clients
        return finite(name, mean.div_(total)).to(old.dtype)


def _check_open(aggregator: "Aggregator | TierAggregator") -> None:
    if aggregator._finished:
        raise FedexitError("this aggregator has given its result; make a new one for the next round")


def _check_update(aggregator: "Aggregator | TierAggregator", update: Update) -> None:
    _check_open(aggregator)
    if not isinstance(update, Update) or not isinstance(update.weights, Mapping):
        raise FedexitError(f"an update is a {type(update).__name__}; give an Update with weights by name")


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _is_finite(tensor: Tensor) -> bool:
    # a finite sum (one pass) means finite numbers; these may overflow in it, hence the second test
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


def finite(name: str, mean: Tensor) -> Tensor:
    """Return `mean`, the average of the parameter `name`. Raise FedexitError when it is not finite."""
    if not _is_finite(mean):
        raise FedexitError(f"the average of {name!r} is not finite: a client diverged; lower its learning rate")
    return mean


class TierAggregator:
    """InclusiveFL's rule (Liu et al., KDD 2022): means within tiers, momentum distillation, and the mean of tiers.

    Clients of one depth are a tier, averaged with weights n_i. The mean step of the extra blocks of the next deeper
    tier is mixed, with weight `_MOMENTUM`, into the step of a tier's top block. Then each layer is averaged over the
    tiers, weighted by their numbers of clients. Unlike in the original, all clients share the layers of one global
    model, so a tier has no top block of its own.
    """

    def __init__(self, global_weights: Mapping[str, Tensor], layers: int | None = None):
        self.global_weights, self._layers = global_weights, layers
        self._tiers: dict[int, Aggregator] = {}
        self._clients: Counter[int] = Counter()
        self._finished = False

    def add(self, update: Update) -> None:
        """Add one client's update. Errors are those of `Aggregator.add`."""
        _check_update(self, update)
        whole_number(update.depth, "depth L_i of an update", 1)
        tier = self._tiers.get(update.depth) or Aggregator(self.global_weights, "masked", layers=self._layers)
        tier.add(update)
        self._tiers[int(update.depth)] = tier
        self._clients[int(update.depth)] += 1

    def result(self) -> dict[str, Tensor]:
        """Return the new global weights. Errors are those of `Aggregator.result`."""
        _check_open(self)
        self._finished = True
        old, depths = self.global_weights, sorted(self._tiers)
        means = {
            depth: {name: mean for name, mean in self._tiers.pop(depth).result().items() if mean is not old[name]}
            for depth in depths
        }
        tops = [self._top(means, *pair) for pair in itertools.pairwise(depths)]
        server = Aggregator(old, "masked", layers=self._layers)
        for depth, top in zip(depths, [*tops, {}], strict=False):
            server.add(Update({**means[depth], **top}, self._clients[depth], depth))
        return server.result()

    def _top(self, means: dict[int, dict[str, Tensor]], depth: int, deeper: int) -> dict[str, Tensor]:
        """Return the top block of the tier of `depth`, mixed with the step of the next `deeper` tier."""
        own, other, old, top = means[depth], means[deeper], self.global_weights, {}
        for name in [name for name in own if layer_of(name) == depth]:
            extra = [same for layer in range(depth + 1, deeper + 1) if (same := in_layer(name, layer)) in other]
            if extra:  # only layer 1 of WavLM has relative positions
                lesson = sum(other[same] - old[same] for same in extra) / len(extra)
                top[name] = old[name] + _MOMENTUM * lesson + (1 - _MOMENTUM) * (own[name] - old[name])
        return top


class OwnAggregator(Aggregator):
    """Collect copies of all updates of a round for a rule of your own (`aggregate`), and check what it returns."""

    def __init__(self, global_weights: Mapping[str, Tensor], rule: Rule, layers: int | None = None):
        super().__init__(global_weights, layers=layers)
        self._rule, self._updates = rule, list[Update]()

    def add(self, update: Update) -> None:
        """Add one client's update. Errors are those of `Aggregator.add`."""
        self.check(update)
        copies = {name: tensor.clone() for name, tensor in update.weights.items()}
        self._updates.append(Update(copies, update.examples, update.depth))

    def result(self) -> dict[str, Tensor]:
        """Return the new global weights; without updates the old ones. Raises FedexitError as `checked_weights`."""
        _check_open(self)
        self._finished = True
        if not self._updates:
            return dict(self.global_weights)
        return checked_weights(self._rule(self.global_weights, self._updates), self.global_weights, "the rule")


def checked_weights(found: object, weights: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return new global weights that a part of the user's own, the `owner`, made from `weights`.

    Raises FedexitError unless they are finite tensors with the names and shapes of `weights`.
    """
    if not isinstance(found, Mapping):
        raise FedexitError(f"{owner} returned a {type(found).__name__}; return the new weights by name, as a dict")
    if other := found.keys() ^ weights.keys():
        raise FedexitError(f"{owner} returned {len(found)} weights of {len(weights)}; check {min(other, key=str)!r}")
    for name, old in weights.items():
        new = found[name]
        if not isinstance(new, Tensor) or new.shape != old.shape or not _is_finite(new):
            wanted = f"return a finite tensor of shape {tuple(old.shape)}"
            raise FedexitError(f"{owner} returned {str(new)[:60]!r} for {name!r}; {wanted}")
    # a weight that is the same object counts as untrained
    return {name: old if found[name] is old else found[name].detach().to(old) for name, old in weights.items()}


def make_aggregator(
    global_weights: Mapping[str, Tensor],
    method: str | Rule = "layerwise",
    depth_exponent: float = 1.0,
    layers: int | None = None,
) -> Aggregator | TierAggregator:
    """Return an aggregator for the rule `method`, to which updates are added one by one. See `aggregate`.

    layers: of the model, the bound of L_i; by default the deepest layer that the weights name.
    """
    if callable(method):
        return OwnAggregator(global_weights, method, layers)
    if method not in RULES:
        raise FedexitError(f"unknown aggregation method {method!r}; known: {', '.join(RULES)}; or give a function")
    if method == "inclusive":
        return TierAggregator(global_weights, layers)
    return Aggregator(global_weights, method, depth_exponent, layers)


def aggregate(
    global_weights: Mapping[str, Tensor],
    updates: Iterable[Update],
    method: str | Rule = "layerwise",
    depth_exponent: float = 1.0,
) -> dict[str, Tensor]:
    """Average the clients' updates into new global weights, layer by layer, by parameter name.

    A layer that no client trained stays bit-identical.

    Args:
        global_weights: The current weights by name.
        updates: The updates; each is read once.
        method: The rule. `layerwise` is Eq. (1). `masked` weights by n_i over S_l (ReeFL; Eq. (1) with g = 0). `count`
            weights all clients of S_l equally (DepthFL, ScaleFL, FedRA). `stale` is FedAvg over whole models, in which
            deep layers of shallow clients are untouched copies; `unmasked` is the same with weights n_i L_i^g.
            `inclusive` is `TierAggregator`. A function of your own, `rule(global_weights, updates)`, gets the list of
            all updates of a round and returns the new weights, all of them by name. An update lacks the layers and
            heads that its client does not hold.
        depth_exponent: g in Eq. (1) and in `unmasked`.

    Raises FedexitError for an unknown rule or one that returns something else, and as `Aggregator.add` and
    `Aggregator.result`.

    Example:
        >>> aggregate(model.trainable_weights(), [Update(weights, examples=40, depth=6)])
        >>> def median(old, updates):
        ...     sent = {n: [u.weights[n] for u in updates if n in u.weights] for n in old}
        ...     return {n: torch.stack(sent[n]).median(0).values if sent[n] else old[n] for n in old}
        >>> federate(model, clients, method=Method("median", rule=median))
    """
    server = make_aggregator(global_weights, method, depth_exponent)
    for update in [updates] if isinstance(updates, Update) else updates:
        server.add(update)
    return server.result()
