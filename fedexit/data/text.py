"""Texts as character ids for CTC, and back."""

import itertools
from collections.abc import Sequence

CHARACTERS = "abcdefghijklmnopqrstuvwxyz' "  # 0 is the blank, the first one 1
BLANK = 0


def characters(text: str) -> list[int]:
    """Numbers of the letters, apostrophes and blanks of `text` in lower case, single blanks between words."""
    kept = "".join(letter if letter in CHARACTERS else " " for letter in text.lower())
    return [CHARACTERS.index(letter) + 1 for letter in " ".join(kept.split())]


def spell(codes: Sequence[int]) -> str:
    """The text of numbers of characters; blanks (0) say nothing."""
    return "".join(CHARACTERS[code - 1] for code in codes if code != BLANK)


def frames_needed(target: Sequence[int]) -> int:
    """Fewest frames that can spell `target`: one per character, and a blank between two that are the same."""
    return len(target) + sum(one == other for one, other in itertools.pairwise(target))
