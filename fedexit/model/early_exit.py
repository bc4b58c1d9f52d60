"""Stop early at run time: a clip stops at the first exit that is confident enough, and the layers above are not run.

There are three confidence rules: low entropy (BranchyNet, Teerapittayanon et al. 2016; HuBERT-EE, Yoon et al. 2022),
high probability, and agreement of successive exits (Zhou et al. 2020, "BERT loses patience"). In CTC most frames are
blank, and a head is nearly always confident about the blank; so a text is judged by its other frames only (ours). A
clip with several labels is as sure as its least certain label.

A rule of your own is a function or callable object `rule(seen, labels)`. `seen` holds the logits (1, labels), or
(1, F, C) of texts, of the exits so far, and `labels` their names. It returns the confidence, a number or a tensor of
one element that is not NaN. The clip stops where this reaches the threshold: the one that you give, or the attribute
`threshold` of the rule. Before the first clip the rule (a copy, if it is an object) is tried on random logits.

Example:
    >>> def margin(seen, labels):
    ...     first, second = seen[-1].softmax(-1).flatten().topk(2).values
    ...     return first - second
    >>> model.predict("yes.wav", rule=margin, threshold=0.5)
"""

import math
import numbers
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedexit.data.batches import collate
from fedexit.data.text import BLANK, CHARACTERS
from fedexit.model.ctc import greedy
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import head_name, two_classes
from fedexit.support.checks import trial_copy
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.extras import extra
from fedexit.support.streams import seeded

_CONTRACT = "see the contract of a rule in fedexit.model.early_exit"


def entropy(seen: Sequence[Tensor], labels: Sequence[str] = CHARACTERS) -> Tensor:
    """Return the negative entropy of the last exit's answer, relative to the largest: -1 is a guess, 0 is certain."""
    log_probs = seen[-1].log_softmax(-1)
    return _where_it_speaks((log_probs.exp() * log_probs).sum(-1) / math.log(log_probs.shape[-1]), seen[-1])


def probability(seen: Sequence[Tensor], labels: Sequence[str] = CHARACTERS) -> Tensor:
    """Return the probability of the last exit's answer; for a text, the mean over the frames that are not blank."""
    return _where_it_speaks(seen[-1].softmax(-1).amax(-1), seen[-1])


def agreement(seen: Sequence[Tensor], labels: Sequence[str] = CHARACTERS) -> Tensor:
    """Return how well the last answer agrees with the earlier ones, per clip.

    For labels it is the number of exits in a row that repeat the answer; for texts, spelled by `labels`, minus the
    edits per character since the exit before. A first answer, a label that just changed and two empty texts give -inf.
    """
    if len(seen) < 2:
        return torch.full((len(seen[-1]),), -math.inf)
    if seen[-1].dim() == 3:
        before, last = (greedy(logits, labels) for logits in seen[-2:])
        return torch.tensor([-_edit_rate(*texts) for texts in zip(before, last, strict=True)])
    said = torch.stack([logits.argmax(-1) for logits in reversed(seen)])  # (exits so far, B), the last one first
    stayed = (said[1:] == said[:-1]).long().cumprod(0).sum(0).float()
    return torch.where(stayed > 0, stayed, -math.inf)


# Rules, from the logits of the exits so far and the names of the outputs; only `agreement` of texts reads the names.
Rule = Callable[[Sequence[Tensor], Sequence[str]], Tensor]
RULES: dict[str, Rule] = {
    "entropy": entropy,
    "probability": probability,
    "agreement": agreement,
}


_BUILT_IN = tuple(RULES.values())


def _where_it_speaks(values: Tensor, logits: Tensor) -> Tensor:
    """Return values (B,) of labels unchanged; for values (B, F) of texts, the mean over frames that are not blank.

    If all frames are blank it is -inf: the clip may be silent, but the head may also have learned nothing yet.
    """
    if values.dim() == 1:
        return values
    speaks = logits.argmax(-1) != BLANK
    mean = (values * speaks).sum(1) / speaks.sum(1)
    return torch.where(speaks.any(1), mean, -math.inf)


