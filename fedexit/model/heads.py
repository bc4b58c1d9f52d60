"""Define the exit heads, the contract of a head of your own, and the loss of each kind of target.

A head of your own is a function or class of (width D, number of labels) that returns a `torch.nn.Module` with weights:

* `forward(states (B, F, D), frames (B,))` returns logits (B, labels). Frames from `frames` on are padding.
* `targets` (optional) is the kind of its targets (`fedexit.data.inspection.KINDS`), by default "label". With "text" it
  returns `ctc.ended(logits, frames)` of logits (B, F, 1 + labels), whose first output is the blank.
* `macs(frames)` (optional) returns the multiply-accumulates of a clip; otherwise torch counts those of `forward`.
* It keeps no running statistics (such as batch norm), because clients send weights only.
* `norm` (needed for stable-layer-norm backbones) is applied to the states first. Set it to `nn.Identity()`; the model
  puts a copy of the backbone's final norm there.
* `reads`, `centre` and `scale` (optional) are those of `Head`, for `MultiExitModel.standardise` and `embeddings`.

Example:
    >>> class Last(nn.Module):
    ...     def __init__(self, width, labels):
    ...         super().__init__()
    ...         self.linear = nn.Linear(width, labels)
    ...     def forward(self, states, frames):
    ...         return self.linear(states[torch.arange(len(states)), frames - 1])
    >>> model = MultiExitModel(load_backbone("nano"), ["yes", "no"], head=Last)
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedexit.data.inspection import KINDS
from fedexit.model.ctc import CTCHead, ctc_loss, within
from fedexit.support.checks import whole_number
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.streams import seeded

_CONTRACT = "see the contract of a head in fedexit.model.heads"


def statistics_pooling(states: Tensor, frames: Tensor) -> Tensor:
    """Return mean and standard deviation over a clip's own frames: (B, F, D), (B,) -> (B, 2D)."""
    inside = (torch.arange(states.shape[1], device=states.device) < frames[:, None])[..., None]  # (B, F, 1)
    count = frames[:, None].to(states.dtype)
    mean = (states * inside).sum(1) / count  # (B, D)
    variance = ((states - mean[:, None]).square() * inside).sum(1) / count
    return torch.cat([mean, (variance + 1e-5).sqrt()], dim=1)  # 1e-5: a one-frame clip has no finite gradient at 0


class Head(nn.Module):
    """Statistics pooling, then one linear layer: the paper's utterance-level head.

    Between the two, `centre` and `scale` (2D,) standardise the pooled statistics (`MultiExitModel.standardise`). `norm`
    comes first: the final norm of a stable-layer-norm backbone (`Backbone.final_norm`), which `MultiExitModel` copies.
    """

    def __init__(self, width: int, labels: int):
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        self.linear = nn.Linear(2 * width, labels)
        self.centre, self.scale = nn.Buffer(torch.zeros(2 * width)), nn.Buffer(torch.ones(2 * width))

    def reads(self, states: Tensor, frames: Tensor) -> Tensor:
        """Return the pooled statistics to standardise, (B, 2D)."""
        return statistics_pooling(self.norm(states), frames)

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """Return logits (B, labels) for states (B, F, D) and frame lengths (B,)."""
        return self.linear((self.reads(states, frames) - self.centre) / self.scale)

    def macs(self, frames: int) -> int:
        """Return the multiply-accumulates of a clip, whatever its number of `frames`."""
        return self.linear.weight.numel()


AnyHead = Head | CTCHead
HeadMaker = Callable[[int, int], nn.Module]  # from the backbone's width and the number of labels
HEADS: dict[str, HeadMaker] = {
    "pooled": Head,
    "ctc": CTCHead,
    "ctc-bilstm": partial(CTCHead, recurrent=True),
}


def head_name(head: str | Callable) -> str:
    """Return the name of a head in `HEADS`, or of the function or class that makes it; and so for rules."""
    return head if isinstance(head, str) else getattr(head, "__qualname__", type(head).__qualname__)


def make_head(head: str | HeadMaker, width: int, labels: int) -> nn.Module:
    """Return a new head by its name in `HEADS` or its maker. Raises FedexitError when it cannot be made."""
    if isinstance(head, nn.Module):
        kind = type(head).__name__
        raise FedexitError(f"the head is one {kind}, and each exit needs its own; give its class or a function")
    if head not in list(HEADS) and (isinstance(head, str) or not callable(head)):
        raise FedexitError(f"unknown head {head!r}; known: {', '.join(HEADS)}; or give your own: head=MyHead")
    try:
        made = (HEADS[head] if isinstance(head, str) else head)(width, labels)
    except Exception as error:  # of any code
        raise FedexitError(f"head {head_name(head)} cannot be made ({first_line(error)}); {_CONTRACT}") from error
    if not isinstance(made, nn.Module):
        raise FedexitError(f"head {head_name(head)} is a {type(made).__name__}, not a module; {_CONTRACT}")
    return made


