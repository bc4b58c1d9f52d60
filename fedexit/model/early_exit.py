"""Exits taken at run time: a clip leaves at the first exit that is sure enough, and the layers above are not run.

Three ways to be sure: little entropy (BranchyNet, Teerapittayanon et al. 2016; HuBERT-EE, Yoon et al. 2022), a high
probability, and successive exits that agree (Zhou et al. 2020, "BERT loses patience"). In CTC most frames are blank,
and of the blank a head is nearly always sure; so a text is judged by its other frames alone (ours).
"""

import math
from collections.abc import Callable, Sequence

import jiwer
import numpy as np
import torch
from torch import Tensor

from fedexit.data.batches import collate
from fedexit.data.text import BLANK
from fedexit.model.ctc import greedy
from fedexit.model.exits import MultiExitModel


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


def stops(sure: np.ndarray, threshold: float) -> np.ndarray:
    """Position (N,) of the first exit that is at least `threshold` sure (N, exits), or else of the last."""
    enough = sure >= threshold
    enough[:, -1] = True
    return enough.argmax(1)
