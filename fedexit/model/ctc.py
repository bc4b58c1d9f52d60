"""Characters by CTC (Graves et al. 2006): targets, head, loss and decoders. The paper's ASR head, sec. 3.

A head gives a clip's frames beyond its end to the blank with certainty: they change neither loss nor decoding, so that
nothing but the head need know where a clip in a padded batch ends.
"""

import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedexit.data.text import BLANK, CHARACTERS, spell
from fedexit.model.training import lacks_bfloat16
from fedexit.support.errors import FedexitError

_SURE = 1e4  # logit of the blank beyond a clip's end


class CTCHead(nn.Module):
    """A linear layer on every frame, with a bidirectional LSTM of the same width below it if `recurrent`.

    `centre` and `scale` (D,) standardise the frames (`MultiExitModel.standardise`).
    """

    def __init__(self, width: int, labels: int, recurrent: bool = False):
        super().__init__()
        self.recurrent = nn.LSTM(width, width // 2, bidirectional=True, batch_first=True) if recurrent else None
        self.linear = nn.Linear(width, labels + 1)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def reads(self, states: Tensor, frames: Tensor) -> Tensor:
        """What is standardised: all frames of all clips (sum of F_i, D)."""
        return torch.cat([state[:length] for state, length in zip(states, frames.tolist(), strict=True)])

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """(B, F, D), (B,) -> logits (B, F, 1 + characters)."""
        hidden = (states - self.centre) / self.scale
        if self.recurrent is not None:
            packed = nn.utils.rnn.pack_padded_sequence(hidden, frames.cpu(), batch_first=True, enforce_sorted=False)
            half = torch.is_autocast_enabled("cpu") and not lacks_bfloat16()  # else single precision, as `hidden` is
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                heard = self.recurrent(packed)[0]
            hidden = nn.utils.rnn.pad_packed_sequence(heard, batch_first=True, total_length=states.shape[1])[0]
        outside = torch.arange(states.shape[1], device=states.device) >= frames.to(states.device)[:, None]
        blank = nn.functional.one_hot(torch.tensor(BLANK), self.linear.out_features).to(hidden) * _SURE
        return torch.where(outside[..., None], blank, self.linear(hidden))

    def macs(self, frames: int) -> int:
        """Multiply-accumulates of a clip of so many frames."""
        width = self.linear.in_features
        per_frame = width * self.linear.out_features
        if self.recurrent is not None:  # four gates read the input and the state, in two directions
            per_frame += 2 * 4 * (width // 2) * (width + width // 2)
        return frames * per_frame


def within(logits: Tensor) -> Tensor:
    """Which frames (B, F) of a head's logits (B, F, C) are not beyond their clip's end."""
    return logits[..., BLANK] < _SURE


def ctc_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over clips of -log p(text) per character. logits: (B, F, C); targets: (B, L), zeros after the text."""
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    frames = torch.full((len(logits),), logits.shape[1])
    return nn.functional.ctc_loss(log_probs, targets, frames, (targets > 0).sum(1), BLANK)


def greedy(logits: Tensor) -> list[str]:
    """The most probable character of each frame (B, F, C), repetitions and blanks taken out."""
    return [spell(best.unique_consecutive().tolist()).strip() for best in logits.argmax(-1)]


def beam_decoder(words: Sequence[str]) -> Callable[[Tensor], list[str]]:
    """A decoder by beam search (torchaudio's, on flashlight-text) that knows only `words`.

    Without a language model: every word is as likely as any other. Raises FedexitError without flashlight-text.
    """
    try:
        from torchaudio.models.decoder import ctc_decoder  # compiled, and needed by those alone who search
    except (ImportError, RuntimeError) as error:
        raise FedexitError("beam search needs flashlight-text; install it, under Python 3.11 or 3.12") from error

    tokens = ["-", *CHARACTERS[:-1], "|"]
    with tempfile.NamedTemporaryFile("w", suffix=".lexicon") as lexicon:
        lexicon.writelines(f"{word} {' '.join(word)} |\n" for word in words)
        lexicon.flush()
        search = ctc_decoder(lexicon.name, tokens, beam_size=50, word_score=0.0, log_add=True)
    return lambda logits: [
        " ".join(found[0].words) if found else "" for found in search(logits.log_softmax(-1).float().cpu())
    ]
