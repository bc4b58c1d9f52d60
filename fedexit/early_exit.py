"""Exits taken at run time: a clip leaves at the first exit that is sure enough, and the layers above are not run.

Three ways to be sure: little entropy (BranchyNet, Teerapittayanon et al. 2016; HuBERT-EE, Yoon et al. 2022), a high
probability, and successive exits that agree (Zhou et al. 2020, "BERT loses patience"). In CTC most frames are blank,
and of the blank a head is nearly always sure; so a text is judged by its other frames alone (ours).
"""

import math
from collections.abc import Callable, Sequence

import jiwer
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedexit.clients import Example, collate
from fedexit.costs import clip_macs
from fedexit.ctc import BLANK, greedy
from fedexit.exits import MultiExitModel
from fedexit.metrics import answers, forward, item_errors

# ---- how sure an exit is: from the logits of all exits so far, (B, labels) or (B, F, C) each, to (B,), high is sure --


def entropy(seen: Sequence[Tensor]) -> Tensor:
    """Minus the entropy of the last exit's answer, as a share of the largest there is: -1 is guessing, 0 is sure."""
    log_probs = seen[-1].log_softmax(-1)
    return _where_it_speaks((log_probs.exp() * log_probs).sum(-1) / math.log(log_probs.shape[-1]), seen[-1])


def probability(seen: Sequence[Tensor]) -> Tensor:
    """Probability of the last exit's answer; of a text, the mean over the frames that say something."""
    return _where_it_speaks(seen[-1].softmax(-1).amax(-1), seen[-1])


def agreement(seen: Sequence[Tensor]) -> Tensor:
    """Labels: how often in a row the answer has stayed the same. Texts: minus the edits per character since last time.

    A first answer agrees with nothing, and two empty texts say nothing: -inf, as for labels that just changed.
    """
    if len(seen) < 2:
        return torch.full((len(seen[-1]),), -math.inf)
    if seen[-1].dim() == 3:
        return torch.tensor([-_edit_rate(*texts) for texts in zip(*map(greedy, seen[-2:]), strict=True)])
    said = torch.stack([logits.argmax(-1) for logits in reversed(seen)])  # (exits so far, B), the last one first
    stayed = (said[1:] == said[:-1]).long().cumprod(0).sum(0).float()
    return torch.where(stayed > 0, stayed, -math.inf)


RULES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "entropy": entropy,
    "probability": probability,
    "agreement": agreement,
}
FIXED = "fixed"  # not a rule of run time: all clips stop at one exit


def _where_it_speaks(values: Tensor, logits: Tensor) -> Tensor:
    """Of labels the values (B,); of frames (B, F) the mean over those that are not blank, -inf if all are.

    So an exit that hears nothing is never sure: it may be silence, and it may be a head that has learned nothing yet.
    """
    if values.dim() == 1:
        return values
    speaks = logits.argmax(-1) != BLANK
    mean = (values * speaks).sum(1) / speaks.sum(1)
    return torch.where(speaks.any(1), mean, -math.inf)


def _edit_rate(one: str, other: str) -> float:
    """Edits from one text to the other, as a share of the longer one's characters; inf if both are empty."""
    longer, shorter = sorted([one, other], key=len, reverse=True)
    return jiwer.cer(longer, shorter) if longer else math.inf


# ---- at run time -------------------------------------------------------------------------------------------------


@torch.no_grad()
def run(model: MultiExitModel, clip: Tensor, rule: str, threshold: float) -> tuple[int, Tensor]:
    """Run one clip (T,), layer by layer, up to the first exit at which `rule` is at least `threshold`, or the deepest.

    Returns that exit and its logits, (1, labels) or (1, F, C). The model must be in evaluation mode.
    """
    waveforms, lengths, _ = collate([(clip, 0)])
    states, frames = model.backbone.layer_by_layer(waveforms, lengths)
    seen = []
    for depth, state in enumerate(states):
        if depth in model.exits:
            seen.append(model.head_at(depth)(state, frames))
            if depth == model.exits[-1] or RULES[rule](seen).item() >= threshold:
                break
    return depth, seen[-1]


# ---- offline: the same choices, from what every exit says of every clip --------------------------------------------


