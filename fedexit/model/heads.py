"""Define the exit heads for labels, and the loss of a task."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fedexit.model.ctc import CTCHead, ctc_loss
from fedexit.support.errors import FedexitError


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
# Makers of a task's head, from the backbone's width and the number of labels.
HEADS: dict[str, Callable[[int, int], AnyHead]] = {
    "pooled": Head,
    "ctc": CTCHead,
    "ctc-bilstm": partial(CTCHead, recurrent=True),
}


def task_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean loss of a batch: cross-entropy of labels, CTC of texts (which ignores `label_smoothing`).

    Logits are (B, labels) with targets (B,), or (B, F, 1 + characters) with targets (B, L) from 1, zero-padded.
    Raises FedexitError for a label that does not exist and for a clip that is too short for its text.
    """
    if logits.dim() == 3:
        return ctc_loss(logits, targets)
    if targets.device.type == "cpu" and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise FedexitError(
            f"labels are {targets.tolist()}; a head of {logits.shape[1]} labels takes 0 to {logits.shape[1] - 1}"
        )
    return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
