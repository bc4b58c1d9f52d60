"""Set the colours, marks, dashes and layout that all figures share.

There are separate palettes for methods, exits, verdicts, ways to choose an exit, and policies. Colour-blind readers
can distinguish all colours. A mark, dash or hatch repeats what a colour says, so that grey prints stay readable.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedexit.support.extras import extra

with extra("notebooks"):
    import matplotlib.pyplot as plt
    import pandas as pd
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = tuple[str, str, str]  # colour, mark, dashes

# Exits: from light (shallow) to dark (deep). An exit has the same look in every figure.
EXITS: dict[int, Look] = {
    3: ("#D1B541", "o", "-"),
    4: ("#C0A94F", "P", "-"),
    6: ("#958F78", "s", "--"),
    9: ("#5A6375", "^", "-."),
    12: ("#00224E", "D", ":"),
}
# Methods: an arm has the same look in every figure.
METHODS: dict[str, Look] = {
    "stale": ("#D55E00", "v", ":"),
    "masked": ("#0072B2", "o", "--"),
    "Eq. (1)": ("#009E73", "D", "-"),
    "Eq. (1), all exits": ("#CC79A7", "^", "-."),
    "guessing": ("0.4", "", ":"),
    "log-mel + linear": ("0.4", "", "--"),
    "heads only": ("0.4", "P", ""),
    "federated": ("#0072B2", "o", "--"),
    "centralised": ("#E69F00", "s", "-"),
    **{f"everyone at {exit}": look for exit, look in EXITS.items()},
    **{f"central at {exit}": look for exit, look in EXITS.items()},
}
# Arms that occur in one notebook only, in the order in which it lists them.
OTHERS: tuple[Look, ...] = (
    ("#E69F00", "P", "-"), ("#56B4E9", "X", "--"), ("black", "s", ":"), ("#555555", "*", "-."), ("#882255", "h", "-"),
    ("#117733", "<", "--"), ("#999999", ">", ":"), ("#332288", "p", "-."),
)  # fmt: skip
# Verdicts: colour, and whether the mark is filled. Texts are those of `fedexit.lab.inference`.
VERDICTS = {
    "better": ("#1B7837", True),
    "worse": ("#762A83", True),
    "equivalent within 1 point": ("black", True),
    "not resolved": ("0.45", True),
    "not admitted": ("0.45", False),
    "demonstration": ("0.3", False),
    "exploratory": ("0.65", False),
}
# Ways to choose an exit at run time.
WAYS: dict[str, Look] = {
    "fixed": ("#555555", "s", "-"),
    "entropy": ("#0072B2", "o", "--"),
    "probability": ("#D55E00", "^", ":"),
    "agreement": ("#009E73", "D", "-."),
    "oracle": ("black", "*", ""),
    "dedicated": ("#CC79A7", "X", ""),
}
POLICIES: dict[str, Look] = {
    "static": ("#555555", "s", "-"),
    "dynamic": ("#0072B2", "o", "--"),
    "dynamic, faults": ("#D55E00", "^", ":"),
}
MEMORY = {"weights": "", "gradients": "//", "optimiser": "..", "activations": "xx"}  # parts of memory: hatch
FIRST_ERRS_LESS = "← the first errs less | the first errs more →"


def style() -> None:
    """Set the project's style for all figures that follow, and show texts in tables whole."""
    pd.options.display.max_colwidth = None
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})


def looks_of(arms: Iterable[str]) -> dict[str, Look]:
    """Return the look of each arm: that of `METHODS`, or the next of `OTHERS`."""
    others = iter(OTHERS * 9)
    return {arm: METHODS.get(arm) or next(others) for arm in arms}


def legend_below(figure: Figure, *axes: Axes, columns: int | None = None) -> None:
    """Put one legend of all `axes` below the figure, each label once, in one row or in `columns`."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    place: dict[str, Any] = dict(loc="outside lower center", ncols=columns or len(found), fontsize="small")
    figure.legend(list(found.values()), list(found), **place)


def stacked(heights: Mapping[str, float], width: float = 7.0) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with one axis for each name of `heights` (in inches), below each other."""
    figure, axes = plt.subplots(
        len(heights), figsize=(width, sum(heights.values())), height_ratios=[*heights.values()], squeeze=False
    )
    return figure, dict(zip(heights, axes.flat, strict=True))


def panels(names: Sequence[str], width: float = 4.6, height: float = 4.0) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with one titled axis for each of `names`: at most three in a row, two when there are four."""
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    found = dict(zip(names, axes.flat, strict=False))
    for name, axis in found.items():
        axis.set_title(name)
    return figure, found
