"""What a client minimises: the task's loss at its exits, and what they teach one another. In the paper, the last alone.

Losses are means over exits where Fed-EE and DepthFL take sums: a learning rate means the same for any number of them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedexit.model.ctc import within
from fedexit.model.heads import task_loss

OBJECTIVES = ("last", "all", "depth-weighted")  # exit L_i; all exits up to it; these, the j-th of them with weight j
TEACHERS = ("", "mutual", "deepest")  # of an exit: none, each other exit, the client's last one


def objective_loss(
    logits: Mapping[int, Tensor],
    targets: Tensor,
    objective: str = "last",
    distillation: str = "",
    strength: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """sum_j v_j (loss_j + strength * T^2 * mean_k KL(z_k || z_j)) / sum_j v_j over the exits j of `logits`.

    logits: by exit, those of `MultiExitModel`; targets: see `task_loss`. v_j = 1, or j by `depth-weighted` (ScaleFL,
    Ilhan et al. 2023, which ramps the strength up); the teachers k are the other exits by `mutual` (DepthFL, Kim et al.
    2023, also with a ramp), the last one by `deepest` (ScaleFL), and none by default. A teacher learns nothing.
    """
    exits = sorted(logits)
    shares = range(1, len(exits) + 1) if objective == "depth-weighted" else [1] * len(exits)
    losses = []
    for exit in exits:
        loss = task_loss(logits[exit], targets)
        if teachers := _teachers(exits, exit, distillation):
            taught = [divergence(logits[teacher], logits[exit], temperature) for teacher in teachers]
            loss = loss + strength * torch.stack(taught).mean()
        losses.append(loss)
    return sum(share * loss for share, loss in zip(shares, losses, strict=True)) / sum(shares)


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of logits over T, its mean over clips (B, C) or the frames within clips (B, F, C)."""
    told = (teacher.detach() / temperature).log_softmax(-1)
    each = torch.nn.functional.kl_div((student / temperature).log_softmax(-1), told, reduction="none", log_target=True)
    each = temperature**2 * each.sum(-1)
    if each.dim() == 1:
        return each.mean()
    inside = within(teacher)
    return (each * inside).sum() / inside.sum()


def _teachers(exits: Sequence[int], exit: int, distillation: str) -> list[int]:
    others = [other for other in exits if other != exit]
    if distillation == "deepest":
        return [other for other in others if other == exits[-1]]
    return others if distillation == "mutual" else []
