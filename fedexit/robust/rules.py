"""Average robustly, layer by layer: capped n_i, norm clipping, outliers, median, trimmed mean and Krum over S_l.

Each rule is a `Rule` for `Method`: `federate(model, clients, ROBUST["median"])`. It works on the changes w_{l,i} - w_l
of the clients in S_l, one group (layer, head or frontend) after the other, because a shallow client does not train a
deep layer. So what counts is the share of bad clients in S_l, not in the federation, and deep layers have few holders:

    holders  clipped                    median, trimmed          krum, outliers
    1        its own change             its own change           its own change
    2        both; the longer is cut    mean of both             mean of both
             to the length of the other
    3, more  a bad minority is limited  a bad minority is       a bad minority is
             to the median length       outvoted                left out

With one or two holders no rule can tell who is right. `least` names the number of holders below which a layer keeps its
weights. Median, trimmed mean and Krum ignore n_i and L_i, so a client gains nothing when it claims more clips.
"""

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedexit.federated.aggregation import Update, client_weight
from fedexit.federated.methods import Method
from fedexit.model.names import layer_of
from fedexit.privacy.noise import group_of
from fedexit.support.settings import AtLeastOne, NotNegative, Positive, check_fields

Share = Annotated[float, Field(ge=0, lt=0.5)]
Places = dict[tuple[str, tuple[int, ...]], list[str]]


def holders(old: Mapping[str, Tensor], updates: Sequence[Update]) -> Places:
    """Return the names of weights by their group and S_l, the places in `updates` of the clients that hold them."""
    found: Places = {}
    for name in old:
        places = tuple(place for place, update in enumerate(updates) if _holds(update, name))
        found.setdefault((group_of(name), places), []).append(name)
    return found


def _holds(update: Update, name: str) -> bool:
    return name in update.weights and (layer_of(name) or 0) <= update.depth


def change(old: Mapping[str, Tensor], update: Update, names: Sequence[str]) -> Tensor:
    """Return the change of the weights `names` by an update, as one vector in at least float32."""
    return torch.cat([_vector(update.weights[name].to(old[name].device)) - _vector(old[name]) for name in names])


