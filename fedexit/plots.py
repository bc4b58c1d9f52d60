"""How figures look: one style, readable in grey and by colour-blind readers (markers and dashes tell, colours help)."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Fixed by name, so that a method looks the same in every figure.
METHODS = {
    "homogeneous": ("#555555", "s", "homogeneous (all clients at this depth)"),
    "stale": ("#D55E00", "v", "stale FedAvg"),
    "masked": ("#0072B2", "o", "masked (data size only)"),
    "layerwise": ("#009E73", "D", "layer-wise, Eq. (1)"),
}

SETTINGS = {
    "central": ("#CC79A7", "^", "central (all clips in one place)"),
    "homogeneous": METHODS["homogeneous"],
}

MEMORY = {"weights": "", "gradients": "//", "optimiser": "..", "activations": "xx"}  # parts of memory: hatch


def style() -> None:
    """Set the project's look for all figures that follow."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})


def legend_below(figure: Figure, axis: Axes) -> None:
    """One legend for the whole figure, below it, where it hides no point."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")


def points_by_exit(data: pd.DataFrame, axis: Axes, baseline: float | None = None) -> None:
    """Error by exit, one mark per seed and method, a line through the methods' means; no bars that hide the points.

    data: columns `method, seed, exit, value` (share of wrong clips); baseline: majority-class error, drawn dashed.
    """
    exits = sorted(data["exit"].unique())
    present = [method for method in METHODS if method in set(data["method"])]
    for place, method in enumerate(present):
        colour, marker, label = METHODS[method]
        shift = 0.12 * (place - (len(present) - 1) / 2)
        own = data[data["method"] == method]
        axis.scatter(
            [exits.index(e) + shift for e in own["exit"]], 100 * own["value"], color=colour, marker=marker, s=28
        )
        means = 100 * own.groupby("exit")["value"].mean()
        axis.plot([exits.index(e) + shift for e in means.index], means, color=colour, marker=marker, label=label, lw=1)
    if baseline is not None:
        axis.axhline(100 * baseline, color="black", ls="--", lw=1, label="majority class")
    axis.set(xticks=range(len(exits)), xticklabels=exits, xlabel="exit (layer)", ylabel="error on test (%)")
    axis.grid(axis="x", visible=False)


def error_by_depth(axis: Axes, seen: pd.DataFrame, means: pd.DataFrame, guess: float | None = None) -> None:
    """One task's errors by exit, central and homogeneous: seeds as small marks, means with their intervals as lines.

    seen: `method, exit, value` (a share); means: `task, metric, method, exit, mean, half_interval` in percent; guess:
    the share that guessing errs in, dashed.
    """
    exits = sorted(means["exit"].unique())
    for method, (colour, marker, label) in SETTINGS.items():
        own, line = seen[seen["method"] == method], means[means["method"] == method]
        shift = [exits.index(e) + (0.1 if method == "central" else -0.1) for e in line["exit"]]
        axis.plot([exits.index(e) for e in own["exit"]], 100 * own["value"], marker, color=colour, ms=4, alpha=0.5)
        axis.errorbar(shift, line["mean"], line["half_interval"], color=colour, marker=marker, label=label, capsize=3)
    if guess is not None:
        axis.axhline(100 * guess, color="black", ls="--", lw=1)
    name, metric = means["task"].iloc[0], means["metric"].iloc[0]
    axis.set(title=name, xlabel="exit (layer)", ylabel=f"{metric} on test (%)")
    axis.set_xticks(range(len(exits)), exits)


def memory_bars(axis: Axes, held: pd.DataFrame, measured: pd.DataFrame) -> None:
    """Training memory by depth, a bar of its parts in MiB; the forward-only model a dash, what was measured marks.

    held: columns `depth, weights, gradients, optimiser, activations, forward`; measured: `depth, mode, measured_mib`.
    """
    places, below = range(len(held)), 0
    for kind, hatch, colour in zip(MEMORY, MEMORY.values(), sns.color_palette("colorblind"), strict=False):
        axis.bar(places, held[kind], bottom=below, color=colour, hatch=hatch, label=kind, edgecolor="white")
        below = below + held[kind].to_numpy()
    axis.plot(places, held["forward"], "k_", ms=26, mew=3, label="forward only, model")
    for mode, marker in (("training", "D"), ("forward", "o")):
        seen = measured[measured["mode"] == mode].set_index("depth")["measured_mib"].reindex(held["depth"])
        axis.plot(places, seen, f"k{marker}", ms=6, mfc="white", label=f"{mode}, measured")
    axis.set(xticks=places, xticklabels=held["depth"], xlabel="depth")
    axis.grid(axis="x", visible=False)
