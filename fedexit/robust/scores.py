"""Score the updates of a round by layer, and rank the clients: the ledger names the culprits.

For each group (layer, head or frontend) of each client the ledger gets

    norm    the length of its change
    cosine  between its change and the mean direction of the other clients in S_l

The mean of directions counts every client once, with length 1. Against the mean of Eq. (1) a client that sends minus
ten times its step would score best, because that mean is mostly its own. Two holders have the same cosine, and a single
holder has none.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedexit.federated.aggregation import Update
from fedexit.privacy.noise import group_of
from fedexit.robust.rules import change, norms_and_cosines
from fedexit.support.errors import FedexitError

Changes = dict[str, Tensor]  # by group, of one client
_SEEN = 3  # holders that outvote one


def changes_of(old: Mapping[str, Tensor], update: Update) -> Changes:
    """Return the change of an update by group, each as one vector."""
    groups: dict[str, list[str]] = {}
    for name in update.weights:
        groups.setdefault(group_of(name), []).append(name)
    return {group: change(old, update, names) for group, names in groups.items()}


def scored(changes: Mapping[str, Changes]) -> dict[str, dict[str, float]]:
    """Return the columns of the ledger for each client, `norm GROUP` and `cosine GROUP`, from the changes by client."""
    found: dict[str, dict[str, float]] = {client: {} for client in changes}
    for group in dict.fromkeys(group for own in changes.values() for group in own):
        clients = [client for client, own in changes.items() if group in own]
        norms, cosines = norms_and_cosines(torch.stack([changes[client][group] for client in clients]))
        for client, norm, cosine in zip(clients, norms, cosines, strict=True):
            found[client] |= {f"norm {group}": norm, f"cosine {group}": cosine}
    return found


def culprits(ledger: pd.DataFrame) -> pd.DataFrame:
    """Rank clients by how much their updates stand out, from a ledger of `federate_guarded(..., scores=True)`.

    The score adds two parts, averaged over rounds and groups with three holders or more: the distance of log10 of the
    norm from the median over S_l, and how far the cosine is below the median. A refused update counts as the largest
    score of its round plus 1.

    Returns:
        A row per client, the most suspicious first: `rank, client, rounds, refused` (rounds), `norm` (over the median,
        geometric mean), `cosine` (mean) and `score`.

    Raises:
        FedexitError: the ledger has no scores.

    Example:
        >>> culprits(federate_guarded(model, clients, rounds=5, scores=True).clients).head()
    """
    groups = [name.removeprefix("norm ") for name in ledger.columns if name.startswith("norm ")]
    if not groups or "refused" not in ledger:
        raise FedexitError("the ledger has no scores; make it by federate_guarded(..., scores=True)")
    rounds = ledger[ledger["round"] > 0]
    parts = pd.concat([*_parts(rounds, groups), pd.DataFrame(columns=["client", "round", "norm", "cosine", "score"])])
    each = parts.groupby(["client", "round"], as_index=False)[["norm", "cosine", "score"]].mean()
    bad = rounds.loc[rounds["refused"] != "", ["client", "round"]].assign(refused=1)
    worst = each.groupby("round")["score"].max()
    bad["score"] = bad["round"].map(worst).fillna(0.0) + 1
    both = pd.concat([each, bad])
    table = both.groupby("client").agg(
        rounds=("round", "size"), refused=("refused", "sum"), norm=("norm", "mean"), cosine=("cosine", "mean"),
        score=("score", "mean"),
    )  # fmt: skip
    table["norm"] = 10 ** table["norm"]
    table["refused"] = table["refused"].astype(int)
    table = table.reset_index().sort_values(["score", "client"], ascending=[False, True], ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1))[["rank", *table.columns]]


def _parts(rounds: pd.DataFrame, groups: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield per group the distance of each client from the others in a round: `client, round, norm, cosine, score`."""
    for group in groups:
        rows = rounds[["client", "round"]].copy()
        rows["norm"] = np.log10(rounds[f"norm {group}"].clip(lower=1e-30))
        rows["cosine"] = rounds[f"cosine {group}"]
        rows = rows.dropna()
        rows = rows[rows.groupby("round")["client"].transform("size") >= _SEEN]
        middle = rows.groupby("round")[["norm", "cosine"]].transform("median")
        rows["norm"] -= middle["norm"]
        rows["score"] = rows["norm"].abs() + (middle["cosine"] - rows["cosine"]).clip(lower=0)
        yield rows


def found_at_the_top(table: pd.DataFrame, bad: Sequence[str]) -> float:
    """Return the share of the `bad` clients among the first of a table of `culprits`, as many as there are of them."""
    return len({*table["client"].head(len(bad))} & {*bad}) / len(bad) if bad else math.nan
