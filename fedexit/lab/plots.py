"""Draw the figures in one style. Markers and dashes carry the meaning, so that grey prints stay readable."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedexit.lab.looks import ARMS, EXITS, MEMORY, POLICIES, WAYS
from fedexit.support.extras import extra

with extra("notebooks"):
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator


def arms_by_exit(axis: Axes, main: pd.DataFrame, lines: Sequence[str], marks: Sequence[str]) -> None:
    """Draw error by exit with intervals: a line for each arm of `lines`, a grey mark for each yardstick of `marks`.

    Yardsticks without an exit (exit 0) become horizontal lines.

    Args:
        axis: where to draw.
        main: `arm, exit, error, low, high` in percent, of one task.
        lines: arms that have several exits.
        marks: yardsticks.
    """
    exits = sorted({*main["exit"]} - {0})
    for place, arm in enumerate([*lines, *marks]):
        own, look = main[main["arm"] == arm], ARMS[place % len(ARMS)]
        if (own["exit"] == 0).all():
            axis.axhline(own["error"].mean(), color="0.4", lw=1, ls=(0, (1 + 3 * (place % 3), 2)), label=arm)
            continue
        shift = 0.05 * (place - (len(lines) + len(marks) - 1) / 2)
        reach = (own["error"] - own["low"]).fillna(0), (own["high"] - own["error"]).fillna(0)
        style: dict[str, Any] = dict(color=look[0], marker=look[1], ls=look[2] if arm in lines else "", ms=7, lw=1.3)
        if arm in marks:
            style |= dict(color="0.35", mfc="white", ms=9)
        axis.errorbar([exits.index(e) + shift for e in own["exit"]], own["error"], reach, capsize=2, label=arm, **style)
    axis.set(xticks=range(len(exits)), xticklabels=exits, xlabel="exit (layer)", ylabel="error on test (%)")
    axis.set_ylim(0, None)
    axis.grid(axis="x", visible=False)


def learning_curves(axis: Axes, curves: pd.DataFrame, arms: Sequence[str]) -> None:
    """Draw error on dev by round, a line per arm: `arm, round, error` in percent, of one task."""
    for place, arm in enumerate(arms):
        own, (colour, marker, dash) = curves[curves["arm"] == arm], ARMS[place % len(ARMS)]
        axis.plot(own["round"], own["error"], color=colour, marker=marker, ls=dash, ms=5, lw=1.3, label=arm)
    axis.set(xlabel="round", ylabel="error on dev (%)")


def forest(axis: Axes, rows: pd.DataFrame, column: str) -> None:
    """Draw differences with intervals: a line per `label`, in the order of the rows, a mark per value of `column`.

    Args:
        axis: where to draw.
        rows: `label`, `difference, low, high` in points, and `column`.
        column: column that chooses the mark.
    """
    labels, kinds = list(dict.fromkeys(rows["label"])), list(dict.fromkeys(rows[column]))
    for place, kind in enumerate(kinds):
        own = rows[rows[column] == kind]
        heights = [labels.index(label) + 0.22 * (place - (len(kinds) - 1) / 2) for label in own["label"]]
        reach = own["difference"] - own["low"], own["high"] - own["difference"]
        look: dict[str, Any] = dict(
            color=str(0.55 * place / max(1, len(kinds) - 1)), marker="osD^vPX"[place % 7], label=kind
        )
        axis.errorbar(own["difference"], heights, xerr=reach, ls="", capsize=3, **look)
    axis.axvline(0, color="black", lw=1, ls="--")
    for place in range(1, len(labels)):
        axis.axhline(place - 0.5, color="0.85", lw=0.8, zorder=0)
    axis.set(yticks=range(len(labels)), yticklabels=labels, xlabel="points of error", ylim=(len(labels) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)


def error_by_exponent(axis: Axes, sweep: pd.DataFrame, bounds: pd.DataFrame) -> None:
    """Draw error over the depth exponent g: a line per exit with intervals, and yardsticks as grey lines.

    Args:
        axis: where to draw.
        sweep: `exit, g, error, low, high` in percent, of one task.
        bounds: yardsticks, `arm, error` in percent.
    """
    shift = 0.03 * np.ptp(sweep["g"])
    for place, (exit, own) in enumerate(sweep.groupby("exit")):
        colour, marker, dash = EXITS[place % len(EXITS)]
        x = own["g"] + shift * (place - (sweep["exit"].nunique() - 1) / 2)
        reach = (own["error"] - own["low"]).fillna(0), (own["high"] - own["error"]).fillna(0)
        look: dict[str, Any] = dict(color=colour, marker=marker, ls=dash, ms=6, lw=1.3, capsize=2)
        axis.errorbar(x, own["error"], reach, label=f"exit {exit}", **look)
    for place, row in enumerate(bounds.itertuples()):
        axis.axhline(row.error, color="0.4", lw=1, ls=(0, (1 + 3 * (place % 3), 2)), label=row.arm)
    axis.set(xlabel="depth exponent g", ylabel="error on test (%)", xticks=sorted(set(sweep["g"])))
    axis.set_ylim(0, None)


def memory_bars(axis: Axes, held: pd.DataFrame, measured: pd.DataFrame) -> None:
    """Draw training memory by depth: bars of its parts in MiB, dashes for forward passes, marks for measurements.

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


