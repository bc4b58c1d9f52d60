"""Set the colours, dashes and layout that all figures share."""

from collections.abc import Sequence

from fedexit.support.extras import extra

with extra("notebooks"):
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A method looks the same in every figure.
METHODS = {
    "homogeneous": ("#555555", "s", "homogeneous (all clients at this depth)"),
    "exclusive": ("#E69F00", "P", "exclusive (deepest tier alone)"),
    "stale": ("#D55E00", "v", "stale FedAvg"),
    "stale-g1": ("#E69F00", "^", "stale, g = 1"),
    "masked": ("#0072B2", "o", "masked (data size only)"),
    "layerwise-g-1": ("#56B4E9", "X", "masked, g = -1"),
    "layerwise": ("#009E73", "D", "layer-wise, Eq. (1)"),
    "layerwise-all": ("#CC79A7", "^", "Eq. (1), all exits"),
    "masked-all": ("#56B4E9", "P", "masked, all exits"),
    "layerwise-mutual": ("#E69F00", "X", "Eq. (1), all exits, mutual"),
    "layerwise-shared": ("black", "*", "Eq. (1), one shared head"),
    "depthfl": ("#D55E00", ">", "DepthFL"),
    "scalefl": ("black", "h", "ScaleFL"),
    "count": ("#0072B2", "p", "masked (plain mean)"),
    "heterofl": ("#CC79A7", "<", "HeteroFL (narrow layers)"),
}
DASHES = {method: ("-", "--", "-.", ":")[place % 4] for place, method in enumerate(METHODS)}
# Arms of an experiment in their order: colour, marker, dashes.
ARMS = (
    ("#D55E00", "v", ":"), ("#0072B2", "o", "--"), ("#009E73", "D", "-"), ("#CC79A7", "^", "-."), ("#E69F00", "P", "-"),
    ("#56B4E9", "X", "--"), ("black", "s", ":"), ("#555555", "*", "-."), ("#999999", "h", "-"),
)  # fmt: skip
EXITS = (("#0072B2", "o", "-"), ("#E69F00", "s", "--"), ("#009E73", "^", "-."), ("black", "D", ":"))  # shallow to deep
# Ways to choose an exit at run time: colour, marker, dashes.
WAYS = {
    "fixed": ("#555555", "s", "-"),
    "entropy": ("#0072B2", "o", "--"),
    "probability": ("#D55E00", "^", ":"),
    "agreement": ("#009E73", "D", "-."),
    "oracle": ("black", "*", ""),
    "dedicated": ("#CC79A7", "X", ""),
}
# Depth policies: colour, marker, dashes.
POLICIES = {
    "static": ("#555555", "s", "-"),
    "dynamic": ("#0072B2", "o", "--"),
    "dynamic, faults": ("#D55E00", "^", ":"),
}
MEMORY = {"weights": "", "gradients": "//", "optimiser": "..", "activations": "xx"}  # parts of memory: hatch


def style() -> None:
    """Set the project's style for all figures that follow."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})


def legend_below(figure: Figure, axis: Axes, columns: int | None = None) -> None:
    """Put one legend for the whole figure below it, in one row or in `columns`."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or len(labels), fontsize="small")


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


def seed_marks(axis: Axes, places: Sequence[float], values: Sequence[float], method: str) -> None:
    """Draw a small hollow mark of the `method` for each seed."""
    colour, marker, _ = METHODS[method]
    axis.scatter(places, values, facecolors="none", edgecolors=colour, marker=marker, s=16, lw=0.8)
