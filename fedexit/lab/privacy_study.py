"""Study privacy (notebook 23): the clips of small clients, secure sums, attacks on updates, and sentences on them."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from fedexit.data.batches import Example
from fedexit.data.tasks.contract import Clips, Task
from fedexit.federated.aggregation import Update, aggregate
from fedexit.federated.clients import Client, LocalTraining, local_round
from fedexit.model.backbone import Backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import freezer
from fedexit.privacy.leakage import auc_by_group, change_of, scores
from fedexit.privacy.noise import ClippedSum, Groups, Noise, Privacy
from fedexit.privacy.secure import secure_mean, tolerance
from fedexit.support.streams import numpy_stream

Weights = Mapping[str, Tensor]
Members = Sequence[tuple[Client, Sequence[Example]]]  # clients, and for each the clips that it held back


class Speech:
    """The clips of a task with the output of the frozen convolutions, which is computed once.

    Args:
        task: the task.
        backbone: the backbone whose convolutions are frozen.
        seconds: clips are cut after this many seconds.
        seed: draws clips.
    """

    def __init__(self, task: Task, backbone: Backbone, seconds: float, seed: int):
        self.task, self.seconds, self.seed = task, seconds, seed
        self._frozen = freezer(Clips(task.corpus, task.rows, seconds), backbone)

    def clips(self, rows: pd.DataFrame) -> Sequence[Example]:
        """Return the clips of some rows of the task."""
        return self._frozen(Clips(self.task.corpus, rows, self.seconds))

    def drawn(self, split: str, limit: int, name: str) -> Sequence[Example]:
        """Return at most `limit` clips of a split, drawn at random by the stream `name`."""
        return self._drawn(self.task.rows.query("split == @split"), limit, name)

    def of_client(self, client: str, limit: int) -> Sequence[Example]:
        """Return at most `limit` training clips of a client, drawn at random."""
        return self._drawn(self.rows_of(client), limit, "clips", client)

    def rows_of(self, client: str) -> pd.DataFrame:
        """Return the training rows of a client."""
        return self.task.rows.query("split == 'train' and group == @client")

    def _drawn(self, rows: pd.DataFrame, limit: int, *name: str) -> Sequence[Example]:
        return self.clips(rows.iloc[numpy_stream(self.seed, *name).permutation(len(rows))[:limit]])


def cohort(
    speech: Speech, names: Sequence[str], depths: Sequence[int], clips: int, seed: int, each: int = 3
) -> Members:
    """Draw some clients of each depth; each trains on `clips` clips and holds back as many.

    Args:
        speech: the clips.
        names: names of the clients to draw from; those with too few clips are left out.
        depths: depths of the clients, which take turns.
        clips: clips that a client trains on.
        seed: draws clients and clips.
        each: clients per depth.
    """
    large = [name for name in names if len(speech.rows_of(name)) >= 2 * clips]
    chosen = [large[place] for place in numpy_stream(seed, "cohort").permutation(len(large))[: each * len(depths)]]
    found = []
    for place, name in enumerate(chosen):
        own = speech.rows_of(name)
        own = own.iloc[numpy_stream(seed, "halves", name).permutation(len(own))[: 2 * clips]]
        used, back = (speech.clips(half) for half in (own[::2], own[1::2]))
        found.append((Client(name, used, depths[place % len(depths)]), back))
    return found


def trained(
    model: MultiExitModel, old: Weights, members: Members, training: LocalTraining, seed: int
) -> dict[str, Update]:
    """Return the update of each client after a local round of `model` from the global weights `old`."""
    return {
        client.name: local_round(model.client_model(client.depth), old, client, training, (seed, client.name))[0]
        for client, _ in members
    }


def against_plain(old: Weights, updates: Mapping[str, Update], dropped: Collection[str] = ()) -> tuple[float, float]:
    """Return the largest difference of the secure mean from Eq. (1), and how much rounding allows.

    Args:
        old: the global weights.
        updates: updates by client.
        dropped: clients that drop out after the masks were agreed.
    """
    arrived = [update for name, update in updates.items() if name not in dropped]
    plain, found = aggregate(old, arrived), secure_mean(old, updates, dropped)
    largest = max(float((plain[name] - found[name]).abs().max()) for name in old)
    single = 2.0**-21 * max(float(weight.abs().max()) for weight in plain.values())  # float32, in both means
    return largest, single + max(tolerance([update]) for update in arrived)


def attacked(
    model: MultiExitModel, old: Weights, members: Members, updates: Mapping[str, Update],
    privacies: Mapping[str, Privacy], seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Attack one client of each depth by what different servers see.

    `membership` separates clips that the client trained on from those that it held back, `client` separates the latter
    from clips of other clients. The changes are `update`, the `sum`, and private sums by their names.

    Args:
        model: the global model.
        old: its weights before the round.
        members: the clients of the round (`cohort`).
        updates: updates by client (`trained`).
        privacies: the numbers of private training by name.
        seed: seed of the noise, and of the column `seed`.

    Returns:
        Columns `change, group, auc, attack, depth, seed`; a group is a layer, or `all`.
    """
    tiers, parts = len({client.depth for client, _ in members}), []
    sums = {"sum": change_of(old, aggregate(old, updates.values()))}
    for name, privacy in privacies.items():
        groups = Groups(model, [update.depth for update in updates.values()], privacy)
        mean = ClippedSum(privacy, groups)(old, list(updates.values()))
        sums[name] = change_of(old, Noise(groups, seed).step(old, mean, {}))
    for client, back in members[:tiers]:
        others = [clip for _, own in members[tiers:] for clip in list(own)[:2]][: len(back)]
        clips = [*client.data, *back, *others]
        seen = {"update": change_of(old, updates[client.name].weights), **sums}
        found = scores(model, client.depth, seen, clips)
        ends = len(client.data), len(client.data) + len(back)
        member = auc_by_group(found[found["clip"] < ends[1]], (np.arange(len(clips)) < ends[0]).tolist())
        same = auc_by_group(found[found["clip"] >= ends[0]], (np.arange(len(clips)) < ends[1]).tolist())
        parts += [table.assign(attack=attack, depth=client.depth)
                  for attack, table in (("membership", member), ("client", same))]  # fmt: skip
    return pd.concat(parts).assign(seed=seed)


