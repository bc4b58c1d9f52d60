"""Layer-wise, depth-aware aggregation, Eq. (1) of the paper, and the rules it must be told apart from.

    w_l(t+1) = sum_{i in S_l} (n_i * L_i^g) * w_{l,i}(t+1) / sum_{j in S_l} (n_j * L_j^g)

S_l = the clients that trained layer l, n_i = local examples, L_i = depth, g = depth exponent (1 in the paper).
Pure functions on named tensors: nothing here knows what a model is.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedexit.model.names import in_layer, layer_of
from fedexit.support.errors import FedexitError

RULES = ("layerwise", "masked", "stale", "unmasked", "count", "inclusive")
_WHOLE = ("stale", "unmasked")  # they average whole models, untouched layers included
_MOMENTUM = 0.2  # of InclusiveFL


@dataclass(frozen=True)
class Update:
    """What one client sends: weights by name, the number of examples n_i and the depth L_i it trained to."""

    weights: Mapping[str, Tensor]
    examples: int
    depth: int


def client_weight(update: Update, method: str, depth_exponent: float) -> float:
    """n_i * L_i^g for `layerwise` (Eq. 1) and `unmasked`, 1 for `count`, n_i for `masked` and `stale`."""
    if method == "count":
        return 1.0
    by_depth = method in ("layerwise", "unmasked")
    return update.examples * update.depth**depth_exponent if by_depth else float(update.examples)


class Aggregator:
    """Streaming weighted mean: one accumulator of the global model's size, whatever the number of clients.

    Linear in what a client sends (n_i L_i^g w_i and n_i L_i^g, summed), so it can run under secure aggregation, and the
    order of clients matters only by float rounding.
    """

    def __init__(self, global_weights: Mapping[str, Tensor], method: str = "layerwise", depth_exponent: float = 1.0):
        self.global_weights, self.method, self.depth_exponent = global_weights, method, depth_exponent
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, float] = {}
        self._all_clients = 0.0

    def add(self, update: Update) -> None:
        """Take in one client. Raises FedexitError for unknown names, other shapes and n_i or L_i below 1."""
        if update.examples < 1 or update.depth < 1:
            raise FedexitError(
                f"an update needs examples >= 1 and depth >= 1, not {update.examples} and {update.depth}"
            )
        weight = client_weight(update, self.method, self.depth_exponent)
        self._all_clients += weight
        for name, tensor in update.weights.items():
            self._check(name, tensor)
            if self._trained(name, update.depth):
                self._accumulate(name, tensor, weight)

    def _trained(self, name: str, depth: int) -> bool:
        """Whether the client is in S_l. Plain FedAvg does not ask: it averages whatever comes back."""
        layer = layer_of(name)
        return self.method in _WHOLE or layer is None or layer <= depth

    def _check(self, name: str, tensor: Tensor) -> None:
        if name not in self.global_weights:
            raise FedexitError(f"an update holds {name!r}, which the global model has not")
        if tensor.shape != self.global_weights[name].shape:
            expected = tuple(self.global_weights[name].shape)
            raise FedexitError(
                f"an update's {name!r} has shape {tuple(tensor.shape)}; the global model's is {expected}"
            )

    def _accumulate(self, name: str, tensor: Tensor, weight: float) -> None:
        tensor = tensor.to(torch.float32)
        if name in self._sums:
            self._sums[name].add_(tensor, alpha=weight)
        else:
            self._sums[name] = tensor * weight
        self._totals[name] = self._totals.get(name, 0.0) + weight

    def result(self) -> dict[str, Tensor]:
        """The new global weights, once: they are made in the sums' memory. What nobody trained keeps its very tensor.

        Raises FedexitError when a mean is not finite: one diverged client would otherwise spoil the model in silence.
        """
        return {name: self._mean(name, old) for name, old in self.global_weights.items()}

    def _mean(self, name: str, old: Tensor) -> Tensor:
        if name not in self._sums:
            return old
        total, mean = self._totals[name], self._sums.pop(name)
        if self.method in _WHOLE:  # who did not send it holds an untouched copy: it counts with that client's weight
            mean.add_(old.to(torch.float32), alpha=self._all_clients - total)
            total = self._all_clients
        return finite(name, mean.div_(total)).to(old.dtype)


def finite(name: str, mean: Tensor) -> Tensor:
    """`mean`, the average of the parameter `name`. Raises FedexitError when it is not finite."""
    # a sum is one pass and finite if all is; finite numbers may overflow in it, hence the second look
    if not torch.isfinite(mean.sum()) and not torch.isfinite(mean).all():
        raise FedexitError(f"the average of {name!r} is not finite: a client diverged; lower its learning rate")
    return mean


class TierAggregator:
    """InclusiveFL's rule (Liu et al., KDD 2022): means within tiers, a lesson from tier to tier, and their mean.

    Clients of one depth are a tier, averaged with n_i. The mean step of the blocks that the next deeper tier has more
    is mixed, by `_MOMENTUM`, into the step of the top block of a tier (momentum distillation); then each layer
    is averaged over tiers with their numbers of clients. One accumulator per tier. Unlike in the original, a tier's top
    block is not kept apart: the layers of one global model are everybody's; its head is its own.
    """

    def __init__(self, global_weights: Mapping[str, Tensor]):
        self.global_weights = global_weights
        self._tiers: dict[int, Aggregator] = {}
        self._clients: Counter[int] = Counter()

    def add(self, update: Update) -> None:
        """Take in one client. Raises FedexitError as `Aggregator.add`."""
        if update.depth not in self._tiers:
            self._tiers[update.depth] = Aggregator(self.global_weights, "masked")
        self._tiers[update.depth].add(update)
        self._clients[update.depth] += 1

    def result(self) -> dict[str, Tensor]:
        """The new global weights, once, as `Aggregator.result`."""
        old, depths = self.global_weights, sorted(self._tiers)
        means = {
            depth: {name: mean for name, mean in self._tiers.pop(depth).result().items() if mean is not old[name]}
            for depth in depths
        }
        tops = [self._top(means, *pair) for pair in itertools.pairwise(depths)]
        taught = [
            Update({**means[depth], **top}, self._clients[depth], depth)
            for depth, top in itertools.zip_longest(depths, tops, fillvalue={})
        ]
        return aggregate(old, taught, "masked")

    def _top(self, means: dict[int, dict[str, Tensor]], depth: int, deeper: int) -> dict[str, Tensor]:
        """The top block of the tier of `depth`, taught by the tier that is next `deeper`."""
        own, other, old, top = means[depth], means[deeper], self.global_weights, {}
        for name in [name for name in own if layer_of(name) == depth]:
            extra = [same for layer in range(depth + 1, deeper + 1) if (same := in_layer(name, layer)) in other]
            if extra:  # WavLM's relative positions are the first layer's alone
                lesson = sum(other[same] - old[same] for same in extra) / len(extra)
                top[name] = old[name] + _MOMENTUM * lesson + (1 - _MOMENTUM) * (own[name] - old[name])
        return top


def make_aggregator(
    global_weights: Mapping[str, Tensor], method: str = "layerwise", depth_exponent: float = 1.0
) -> Aggregator | TierAggregator:
    """What averages by the rule `method` as clients come in: see `aggregate`."""
    if method not in RULES:
        raise FedexitError(f"unknown aggregation method {method!r}; known: {', '.join(RULES)}")
    if method == "inclusive":
        return TierAggregator(global_weights)
    return Aggregator(global_weights, method, depth_exponent)


def aggregate(
    global_weights: Mapping[str, Tensor],
    updates: Iterable[Update],
    method: str = "layerwise",
    depth_exponent: float = 1.0,
) -> dict[str, Tensor]:
    """New global weights from the clients' updates, layer by layer, by parameter name.

    method: `layerwise` is Eq. (1) with exponent g = `depth_exponent`; `masked` weights by n_i alone over S_l (ReeFL's
    rule, Eq. (1) with g = 0), `count` every client the same (DepthFL, ScaleFL, FedRA); `stale` is plain FedAvg over
    whole models, where a shallow client's deep layers are untouched copies, and `unmasked` the same with Eq. (1)'s
    n_i L_i^g; `inclusive`: see `TierAggregator`. A layer that no one trained keeps its bits. Raises FedexitError for
    malformed updates.
    """
    server = make_aggregator(global_weights, method, depth_exponent)
    for update in updates:
        server.add(update)
    return server.result()


MOMENTS = ("first:", "second:")  # what their names begin with


@dataclass(frozen=True)
class FedAdam:
    """FedAdam (Reddi et al., ICLR 2021, alg. 2): d = average - w is the gradient's stand-in, per parameter.

        m = beta1 m + (1 - beta1) d,  v = beta2 v + (1 - beta2) d^2,  w = w + learning_rate * m / (sqrt(v) + tau)

    Without bias correction, as there, and m = v = 0 at first. learning_rate and tau are tuned by task there; ours make
    the first steps of a client's usual size (1e-3 per round and weight) about as large as an average's.
    """

    learning_rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def step(
        self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], moments: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The new weights; `moments`, by `first:name` and `second:name`, are replaced.

        What nobody trained (its average is the very tensor it was) keeps its weights and its moments.
        """
        stepped = dict(averages)
        for name, old in weights.items():
            if averages[name] is old:
                continue
            change = averages[name] - old
            first = (1 - self.beta1) * change + self.beta1 * moments.get(f"first:{name}", 0.0)
            second = (1 - self.beta2) * change.square() + self.beta2 * moments.get(f"second:{name}", 0.0)
            moments |= {f"first:{name}": first, f"second:{name}": second}
            stepped[name] = old + self.learning_rate * first / (second.sqrt() + self.tau)
        return stepped
