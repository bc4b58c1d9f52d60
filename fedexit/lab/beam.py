"""Decode texts by beam search over a list of words. It needs flashlight-text, an optional library."""

import tempfile
from collections.abc import Callable, Sequence

from torch import Tensor

from fedexit.data.text import CHARACTERS
from fedexit.support.errors import FedexitError


def beam_search_available() -> bool:
    """Return whether `beam_decoder` works: it needs flashlight-text, an optional library."""
    return _ctc_decoder() is not None


def _ctc_decoder() -> Callable | None:
    """Return torchaudio's decoder, or None without flashlight-text."""
    try:
        from torchaudio.models.decoder import ctc_decoder  # compiled, and optional
    except (ImportError, RuntimeError):
        return None
    return ctc_decoder


def beam_decoder(words: Sequence[str], labels: Sequence[str] = CHARACTERS) -> Callable[[Tensor], list[str]]:
    """Return a decoder by beam search (torchaudio's, on flashlight-text) that knows only `words`.

    `labels` are the characters of the logits. There is no language model: every word is equally likely. Raises
    FedexitError without flashlight-text.
    """
    ctc_decoder = _ctc_decoder()
    if ctc_decoder is None:
        raise FedexitError('beam search needs flashlight-text; under Python 3.11 or 3.12: pip install "fedexit[beam]"')
    tokens = ["<blank>", *("|" if label == " " else label for label in labels)]
    with tempfile.NamedTemporaryFile("w", suffix=".lexicon", encoding="utf-8") as lexicon:
        lexicon.writelines(f"{word} {' '.join(word)} |\n" for word in words)
        lexicon.flush()
        search = ctc_decoder(lexicon.name, tokens, beam_size=50, word_score=0.0, log_add=True, blank_token="<blank>")
    return lambda logits: [
        " ".join(found[0].words) if found else "" for found in search(logits.log_softmax(-1).float().cpu())
    ]