def _vector(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().to(torch.promote_types(tensor.dtype, torch.float32))


def capped(updates: Sequence[Update], cap: float) -> list[float]:
    """Return n_i L_i of each update, where n_i counts at most `cap` times the median n_i of all; 0 sets no cap.

    Example:
        >>> capped([Update(weights, 10, 3), Update(weights, 10, 3), Update(weights, 9000, 3)], cap=2.0)
        [30.0, 30.0, 60.0]
    """
    limit = cap * statistics.median([update.examples for update in updates]) if cap else math.inf
    return [client_weight(one, "layerwise", 1.0) * min(1.0, limit / one.examples) for one in updates]


def norms_and_cosines(changes: Tensor) -> tuple[list[float], list[float]]:
    """Return the norm of each change (holders, numbers), and its cosine to the sum of the others' directions.

    The cosine is NaN where there is no direction.
    """
    norms = changes.norm(dim=1).double().cpu()
    directions = changes / norms.clamp_min(1e-30)[:, None].to(changes)
    products = (directions @ directions.T).double().cpu()
    own, rows, total = products.diag(), products.sum(dim=1), products.sum()
    others = (total - 2 * rows + own).clamp_min(0.0).sqrt()  # norm of the sum of the others
    cosines = torch.where((others > 1e-3) & (norms > 0), (rows - own) / others, torch.nan)
    return norms.tolist(), cosines.clamp(-1, 1).tolist()


@dataclass(frozen=True)
class ByLayer(ABC):
    """Combine the changes of each group over the clients that hold it. Subclasses say how in `combined`.

    least: fewer holders than this leave a layer unchanged.
    """

    least: AtLeastOne = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, old: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
        """Return the new weights. A weight with fewer than `least` holders is the same tensor object."""
        new, shares = dict(old), torch.tensor(self.shares(updates))
        for (_, places), names in holders(old, updates).items():
            if len(places) < self.least:
                continue
            changes = torch.stack([change(old, updates[place], names) for place in places])
            found = self.combined(changes, shares[[*places]].to(changes))
            parts = found.split([old[name].numel() for name in names])
            for name, part in zip(names, parts, strict=True):
                new[name] = (_vector(old[name]) + part).view(old[name].shape).to(old[name])
        return new

    def shares(self, updates: Sequence[Update]) -> list[float]:
        """Return n_i L_i of each update."""
        return capped(updates, 0.0)

    @abstractmethod
    def combined(self, changes: Tensor, shares: Tensor) -> Tensor:
        """Return one change (numbers,) from those of the holders (holders, numbers) and their n_i L_i (holders,)."""


@dataclass(frozen=True)
class Capped(ByLayer):
    """Average by Eq. (1) with capped n_i, so that no client buys weight by claiming clips.

    cap: n_i counts at most `cap` times the median n_i of the round's updates; 0 sets no cap.
    """

    cap: NotNegative = 2.0

    def shares(self, updates: Sequence[Update]) -> list[float]:
        """Return n_i L_i of each update, with capped n_i."""
        return capped(updates, self.cap)

    def combined(self, changes: Tensor, shares: Tensor) -> Tensor:
        """Return the mean with weights n_i L_i."""
        return (shares / shares.sum()) @ changes


@dataclass(frozen=True)
class Clipped(Capped):
    """Cut long changes to a common length, then average as `Capped` does (norm clipping, Sun et al. 2019).

    The length is `times` the lower median of the lengths over S_l, so it follows the training and needs no tuning. Of
    two holders, the longer change is cut to the shorter. Direction is kept: a short hostile change still counts.

    times: the longest change over the median one.
    """

    times: Positive = 1.0

    def combined(self, changes: Tensor, shares: Tensor) -> Tensor:
        """Return the mean of the clipped changes."""
        norms = changes.norm(dim=1)
        limit = self.times * norms.median()
        return super().combined(changes * (limit / norms.clamp_min(1e-30)).clamp_max(1.0)[:, None], shares)


@dataclass(frozen=True)
class Outliers(Capped):
    """Leave out the clients of S_l that stand out by the length or the direction of their change, then average.

    The distance of log10 of the length from its median, and of the cosine (`norms_and_cosines`) below its median, are
    divided by 1.48 times the median distance, which is one standard deviation of a normal distribution. A similar test
    of directions is in Muñoz-González et al. (2019). With one or two holders nobody stands out.

    times: the standard deviations beyond which a client is left out.
    """

    times: Positive = 2.5

    def combined(self, changes: Tensor, shares: Tensor) -> Tensor:
        """Return the mean with weights n_i L_i of the changes that do not stand out."""
        if len(changes) < 3:
            return super().combined(changes, shares)
        norms, cosines = map(torch.tensor, norms_and_cosines(changes))
        far = torch.maximum(_apart(norms.clamp_min(1e-30).log10()).abs(), -_apart(cosines.nan_to_num(0.0)))
        kept = (far <= max(self.times, float(far.median()))).to(changes.device)
        return super().combined(changes[kept], shares[kept])


def _apart(values: Tensor) -> Tensor:
    """Return the distances of values from their median, in standard deviations of most of them."""
    distances = values - values.median()
    return distances / (1.4826 * distances.abs().median()).clamp_min(1e-9)


@dataclass(frozen=True)
class Median(ByLayer):
    """Take the median of each coordinate over S_l, without weights (Yin et al., ICML 2018)."""

    def combined(self, changes: Tensor, shares: Tensor) -> Tensor:
        """Return the median; of an even number of holders the mean of the two middle values."""
        return _middle(changes, (len(changes) - 1) // 2)


@dataclass(frozen=True)
class Trimmed(ByLayer):
    """Drop the largest and smallest values of each coordinate over S_l, and average the rest (Yin et al., ICML 2018).

    share: the share that is dropped on each side, rounded up, as long as a value remains: of 3 or 4 holders one.
    """

    share: Share = 0.2

    def combined(self, changes: Tensor, shares: Tensor) -> Tensor:
        """Return the mean of the values that remain."""
        return _middle(changes, count_bad(self.share, len(changes), (len(changes) - 1) // 2))


@dataclass(frozen=True)
class Krum(ByLayer):
    """Take the change that is closest to its neighbours in S_l (Krum, Blanchard et al., NeurIPS 2017).

    Of n holders, f are expected to be bad. The score of a change is the sum of squared distances to its n - f - 2
    nearest ones, and the lowest score wins. Equal scores are averaged, therefore two holders give their mean.

    share: the share of bad holders; f is rounded up, to at most (n - 3) / 2 as the proof needs.
    best: the share of the holders whose changes are averaged, those of the lowest scores; 0 takes the best alone
        (Krum), more is Multi-Krum.
    """

    share: Share = 0.2
    best: Annotated[float, Field(ge=0, le=1)] = 0.0

    def combined(self, changes: Tensor, shares: Tensor) -> Tensor:
        """Return the mean of the changes with the lowest scores."""
        count = len(changes)
        products = changes.double() @ changes.double().T
        products = (products + products.T) / 2  # exactly symmetric, so that equal scores are equal
        apart = products.diag()[:, None] + products.diag() - 2 * products
        near = max(1, count - count_bad(self.share, count, (count - 3) // 2) - 2)
        scores = apart.fill_diagonal_(0.0).sort(dim=1).values[:, 1 : 1 + near].sum(dim=1)  # without itself
        last = scores.sort().values[max(0, round(self.best * count) - 1)]
        return changes[scores <= last].mean(dim=0)


def count_bad(share: float, count: int, most: int) -> int:
    """Return a `share` of `count` holders, rounded up, from 0 to `most`."""
    return max(0, min(math.ceil(share * count - 1e-9), most))


def _middle(changes: Tensor, dropped: int) -> Tensor:
    """Return the mean of each coordinate without the `dropped` largest and smallest values."""
    values = changes.T.contiguous().sort(dim=1).values  # several times faster than along the first dimension
    return values[:, dropped : len(changes) - dropped].mean(dim=1)


ROBUST: dict[str, Method] = {
    method.name: method
    for method in (
        Method("capped", "ours", "Eq. (1) with n_i up to twice the median", rule=Capped()),
        Method("clipped", "Sun et al. 2019", "changes cut to the median length, then Eq. (1)", rule=Clipped()),
        Method(
            "outliers", "after Muñoz-González et al. 2019", "Eq. (1) without clients that stand out", rule=Outliers()
        ),
        Method("median", "Yin et al. 2018", "median of each coordinate", rule=Median()),
        Method("trimmed", "Yin et al. 2018", "mean without the extreme fifths of each coordinate", rule=Trimmed()),
        Method("krum", "Blanchard et al. 2017", "the change nearest to its neighbours", rule=Krum()),
        Method("multi-krum", "Blanchard et al. 2017", "mean of the most central half", rule=Krum(best=0.5)),
    )
}
"""Methods by name, for `federate(model, clients, ROBUST[NAME])`; for others `Method(NAME, rule=Trimmed(share=0.3))`."""
