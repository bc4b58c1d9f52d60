"""Exit heads and the loss of a task."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fedexit.model.ctc import CTCHead, ctc_loss


def statistics_pooling(states: Tensor, frames: Tensor) -> Tensor:
    """Mean and standard deviation over a clip's own frames: (B, F, D), (B,) -> (B, 2D)."""
    inside = (torch.arange(states.shape[1], device=states.device) < frames[:, None])[..., None]  # (B, F, 1)
    count = frames[:, None].to(states.dtype)
    mean = (states * inside).sum(1) / count  # (B, D)
    variance = ((states - mean[:, None]).square() * inside).sum(1) / count
    return torch.cat([mean, (variance + 1e-5).sqrt()], dim=1)  # 1e-5: a one-frame clip has no finite gradient at 0


class Head(nn.Module):
    """Statistics pooling, then one linear layer: the paper's utterance-level head.

    Between the two, `centre` and `scale` (2D,) can standardise the pooled statistics (`MultiExitModel.standardise`).
    """

    def __init__(self, width: int, labels: int):
        super().__init__()
        self.linear = nn.Linear(2 * width, labels)
        self.register_buffer("centre", torch.zeros(2 * width))
        self.register_buffer("scale", torch.ones(2 * width))

    def reads(self, states: Tensor, frames: Tensor) -> Tensor:
        """What is standardised: the pooled statistics (B, 2D)."""
        return statistics_pooling(states, frames)

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """(B, F, D), (B,) -> logits (B, labels)."""
        return self.linear((self.reads(states, frames) - self.centre) / self.scale)

    def macs(self, frames: int) -> int:
        """Multiply-accumulates of a clip of any number of `frames`."""
        return self.linear.weight.numel()


# what a task's head is made by, from the backbone's width and the number of labels
HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "pooled": Head,
    "ctc": CTCHead,
    "ctc-bilstm": partial(CTCHead, recurrent=True),
}


def task_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, labels) and (B,) indices, or the CTC loss of (B, F, labels) and (B, L) characters."""
    if logits.dim() == 3:
        return ctc_loss(logits, targets)
    return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