def scored(model: MultiExitModel, data: Sequence[Example], samples: Sequence[int]) -> pd.DataFrame:
    """What every exit says of every clip, and what it costs: a row per clip and exit, sorted.

    `item, exit`; `errors` of `n` labels or characters (`metric`); how sure it is by each of `RULES`; and
    multiply-accumulates: `convolutions`; `macs_alone`, all there is if that exit alone is asked; `macs_early`, with the
    heads before it too.
    samples: of each clip, at 16 kHz.
    """
    said, sure = [], []
    for group, outputs, targets in forward(model, data):
        seen = []
        for depth, logits in outputs.items():
            seen.append(logits)
            pairs = answers(logits, targets)
            said += [(item, depth, *pair) for item, pair in zip(group, pairs, strict=True)]
            rules = {name: rule(seen).tolist() for name, rule in RULES.items()}
            sure.append(pd.DataFrame({"item": group, "exit": depth, **rules}))
    errors = item_errors(pd.DataFrame(said, columns=["item", "exit", "predicted", "label"])).query("metric != 'WER'")
    where = ["item", "exit"]
    return errors.merge(pd.concat(sure), on=where).merge(_work(model, samples), on=where).sort_values(where)


def _work(model: MultiExitModel, samples: Sequence[int]) -> pd.DataFrame:
    rows = []
    for item, length in enumerate(samples):
        heads = 0
        for depth in model.exits:
            bare = clip_macs(model.backbone, length, depth)
            asked = clip_macs(model.backbone, length, depth, model.head_at(depth)).trained
            heads += asked - bare.trained
            rows.append((item, depth, bare.frozen, bare.frozen + asked, bare.frozen + bare.trained + heads))
    return pd.DataFrame(rows, columns=["item", "exit", "convolutions", "macs_alone", "macs_early"])


def stops(sure: np.ndarray, threshold: float) -> np.ndarray:
    """Position (N,) of the first exit that is at least `threshold` sure (N, exits), or else of the last."""
    enough = sure >= threshold
    enough[:, -1] = True
    return enough.argmax(1)


def threshold_for(dev: pd.DataFrame, rule: str, points: float) -> float:
    """The threshold for `rule` that makes at most `points` (of 100) more errors on `dev` than the deepest exit does.

    From the strictest, which saves least, to laxer ones; the first that costs more ends the search. The laxest that
    happens to look good on dev would flatter itself (fixed-sequence testing: Angelopoulos et al. 2021, "Learn then
    test"). inf: no exit but the deepest will do. dev: of `scored`.
    """
    sure, errors = _by_exit(dev, rule), _by_exit(dev, "errors")
    allowed = errors[:, -1].sum() + points / 100 * _by_exit(dev, "n")[:, 0].sum()
    early, clips, found = sure[:, :-1], np.arange(len(errors)), math.inf
    for threshold in np.unique(early[np.isfinite(early)])[::-1]:
        if errors[clips, stops(sure, threshold)].sum() > allowed:
            break
        found = float(threshold)
    return found


def fixed_exit_for(dev: pd.DataFrame, points: float) -> int:
    """The shallowest exit that makes at most `points` (of 100) more errors on `dev` than the deepest."""
    sums = dev.groupby("exit")[["errors", "n"]].sum()
    return int(sums.index[sums["errors"] <= sums["errors"].iloc[-1] + points / 100 * sums["n"]][0])


def taken(table: pd.DataFrame, rule: str, threshold: float) -> pd.DataFrame:
    """The row of `scored` at which each clip stops.

    Also `macs`, its own work, and of always going on `deepest_errors` and `deepest_macs`.
    """
    return _taken(table, stops(_by_exit(table, rule), threshold), "macs_alone" if rule == FIXED else "macs_early")


def oracle(table: pd.DataFrame) -> pd.DataFrame:
    """As `taken`, by one who knows the errors: a clip stops at the shallowest of its best exits and asks it alone."""
    return _taken(table, _by_exit(table, "errors").argmin(1), "macs_alone")


def _taken(table: pd.DataFrame, stop: np.ndarray, work: str) -> pd.DataFrame:
    clips, exits = np.arange(len(stop)), table["exit"].nunique()
    deepest = table.iloc[clips * exits + exits - 1]
    return table.iloc[clips * exits + stop].assign(
        macs=lambda rows: rows[work],
        deepest_errors=deepest["errors"].to_numpy(),
        deepest_macs=deepest["macs_alone"].to_numpy(),
    )


def _by_exit(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column of `scored` as (clips, exits). Under the rule `fixed` an exit is as sure as it is deep."""
    return table["exit" if column == FIXED else column].to_numpy().reshape(-1, table["exit"].nunique())
