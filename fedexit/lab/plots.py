"""Draw the figures in one style. Markers and dashes carry the meaning, so that grey prints stay readable."""

from typing import Any

import numpy as np
import pandas as pd

from fedexit.lab.looks import EXITS, FIRST_ERRS_LESS, MEMORY, OTHERS, POLICIES, VERDICTS, WAYS, looks_of
from fedexit.support.extras import extra

with extra("notebooks"):
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

ERROR = "error on test (%), lower is better"


def arms_by_exit(axis: Axes, main: pd.DataFrame) -> None:
    """Draw error by exit with intervals: a line for each arm of several exits, a hollow grey mark for each yardstick.

    Yardsticks have one exit or train nothing but heads. Those without an exit (exit 0) become horizontal lines.

    Args:
        axis: where to draw.
        main: `arm, exit, error, low, high` in percent, of one task.
    """
    exits, looks = sorted({*main["exit"]} - {0}), looks_of(main["arm"].unique())
    marks = {arm for arm, own in main.groupby("arm") if len(own) == 1 or arm == "heads only"}
    for place, (arm, (colour, marker, dash)) in enumerate(looks.items()):
        own = main[main["arm"] == arm]
        if (own["exit"] == 0).all():
            axis.axhline(own["error"].mean(), color=colour, lw=1, ls=dash, label=arm)
            continue
        shift = 0.05 * (place - (len(looks) - 1) / 2)
        style: dict[str, Any] = dict(color=colour, marker=marker, ls=dash, ms=7, lw=1.3)
        if arm in marks:
            style |= dict(color="0.35", mfc="white", ms=8, ls="")
        axis.errorbar(
            [exits.index(e) + shift for e in own["exit"]], own["error"], _reach(own), capsize=2, label=arm, **style
        )
    axis.set(xticks=range(len(exits)), xticklabels=exits, xlabel="exit (layer)", ylabel=ERROR)
    axis.set_ylim(0, None)
    axis.grid(axis="x", visible=False)