def error_by_work(axis: Axes, points: pd.DataFrame, curves: pd.DataFrame) -> None:
    """Draw error over multiply-accumulates: a line through the fixed exits, a curve per rule, marks at chosen points.

    points: `way, error, macs`, with ways of `WAYS`; curves: the same columns for the whole range of each rule.
    """
    for way, (colour, marker, dash) in WAYS.items():
        line, own = (table[table["way"] == way] for table in (curves, points))
        joined = own if way == "fixed" else line
        axis.plot(joined["macs"] / 1e6, 100 * joined["error"], color=colour, ls=dash, lw=1)
        size, front = (220, 5) if way == "oracle" else (70, 4)
        axis.scatter(
            own["macs"] / 1e6, 100 * own["error"], s=size, color=colour, marker=marker, label=way, zorder=front,
            edgecolor="white",
        )  # fmt: skip
    axis.set(xlabel="million MACs per clip, all included", ylabel="error on test (%)")


def similarity_by_layer(axis: Axes, similarity: pd.DataFrame) -> None:
    """Draw likeness to the full model by layer, a line per cut: `cut, layer, cka`."""
    for place, (cut, own) in enumerate(similarity.groupby("cut", sort=False)):
        colour, marker, dash = ARMS[place % len(ARMS)]
        axis.plot(own["layer"], own["cka"], color=colour, marker=marker, ls=dash, ms=5, lw=1.3, label=cut)
    axis.set(xlabel="layer (0: the input of layer 1)", ylabel="likeness (CKA)", ylim=(0, 1.05))