def _edit_rate(one: str, other: str) -> float:
    """Return the edits between two texts, as a share of the longer one's characters; inf if both are empty."""
    with extra("asr"):
        import jiwer
    longer, shorter = sorted([one, other], key=len, reverse=True)
    return jiwer.cer(longer, shorter) if longer else math.inf


@torch.no_grad()
def run(model: MultiExitModel, clip: Tensor, rule: str | Rule, threshold: float | None = None) -> tuple[int, Tensor]:
    """Run a clip (T,) layer by layer to the first exit where the confidence reaches `threshold`, else to the deepest.

    Return that exit and its logits, (1, labels) or (1, F, C). `rule` is a name in `RULES` or your own (see above);
    `threshold` has its unit. The model is put into evaluation mode. Raises FedexitError for an unknown rule, one that
    does not keep the contract, a threshold that is not a number, and a clip that a batch refuses.
    """
    return run_checked(model, clip, rule, check_rule(model, rule, threshold))


@torch.no_grad()
def run_checked(model: MultiExitModel, clip: Tensor, rule: str | Rule, threshold: float) -> tuple[int, Tensor]:
    """Return `run` of a rule and a threshold that are checked already."""
    model.eval()
    waveforms, lengths, _ = collate([(clip, 0)])
    states, frames = model.backbone.layer_by_layer(waveforms, lengths)
    seen = []
    for depth, state in enumerate(states):
        if depth in model.exits:
            seen.append(model.head_at(depth)(state, frames))
            if depth == model.exits[-1] or _confidence(rule, seen, model) >= threshold:
                break
    return depth, seen[-1]


def _confidence(rule: str | Rule, seen: Sequence[Tensor], model: MultiExitModel) -> float:
    """Return the confidence of a clip. Raise FedexitError unless a rule of the user's own gives one number."""
    function = RULES[rule] if isinstance(rule, str) else rule
    if function in _BUILT_IN:
        several = model.targets == "multi-label"
        return function([two_classes(one) for one in seen] if several else seen, model.labels).min().item()
    found = function(seen, model.labels)
    value = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
    if not isinstance(value, numbers.Real) or math.isnan(value):
        kind = tuple(found.shape) if isinstance(found, Tensor) and found.numel() != 1 else value
        raise FedexitError(f"rule {head_name(rule)} gives {kind!r} as confidence of a clip, not a number; {_CONTRACT}")
    return float(value)


def check_rule(model: MultiExitModel, rule: str | Rule, threshold: object) -> float:
    """Return the threshold: the given one, or the rule's own.

    Raise FedexitError for an unknown rule, one that does not keep its contract or does not fit the model, and a
    threshold that is not a number.
    """
    if rule not in list(RULES) and (isinstance(rule, str) or not callable(rule)):
        raise FedexitError(f"unknown rule {rule!r}; known: {', '.join(RULES)}; or give your own: rule=my_rule")
    function = RULES[rule] if isinstance(rule, str) else rule
    if function in _BUILT_IN and model.targets == "number":
        raise FedexitError(f"rule {rule!r} needs labels or texts, and the model predicts a number; {_CONTRACT}")
    threshold = getattr(rule, "threshold", None) if threshold is None else threshold
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or math.isnan(threshold):
        raise FedexitError(f"threshold must be a number, not {threshold!r}; give the confidence at which a clip stops")
    if function not in _BUILT_IN:
        shape = (1, 50, 1 + len(model.labels)) if model.targets == "text" else (1, len(model.labels))
        tried = trial_copy(function)
        try:
            with seeded(0, "rule on trial"):
                seen = [torch.randn(shape) for _ in model.exits]
                for number in range(1, len(seen)):
                    _confidence(tried, seen[:number], model)
        except FedexitError:
            raise
        except Exception as error:  # of any code
            raise FedexitError(f"rule {head_name(rule)} fails on logits ({first_line(error)}); {_CONTRACT}") from error
    return float(threshold)