def _reach(own: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return how far the intervals of `error` reach below and above; 0 without an interval."""
    return (own["error"] - own["low"]).fillna(0), (own["high"] - own["error"]).fillna(0)


def learning_curves(axis: Axes, curves: pd.DataFrame) -> None:
    """Draw error on dev by round, a line per arm: `arm, round, error` in percent, of one task."""
    for arm, (colour, marker, dash) in looks_of(curves["arm"].unique()).items():
        own = curves[curves["arm"] == arm]
        axis.plot(own["round"], own["error"], color=colour, marker=marker, ls=dash, ms=5, lw=1.3, label=arm)
    axis.set(xlabel="round", ylabel="error on dev (%), lower is better")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def forest(axis: Axes, judged: pd.DataFrame) -> None:
    """Draw differences with intervals: a line per comparison, a mark per exit, a colour per verdict.

    Args:
        axis: where to draw.
        judged: `one, other, exit, difference, low, high, verdict`, of one task, in points.
    """
    labels = list(dict.fromkeys(judged["one"] + " −\n" + judged["other"]))
    exits = sorted(judged["exit"].unique())
    for row in judged.itertuples():
        place = exits.index(row.exit) - (len(exits) - 1) / 2
        height = labels.index(f"{row.one} −\n{row.other}") + 0.6 * place / len(exits)
        colour, filled = VERDICTS[row.verdict]
        look: dict[str, Any] = dict(color=colour, marker=EXITS[row.exit][1], mfc=colour if filled else "white", ms=7)
        axis.plot([row.low, row.high], [height, height], color=colour, lw=1.5)
        axis.plot(row.difference, height, ls="", **look)
    for exit in exits:
        axis.plot([], [], color="black", mfc="white", marker=EXITS[exit][1], ls="", label=f"exit {exit}")
    for verdict, (colour, filled) in VERDICTS.items():
        if (judged["verdict"] == verdict).any():
            axis.plot([], [], color=colour, mfc=colour if filled else "white", marker="h", ms=9, ls="", label=verdict)
    axis.axvline(0, color="black", lw=1, ls="--")
    for place in range(1, len(labels)):
        axis.axhline(place - 0.5, color="0.85", lw=0.8, zorder=0)
    axis.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    axis.set_xlabel(f"difference in points of error\n{FIRST_ERRS_LESS}")
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
        colour, marker, dash = EXITS[exit]
        x = own["g"] + shift * (place - (sweep["exit"].nunique() - 1) / 2)
        look: dict[str, Any] = dict(color=colour, marker=marker, ls=dash, ms=6, lw=1.3, capsize=2)
        axis.errorbar(x, own["error"], _reach(own), label=f"exit {exit}", **look)
    for place, row in enumerate(bounds.itertuples()):
        axis.axhline(row.error, color="0.4", lw=1, ls=(0, (1 + 3 * (place % 3), 2)), label=row.arm)
    axis.set(xlabel="depth exponent g", ylabel=ERROR, xticks=sorted(set(sweep["g"])))
    axis.set_ylim(0, None)


def memory_bars(axis: Axes, held: pd.DataFrame) -> None:
    """Draw training memory by depth: bars of its parts in MiB, dashes for forward passes, marks for measurements.

    held: columns `depth, weights, gradients, optimiser, activations, forward`, and perhaps `training measured` and
    `forward measured`.
    """
    places, below = range(len(held)), 0
    for kind, hatch, colour in zip(MEMORY, MEMORY.values(), sns.color_palette("colorblind"), strict=False):
        axis.bar(places, held[kind], bottom=below, color=colour, hatch=hatch, label=kind, edgecolor="white")
        below = below + held[kind].to_numpy()
    axis.plot(places, held["forward"], "k_", ms=26, mew=3, label="forward only, model")
    for name, marker in (("training measured", "D"), ("forward measured", "o")):
        if name in held:
            axis.plot(places, held[name], f"k{marker}", ms=6, mfc="white", label=name)
    axis.set(xticks=places, xticklabels=held["depth"], xlabel="depth")
    axis.grid(axis="x", visible=False)


def error_by_work(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw error over multiply-accumulates: a line through the fixed exits, a curve per rule, marks at chosen points.

    rows: `way, error, macs, step`, with ways of `WAYS`; the rows of a curve have a `step`, those of points have none.
    """
    for way, (colour, marker, dash) in WAYS.items():
        own = rows[rows["way"] == way].assign(macs=rows["macs"] / 1e6, error=100 * rows["error"])
        points, curve = own[own["step"].isna()], own[own["step"].notna()]
        joined = points if way == "fixed" else curve
        axis.plot(joined["macs"], joined["error"], color=colour, ls=dash, lw=1)
        size, front = (220, 5) if way == "oracle" else (70, 4)
        look: dict[str, Any] = dict(color=colour, marker=marker, zorder=front, edgecolor="white")
        axis.scatter(points["macs"], points["error"], s=size, label=way, **look)
    axis.set(xlabel="million MACs per clip, all included (less is cheaper)", ylabel=ERROR)


def similarity_by_layer(axis: Axes, similarity: pd.DataFrame) -> None:
    """Draw likeness to the full model by layer, a line per cut: `cut, layer, cka`."""
    for cut, (colour, marker, dash) in looks_of(similarity["cut"].unique()).items():
        own = similarity[similarity["cut"] == cut]
        axis.plot(own["layer"], own["cka"], color=colour, marker=marker, ls=dash, ms=5, lw=1.3, label=cut)
    axis.set(xlabel="layer (0: the input of layer 1)", ylabel="likeness (CKA), 1 is equal", ylim=(0, 1.05))


def error_by_bytes(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw error over the megabytes that all clients sent, on a log axis: `arm, megabytes, error` in percent."""
    looks = looks_of(rows["arm"])
    for row in rows.itertuples():
        colour, marker, _ = looks[row.arm]
        axis.scatter(row.megabytes, row.error, color=colour, marker=marker, s=70, label=row.arm)
    axis.set(xscale="log", xlabel="megabytes sent by all clients", ylabel=ERROR)
    axis.set_ylim(0, None)


def shares_by_exit(axis: Axes, shares: pd.DataFrame) -> None:
    """Draw a bar per row of `shares`, with one piece per column (`exit 3`), dark for deep exits."""
    left = 0
    for place, (exit, share) in enumerate(shares.items()):
        colour, hatch = EXITS[int(str(exit).removeprefix("exit "))][0], ("", "//", "..", "xx")[place % 4]
        axis.barh(shares.index, 100 * share, left=left, color=colour, hatch=hatch, edgecolor="white", label=exit)
        left = left + 100 * share
    axis.set(xlabel="clips (%)")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def memory_by_depth(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw training memory by depth in MiB on a log scale: a line per task, and the memory of devices as named levels.

    rows: `task, depth, memory_mib`; depth 0 marks the level of a device, named in `task`. Levels far from all lines are
    left out.
    """
    needed, budgets = rows[rows["depth"] > 0], rows[rows["depth"] == 0].set_index("task")["memory_mib"]
    for task, (colour, marker, dash) in zip(needed["task"].unique(), OTHERS, strict=False):
        own = needed[needed["task"] == task]
        axis.plot(own["depth"], own["memory_mib"], color=colour, marker=marker, ls=dash, label=task)
    low, high = needed["memory_mib"].min() / 4, 2 * needed["memory_mib"].max()
    depths, below = sorted(needed["depth"].unique()), 0.0
    for device, level in budgets[budgets.between(low, high)].sort_values().items():
        axis.axhline(level, color="0.6", lw=0.8, zorder=0)
        below = max(level, below * (high / low) ** 0.035)  # names do not overlap
        axis.text(depths[-1] + 0.4, below, device, fontsize=8, va="center")
    axis.set(yscale="log", ylim=(low, high), xticks=depths, xlim=(depths[0] - 0.4, depths[-1] + 0.3), xlabel="depth")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(visible=False)


def depth_tiles(
    axis: Axes,
    depths: pd.DataFrame,
    labels: pd.DataFrame | None = None,
    lost: pd.DataFrame | None = None,
) -> None:
    """Draw a tile per row and column of `depths`: darker is deeper, white takes no part (NaN).

    labels: texts on the tiles; lost: where a cross marks an update that did not arrive.
    """
    exits = sorted(set(depths.to_numpy(float)[depths.notna()]))
    greys = {exit: 0.9 - 0.7 * (exit - 3) / 9 for exit in exits}
    shades = depths.apply(lambda column: column.map(greys)).fillna(1.0).to_numpy(float)
    axis.pcolormesh(shades, cmap="gray", vmin=0, vmax=1, edgecolors="white", lw=0.5)
    for exit in exits:
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
