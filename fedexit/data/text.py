"""Convert texts to character ids for CTC, and back."""

import itertools
import unicodedata
from collections.abc import Sequence

CHARACTERS = "abcdefghijklmnopqrstuvwxyz' "  # their ids begin at 1; 0 is the blank of CTC
BLANK = 0
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4`", "'"))
_LETTERS = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ħ": "h"})


def words(text: str) -> list[str]:
    """Return the whole words of `text` in any script: lower case, Unicode form NFKC, with inner apostrophes.

    A word has at least one letter; digits within it stay ("42nd"), numbers alone are left out.
    """
    plain = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    kept = "".join(one if unicodedata.category(one)[0] in "LMN" or one == "'" else " " for one in plain)
    found = (word.strip("'") for word in kept.split())
    return [word for word in found if any(letter.isalpha() for letter in word)]


def characters(text: str) -> list[int]:
    """Return the ids of the letters a-z, apostrophes and single blanks between words that spell `text`.

    Upper case becomes lower case, typographic apostrophes plain ones, and letters with marks their base letters (é is
    e, ß is ss, æ is ae). Digits, punctuation and letters of other scripts become blanks. So write numbers as
    words; `unspelled` names such letters.
    """
    kept = "".join(letter if letter in CHARACTERS else " " for letter in _folded(text))
    return [CHARACTERS.index(letter) + 1 for letter in " ".join(kept.split())]


def unspelled(text: str) -> str:
    """Return the letters of `text` that `characters` leaves out, each once, in their order."""
    return "".join(dict.fromkeys(one for one in _folded(text) if one.isalpha() and one not in CHARACTERS))


def spell(codes: Sequence[int]) -> str:
    """Return the text of character ids; blanks (0) are skipped."""
    return "".join(CHARACTERS[code - 1] for code in codes if code != BLANK)


def frames_needed(target: Sequence[int]) -> int:
    """Return the fewest frames that can spell `target`: one per character, and a blank between two equal ones."""
    return len(target) + sum(one == other for one, other in itertools.pairwise(target))


def _folded(text: str) -> str:
    """Return `text` in lower case with plain apostrophes and without the marks of Latin letters."""
    plain = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).casefold().translate(_LETTERS)
    return "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