def kind_of(heads: Sequence[nn.Module], name: str, width: int, labels: int, asked: str | None) -> str:
    """Return the kind of the targets of these `heads`: the one `asked` for, or their own.

    Raises FedexitError for an unknown kind, heads that share weights, and heads that do not keep the contract.
    """
    kind = asked or getattr(heads[0], "targets", "label")
    if kind not in list(KINDS):
        raise FedexitError(f"unknown targets {kind!r} of head {name}; known: {', '.join(KINDS)}")
    if kind == "number" and labels != 1:
        raise FedexitError(f"a model of numbers has one label, the name of the number, not {labels}; give one")
    weights = [parameter for head in heads for parameter in head.parameters()]
    if not weights or len(set(map(id, weights))) < len(weights):
        problem = "share weights between exits" if weights else "have no weights to train"
        raise FedexitError(f"heads {name} {problem}; {_CONTRACT}")
    if type(heads[0]) not in (Head, CTCHead) or (kind == "text") != isinstance(heads[0], CTCHead):
        _try_head(heads[0], name, width, labels, kind)
    return kind


def copy_norm(norm: nn.Module, heads: Sequence[nn.Module], name: str) -> None:
    """Give each of `heads` a copy of the backbone's final `norm` to train, as its attribute `norm`.

    A backbone without one has an identity there, and changes no head. Raises FedexitError for a head without a place
    for the norm.
    """
    for head in [] if isinstance(norm, nn.Identity) else heads:
        if not isinstance(getattr(head, "norm", None), nn.Identity):
            raise FedexitError(f"head {name} has no nn.Identity() `norm`, which this backbone needs; {_CONTRACT}")
        head.norm = copy.deepcopy(norm).requires_grad_(True)


@torch.no_grad()
def _try_head(head: nn.Module, name: str, width: int, labels: int, kind: str) -> None:
    """Raise FedexitError unless a copy of `head` keeps the contract on two random clips of 50 and 30 frames."""
    tried, like = copy.deepcopy(head).train(), next(head.parameters())
    before, frames = [one.clone() for one in tried.buffers()], torch.tensor([50, 30], device=like.device)
    try:
        with seeded(0, "head on trial"):
            logits = tried(torch.randn(2, 50, width).to(like), frames)
    except Exception as error:  # of any code
        raise FedexitError(f"head {name} fails on a batch of states ({first_line(error)}); {_CONTRACT}") from error
    shape = (2, 50, 1 + labels) if kind == "text" else (2, labels)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != shape or not logits.is_floating_point() or not torch.isfinite(logits).all():
        raise FedexitError(f"head {name} gives {found}, not finite logits {shape}, to targets {kind!r}; {_CONTRACT}")
    if any(not torch.equal(one, old) for one, old in zip(tried.buffers(), before, strict=True)):
        raise FedexitError(f"head {name} changes its buffers in training, and clients send weights only; {_CONTRACT}")
    if kind == "text" and within(logits).sum(1).tolist() != [50, 30]:
        raise FedexitError(f"head {name} has no certain blank beyond the end of a clip: apply ctc.ended; {_CONTRACT}")
    if callable(own := getattr(head, "macs", None)):
        whole_number(own(50), f"macs(50) of head {name}", 0)


def macs_of(head: nn.Module, width: int, frames: int) -> int:
    """Return the multiply-accumulates of `head` for a clip of `frames` frames: its own `macs`, or torch's count."""
    if callable(own := getattr(head, "macs", None)):
        return own(frames)
    like = next(head.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad(), seeded(0, "macs"):
        copy.deepcopy(head).eval()(torch.zeros(1, frames, width).to(like), torch.tensor([frames], device=like.device))
    return counter.get_total_flops() // 2


def task_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, kind: str = "label") -> Tensor:
    """Return the mean loss of a batch, for targets of `kind`. Only that of labels has `label_smoothing`.

    * label: cross-entropy of logits (B, labels) with indices (B,);
    * text: CTC of logits (B, F, 1 + characters) with ids (B, L) from 1, zero-padded; such logits are always of a text;
    * number: squared error of (B, 1) with numbers (B,);
    * multi-label: mean binary cross-entropy of (B, labels) with 0 and 1 (B, labels).

    Raises FedexitError for targets of another shape, a label that does not exist and a clip too short for its text.
    """
    if logits.dim() == 3:
        return ctc_loss(logits, targets)
    if targets.shape != (logits.shape if kind == "multi-label" else logits.shape[:1]):
        raise FedexitError(f"targets {kind!r} have shape {tuple(targets.shape)}, logits {tuple(logits.shape)}")
    if kind == "number":
        return nn.functional.mse_loss(logits[:, 0], targets.to(logits.dtype))
    if kind == "multi-label":
        return nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
    if targets.is_floating_point() or (
        targets.device.type == "cpu" and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]
    ):
        raise FedexitError(
            f"labels are {targets.tolist()}; a head of {logits.shape[1]} labels takes 0 to {logits.shape[1] - 1}"
        )
    return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def two_classes(logits: Tensor) -> Tensor:
    """Return (B * labels, 2) logits of absence and presence, for (B, labels) logits of several labels."""
    return torch.stack([torch.zeros_like(logits), logits], -1).flatten(0, -2)