def protection_sentences(secure: pd.DataFrame, accountants: pd.DataFrame, noise: pd.DataFrame) -> list[str]:
    """Return sentences on secure sums, accountants and noise.

    Args:
        secure: `difference` of the secure mean from Eq. (1).
        accountants: the epsilons `pld, contour, rdp`.
        noise: `layer, sigma`, shallow first.
    """
    apart = (accountants["contour"] / accountants["pld"] - 1).abs().max()
    above = (accountants["rdp"] / accountants["pld"] - 1).max()
    ratio = noise["sigma"].iloc[-1] / noise["sigma"].iloc[0]
    return [
        f"Secure aggregation gives Eq. (1) within {secure['difference'].max():.1e}, also when a client drops out.",
        f"The two exact accountants differ by {apart:.1e} at most; the bound by Renyi orders is {above:.0%} above "
        "them.",
        f"Layer {noise['layer'].iloc[-1]} gets {ratio:.1f} times the noise of layer {noise['layer'].iloc[0]}.",
    ]


def leakage_sentences(overall: pd.DataFrame) -> list[str]:
    """Return one sentence per attack: its AUC by `change`, from `attack, change, mean, half_interval, seeds`."""
    lines = []
    for attack, own in overall.groupby("attack", sort=False):
        texts = [f"{row.change} {_with_interval(row.mean, row.half_interval, row.seeds)}" for row in own.itertuples()]
        lines.append(f"AUC of *{attack}* from all weights, 95 % intervals over seeds: {', '.join(texts)}.")
    return lines


def _with_interval(mean: float, half: float, seeds: int) -> str:
    return f"{mean:.0f} %" + (f" ± {half:.0f}" if seeds > 1 else " (one seed)")


def error_sentences(errors: pd.DataFrame) -> list[str]:
    """Return sentences on the first and the last exit: the error of each `case`, from `case, exit, error, guess`."""
    lines = []
    for exit in (errors["exit"].min(), errors["exit"].max()):
        own = errors[errors["exit"] == exit]
        texts = [f"{row.case} {row.error:.0f} %" for row in own.itertuples()]
        guess = f"one seed; the most frequent word: {own['guess'].iloc[0]:.0f} %"
        lines.append(f"Error at exit {exit} ({guess}): {'; '.join(texts)}.")
    return lines


def timing_sentence(timing: pd.DataFrame) -> str:
    """Return a sentence on what answer times reveal, from `case, bits, p, layers` of `exit time` and `padded`."""
    rows = timing.set_index("case")
    plain, padded = rows.loc["exit time"], rows.loc["padded"]
    return (
        f"Exit times tell {plain['bits']:.2f} bits about the word (p = {plain['p']:.2f}); padded times tell "
        f"{padded['bits']:.2f}, and cost {padded['layers']:.0f} layers of time in place of {plain['layers']:.1f}."
    )
