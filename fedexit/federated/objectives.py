"""Define the loss that a client minimises: the task's loss at its exits, and the distillation between exits.

In the paper it is the task's loss at the client's last exit alone. Losses here are means over exits where Fed-EE and
DepthFL take sums, so that a learning rate means the same for any number of exits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedexit.model.ctc import within
from fedexit.model.heads import task_loss, two_classes
from fedexit.support.errors import FedexitError
from fedexit.support.settings import NotNegative, Positive, check_fields

LOSSES = ("last", "all", "depth-weighted")
TEACHERS = ("", "mutual", "deepest")


@dataclass(frozen=True)
class Objective:
    """The loss of a client; the defaults are the paper's. Raises FedexitError for values out of range.

    Sources: ScaleFL, Ilhan et al. 2023; DepthFL, Kim et al. 2023; FedProx, Li et al. 2020.
    """

    losses: str = "last"  # exit L_i alone; `all` exits up to it; these, the j-th with weight j (ScaleFL)
    distillation: str = ""  # teachers of an exit: none; `mutual`, all others (DepthFL); `deepest`, the last (ScaleFL)
    strength: NotNegative = 1.0  # weight of the distillation, >= 0
    temperature: Positive = 1.0  # temperature T of the distillation, > 0
    proximal: NotNegative = 0.0  # FedProx's mu, >= 0: mu/2 |w - w(t)|^2 is added, with global weights w(t)

    def __post_init__(self) -> None:
        check_fields(self)
        for what, known in {"losses": LOSSES, "distillation": TEACHERS}.items():
            if (chosen := getattr(self, what)) not in known:
                raise FedexitError(f"unknown {what} {chosen!r}; known: {', '.join(filter(None, known))}")
        if self.distillation and self.losses == "last":
            raise FedexitError(f"distillation {self.distillation!r} needs several exits; take losses='all'")

    def exits(self, depth: int, known: Sequence[int]) -> list[int]:
        """Return the exits, among the `known` ones, whose heads a client of `depth` holds, trains and sends."""
        return [depth] if self.losses == "last" else [exit for exit in sorted(known) if exit <= depth]


def objective_loss(logits: Mapping[int, Tensor], targets: Tensor, objective: Objective, kind: str = "label") -> Tensor:
    """Return sum_j v_j (loss_j + strength * T^2 * mean_k KL(z_k || z_j)) / sum_j v_j over the exits j of `logits`.

    logits: by exit, the logits z_j of `MultiExitModel`; targets and their `kind`: as for `task_loss`. No gradient flows
    to a teacher k. For numbers the squared difference to the teacher's replaces T^2 KL; several labels are as many
    two-way choices. DepthFL and ScaleFL also ramp the strength up; this function does not. `local_round` adds the
    proximal term.
    """
    exits = sorted(logits)
    shares = range(1, len(exits) + 1) if objective.losses == "depth-weighted" else [1] * len(exits)
    losses = []
    for exit in exits:
        loss = task_loss(logits[exit], targets, kind=kind)
        if teachers := _teachers(exits, exit, objective.distillation):
            taught = [divergence(logits[other], logits[exit], objective.temperature, kind) for other in teachers]
            loss = loss + objective.strength * torch.stack(taught).mean()
        losses.append(loss)
    return sum(share * loss for share, loss in zip(shares, losses, strict=True)) / sum(shares)  # type: ignore[return-value]  # not empty


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0, kind: str = "label") -> Tensor:
    """Return T^2 KL(teacher || student) of logits over T, averaged over clips (B, C) or frames in clips (B, F, C)."""
    if kind == "number":
        return torch.nn.functional.mse_loss(student, teacher.detach())
    if kind == "multi-label":
        teacher, student = two_classes(teacher), two_classes(student)
    fixed = (teacher.detach() / temperature).log_softmax(-1)
    each = torch.nn.functional.kl_div((student / temperature).log_softmax(-1), fixed, reduction="none", log_target=True)
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