def error_by_bytes(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw error over the megabytes that all clients sent, on a log axis: `arm, megabytes, error` in percent."""
    for place, row in enumerate(rows.itertuples()):
        colour, marker, _ = ARMS[place % len(ARMS)]
        axis.scatter(row.megabytes, row.error, color=colour, marker=marker, s=70, label=row.arm)
    axis.set(xscale="log", xlabel="megabytes sent by all clients", ylabel="error on test (%)")
    axis.set_ylim(0, None)


def shares_by_exit(axis: Axes, shares: pd.DataFrame) -> None:
    """Draw a bar per row of `shares`, with one piece per column (exit), dark for deep exits."""
    left = 0
    for place, (exit, share) in enumerate(shares.items()):
        grey = str(0.85 - 0.5 * place / max(1, shares.shape[1] - 1))
        hatch = ("", "//", "..", "xx")[place % 4]
        axis.barh(shares.index, 100 * share, left=left, color=grey, hatch=hatch, edgecolor="white", label=exit)
        left = left + 100 * share
    axis.set(xlabel="clips (%)")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def memory_by_depth(axis: Axes, needed: pd.DataFrame, budgets: pd.Series) -> None:
    """Draw training memory by depth in MiB on a log scale: a line per task, and the memory of devices as named levels.

    needed: `task, depth, memory_mib`; budgets: by device. Levels far from all lines are left out.
    """
    for place, (task, own) in enumerate(needed.groupby("task", sort=False)):
        colour, marker, dash = (
            sns.color_palette("colorblind")[place],
            "oD^v"[place % 4],
            ("-", "--", "-.", ":")[place % 4],
        )
        axis.plot(own["depth"], own["memory_mib"], color=colour, marker=marker, ls=dash, label=task)
    low, high = needed["memory_mib"].min() / 4, 2 * needed["memory_mib"].max()
    depths, below = sorted(needed["depth"].unique()), 0.0
    for device, level in budgets[budgets.between(low, high)].sort_values().items():
        axis.axhline(level, color="0.6", lw=0.8, zorder=0)
        below = max(level, below * (high / low) ** 0.035)  # names do not overlap
        axis.text(depths[-1] + 0.4, below, device, fontsize=8, va="center")
    axis.set(yscale="log", ylim=(low, high), xticks=depths, xlim=(depths[0] - 0.4, depths[-1] + 0.3), xlabel="depth")
    axis.grid(visible=False)


def depth_tiles(
    axis: Axes,
    depths: pd.DataFrame,
    exits: Sequence[int],
    labels: pd.DataFrame | None = None,
    lost: pd.DataFrame | None = None,
) -> None:
    """Draw a tile per row and column of `depths`: darker is deeper, white takes no part (NaN).

    labels: texts on the tiles; lost: where a cross marks an update that did not arrive.
    """
    greys = {exit: 0.9 - 0.7 * place / max(1, len(exits) - 1) for place, exit in enumerate(exits)}
    shades = depths.apply(lambda column: column.map(greys)).fillna(1.0).to_numpy(float)
    axis.pcolormesh(shades, cmap="gray", vmin=0, vmax=1, edgecolors="white", lw=0.5)
    for exit in sorted(set(np.unique(depths.to_numpy(float))) & set(exits)):
        axis.scatter([], [], marker="s", s=60, color=str(greys[exit]), edgecolor="black", label=f"depth {exit:.0f}")
    axis.scatter([], [], marker="s", s=60, color="white", edgecolor="black", label="takes no part")
    if labels is not None:
        for (row, column), shade in np.ndenumerate(shades):
            look: dict[str, Any] = dict(ha="center", va="center", fontsize=9, color="white" if shade < 0.5 else "black")
            axis.text(column + 0.5, row + 0.5, labels.iloc[row, column], **look)
    if lost is not None:
        rows, columns = np.nonzero(lost.to_numpy(bool))
        axis.scatter(columns + 0.5, rows + 0.5, marker="x", s=16, color="white", lw=3)
        axis.scatter(columns + 0.5, rows + 0.5, marker="x", s=16, color="black", lw=1.2, label="update lost")
    axis.set_yticks(np.arange(len(depths)) + 0.5, depths.index)
    axis.invert_yaxis()
    axis.grid(visible=False)


def coverage_lines(axis: Axes, table: pd.DataFrame) -> None:
    """Draw a number by layer for each policy: a line, with the range over rounds as a band.

    table: `policy, layer, mean, low, high`.
    """
    for policy, (colour, marker, dash) in POLICIES.items():
        own = table[table["policy"] == policy]
        axis.fill_between(own["layer"], own["low"], own["high"], color=colour, alpha=0.15, lw=0)
        axis.plot(own["layer"], own["mean"], color=colour, marker=marker, ls=dash, ms=5, label=policy)
    axis.set(xlabel="layer", xticks=sorted(table["layer"].unique()), ylim=(0, None))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
