"""Recognise characters by CTC (Graves et al. 2006): head, loss and decoder. This is the paper's ASR head (sec. 3).

Frames beyond a clip's end get the blank with certainty: they change neither loss nor decoding, so only the head needs
to know where a clip in a padded batch ends.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fedexit.data.text import BLANK, CHARACTERS, frames_needed, spell
from fedexit.support.errors import FedexitError
from fedexit.support.placement import lacks_bfloat16

_SURE = 1e4  # logit of the blank beyond a clip's end


class CTCHead(nn.Module):
    """A linear layer on every frame; if `recurrent`, a bidirectional LSTM of the same width comes before it.

    `norm` comes first, as in `fedexit.model.heads.Head`, then `centre` and `scale` (D,) standardise the frames
    (`MultiExitModel.standardise`).
    """

    targets = "text"

    def __init__(self, width: int, labels: int, recurrent: bool = False):
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        self.recurrent = nn.LSTM(width, width // 2, bidirectional=True, batch_first=True) if recurrent else None
        self.linear = nn.Linear(width, labels + 1)
        self.centre, self.scale = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))

    def reads(self, states: Tensor, frames: Tensor) -> Tensor:
        """Return the frames to standardise: all frames of all clips, (sum of F_i, D)."""
        return torch.cat([state[:length] for state, length in zip(self.norm(states), frames.tolist(), strict=True)])

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """Return logits (B, F, 1 + characters) for states (B, F, D) and frame lengths (B,)."""
        hidden = (self.norm(states) - self.centre) / self.scale
        if self.recurrent is not None:
            packed = nn.utils.rnn.pack_padded_sequence(hidden, frames.cpu(), batch_first=True, enforce_sorted=False)
            half = torch.is_autocast_enabled("cpu") and not lacks_bfloat16()  # else single precision, like `hidden`
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                output = self.recurrent(packed)[0]
            hidden = nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=states.shape[1])[0]
        return ended(self.linear(hidden), frames)

    def macs(self, frames: int) -> int:
        """Return the multiply-accumulates of a clip of `frames` frames."""
        width = self.linear.in_features
        per_frame = width * self.linear.out_features
        if self.recurrent is not None:  # four gates read the input and the state, in two directions
            per_frame += 2 * 4 * (width // 2) * (width + width // 2)
        return frames * per_frame


def ended(logits: Tensor, frames: Tensor) -> Tensor:
    """Return logits (B, F, C) with a certain blank in the frames beyond each clip's `frames` (B,)."""
    outside = torch.arange(logits.shape[1], device=logits.device) >= frames.to(logits.device)[:, None]
    blank = (torch.arange(logits.shape[2], device=logits.device) == BLANK).to(logits) * _SURE
    return torch.where(outside[..., None], blank, logits)


def within(logits: Tensor) -> Tensor:
    """Return which frames (B, F) of a head's logits (B, F, C) lie within their clip."""
    return ~(logits[..., BLANK] >= _SURE / 2)  # bfloat16 rounds it; NaN is within


def too_long(frames: Iterable[int], texts: Iterable[Sequence[int]]) -> list[int]:
    """Return the positions of the `texts` (characters from 1) that CTC cannot spell in the given `frames` (B,).

    `Backbone.frame_lengths` gives the frames of a clip.
    """
    pairs = zip(frames, texts, strict=True)
    return [position for position, (held, text) in enumerate(pairs) if frames_needed(text) > held]


def ctc_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over clips of -log p(text) per character, for logits of a `CTCHead` and targets (B, L).

    Raises FedexitError for a text with more characters than its clip can spell, naming its position in the batch.
    """
    if logits.device.type not in ("cpu", "cuda"):  # torch has no CTC there
        logits, targets = logits.cpu(), targets.cpu()
    lengths = (targets > 0).sum(1)
    if logits.device.type == "cpu":  # a GPU would wait; `MultiExitModel.check_clips` has checked before training
        _check_spelling(logits, targets, lengths)
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    frames = torch.full((len(logits),), logits.shape[1])
    return nn.functional.ctc_loss(log_probs, targets, frames, lengths, BLANK)


def _check_spelling(logits: Tensor, targets: Tensor, lengths: Tensor) -> None:
    texts = [text[:length] for text, length in zip(targets.tolist(), lengths.tolist(), strict=True)]
    own = within(logits).sum(1).tolist()
    for position in too_long(own, texts):
        raise FedexitError(
            f"clip {position} of the batch (from 0) has {own[position]} frames, too few to spell its "
            f"{len(texts[position])} characters; give longer clips or drop it"
        )


def greedy(logits: Tensor, labels: Sequence[str] = CHARACTERS) -> list[str]:
    """Return the texts for logits (B, F, C): the best of `labels` in each frame, without repetitions and blanks."""
    return [spell(best.unique_consecutive().tolist(), labels).strip() for best in logits.argmax(-1)]
