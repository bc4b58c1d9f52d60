"""Put numbers into the sentences that notebooks write: counts, percent, points and intervals.

Example:
    >>> counted(1, "seed"), counted(3, "seed"), percent(0.124, 1), points(-0.46)
    ('one seed', '3 seeds', '12.4 %', '-0.5 points')
"""

import math
from collections.abc import Iterable


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `one seed`, `3 seeds`, `no seeds`. `plural` is `noun` with an s if not given."""
    plural = plural or f"{noun}s"
    return f"one {noun}" if number == 1 else f"{f'{number:,}' if number else 'no'} {plural}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share (0.124) as percent (`12.4 %` with one digit)."""
    return f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """Return a difference of two error rates with its sign: `+1.3 points`."""
    return f"{difference:+.1f} points"


def interval(low: float, high: float) -> str:
    """Return the limits of a 95 % interval in points; `no interval` where they are missing, e.g. for one seed."""
    return "no interval" if math.isnan(low) or math.isnan(high) else f"95 % interval {low:+.1f} to {high:+.1f}"


def listed(words: Iterable[object]) -> str:
    """Return words as a list in a sentence: `3, 6 and 9`."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def bullets(lines: Iterable[str]) -> str:
    """Return sentences as a list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)
