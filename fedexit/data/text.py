"""Convert texts to character ids for CTC, and back."""

import itertools
import unicodedata
from collections.abc import Container, Iterable, Sequence

from fedexit.support.errors import FedexitError

CHARACTERS = "abcdefghijklmnopqrstuvwxyz' "  # their ids begin at 1; 0 is the blank of CTC
BLANK = 0
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4`", "'"))
_ACCENTS = frozenset(map(chr, range(0x300, 0x370)))  # marks that a base letter can lose
_LETTERS = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ħ": "h"})


def words(text: str) -> list[str]:
    """Return the whole words of `text` in any script: lower case, Unicode form NFKC, with inner apostrophes.

    A word has at least one letter; digits within it stay ("42nd"), numbers alone are left out.
    """
    plain = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    kept = "".join(one if unicodedata.category(one)[0] in "LMN" or one == "'" else " " for one in plain)
    found = (word.strip("'") for word in kept.split())
    return [word for word in found if any(letter.isalpha() for letter in word)]


def characters(text: str, alphabet: Sequence[str] = CHARACTERS) -> list[int]:
    """Return the ids, from 1, of the characters of `alphabet` that spell `text`, in Unicode's composed form (NFC).

    A character that the alphabet holds is kept. Otherwise its plain apostrophe, its lower case, its upper case or its
    letters without marks are taken (é is e, ß is ss, æ is ae), the first of these that the alphabet holds. All others,
    such as punctuation, become blanks; blanks in a row become one. So apostrophes and digits are kept if the
    alphabet holds them; `unspelled` names letters and digits that it lacks.
    """
    places = {letter: number for number, letter in enumerate(alphabet, 1)}
    kept = "".join(_spelling(one, places) for one in unicodedata.normalize("NFC", text))
    return [places[letter] for letter in " ".join(kept.split()) if letter in places]


def unspelled(text: str, alphabet: Sequence[str] = CHARACTERS) -> str:
    """Return the letters and digits of `text` that `characters` leaves out, each once, in their order."""
    held = set(alphabet)
    ones = dict.fromkeys(one for one in unicodedata.normalize("NFC", text) if _is_spoken(one))
    return "".join(dict.fromkeys(one.lower() for one in ones if not _spelling(one, held).strip()))


def spell(codes: Sequence[int], alphabet: Sequence[str] = CHARACTERS) -> str:
    """Return the text of ids of the characters of `alphabet`; blanks (0) are skipped."""
    return "".join(alphabet[code - 1] for code in codes if code != BLANK)


def alphabet_of(texts: Iterable[str]) -> list[str]:
    """Return the characters of `texts`, sorted, and last the blank between words.

    These are the letters of any script and their marks in lower case and composed form (NFC), digits, and the plain
    apostrophe in place of typographic ones, if they occur. Digits are learned as they are written, so write numbers
    as words. Raises FedexitError for texts without letters and digits.
    """
    found = {
        letter
        for one in set(unicodedata.normalize("NFC", "".join(texts).translate(_APOSTROPHES)))
        for letter in one.lower()
        if one == "'" or unicodedata.category(letter)[0] in "LM" or letter.isdecimal()
    }
    if not any(map(_is_spoken, found)):
        raise FedexitError("an alphabet cannot be learned: the training texts hold no letters; give transcripts")
    return [*sorted(found), " "]


def checked_alphabet(alphabet: Iterable[str]) -> list[str]:
    """Return the characters of `alphabet` as a list in composed form (NFC).

    Raises FedexitError unless they are single characters, each once, with the blank that separates words.
    """
    if not isinstance(alphabet, Iterable):
        raise FedexitError(f"alphabet is {alphabet!r}; give a list of characters, or 'learned'")
    found = list(unicodedata.normalize("NFC", alphabet)) if isinstance(alphabet, str) else list(alphabet)
    letters = [unicodedata.normalize("NFC", one) if isinstance(one, str) else one for one in found]
    for letter in letters:
        if not isinstance(letter, str) or len(letter) != 1:
            raise FedexitError(f"alphabet holds {letter!r}; give single characters, or 'learned'")
        if letters.count(letter) > 1:
            raise FedexitError(f"alphabet holds {letter!r} {letters.count(letter)} times; list each character once")
    if " " not in letters:
        raise FedexitError("alphabet lacks the blank ' ', which separates words; add it")
    return letters


def frames_needed(target: Sequence[int]) -> int:
    """Return the fewest frames that can spell `target`: one per character, and a blank between two equal ones."""
    return len(target) + sum(one == other for one, other in itertools.pairwise(target))


def _spelling(one: str, held: Container[str]) -> str:
    """Return the characters among `held` that spell the character `one`, with blanks for those that are not."""
    for spelling in (one, one.translate(_APOSTROPHES), one.lower(), one.upper()):
        if all(letter in held for letter in spelling):
            return spelling
    return "".join(letter if letter in held else " " for letter in _folded(one))


def _is_spoken(one: str) -> bool:
    """Return whether a character is a letter, a number, or a mark that is not an accent (such as a vowel sign)."""
    kind = unicodedata.category(one)[0]
    return kind in "LN" or (kind == "M" and one not in _ACCENTS)


def _folded(text: str) -> str:
    """Return `text` in lower case with plain apostrophes and without the marks of Latin letters."""
    plain = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).casefold().translate(_LETTERS)
    return "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
