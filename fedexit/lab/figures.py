"""Draw the figures of the experiments (notebooks 10 to 20 and 90), each from the rows of its CSV file alone.

A notebook and `fedexit figure` call the same function, so that a figure can be drawn again without training. The
functions of a notebook's figures have the names of the figures.
"""

from typing import Any

import pandas as pd

from fedexit.lab.looks import EXITS, METHODS, legend_below, looks_of, panels, stacked
from fedexit.lab.plots import (
    arms_by_exit,
    error_by_bytes,
    error_by_exponent,
    forest,
    learning_curves,
    shares_by_exit,
    similarity_by_layer,
)
from fedexit.lab.plots import error_by_work as draw_work
from fedexit.support.extras import extra

with extra("notebooks"):
    import seaborn as sns
    from matplotlib.figure import Figure

MOST_LINES = 6  # more arms than these get a panel each


def error_by_exit(main: pd.DataFrame) -> Figure:
    """Return error by exit, a panel per task: `task, arm, exit, error, low, high, seeds`, in percent."""
    names = {f"{task} ({_seeds(rows)})": rows for task, rows in main.groupby("task", sort=False)}
    rows, *more = names.values()
    exits = rows.groupby("arm", sort=False)["exit"].nunique()
    lines = [arm for arm in exits[exits > 1].index if arm != "heads only"]
    if not more and len(lines) > MOST_LINES:
        return _arm_beside_first(rows, lines)
    figure, axes = panels([*names], width=5.4)
    for name, axis in axes.items():
        arms_by_exit(axis, names[name])
    legend_below(figure, *axes.values(), columns=4)
    return figure


main_result = error_by_exit  # notebook 90 shows the main table of notebook 11


def _arm_beside_first(rows: pd.DataFrame, lines: list[str]) -> Figure:
    """Return a panel per arm of `lines`, beside the first one and the yardsticks."""
    first, *others = lines
    figure, axes = panels(others, height=3.2)
    top = 1.5 * rows["error"].max()  # with room for the legend
    for arm, axis in axes.items():
        arms_by_exit(axis, rows[~rows["arm"].isin(lines) | rows["arm"].isin([first, arm])])
        axis.set(title=f"{arm} ({_seeds(rows)})", ylim=(0, top), ylabel="error on test (%)")
        axis.legend(fontsize="xx-small", ncols=2, loc="upper right")
    return figure


def _seeds(rows: pd.DataFrame) -> str:
    low, high = int(rows["seeds"].min()), int(rows["seeds"].max())
    if high == 1:
        return "one seed, no intervals"
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"


def learning(curves: pd.DataFrame) -> Figure:
    """Return error on dev by round, a panel per task and per federated or central training.

    curves: `task, arm, round, error` in percent. Arms that were measured once are left out.
    """
    measured = curves.groupby(["task", "arm"], sort=False)["round"].transform("nunique")
    curves = curves[measured > 1]
    central = curves["arm"].str.startswith("central ").map({True: "centralised", False: "federated"})
    kinds = curves.groupby([curves["task"], central], sort=False)
    figure, axes = panels([", ".join(kind) for kind in kinds.groups], width=5.0)
    for (task, kind), own in kinds:
        axis = axes[f"{task}, {kind}"]
        learning_curves(axis, own)
        axis.set_xlabel("round" if kind == "federated" else "epoch")
    legend_below(figure, *axes.values(), columns=3)
    return figure


def differences(judged: pd.DataFrame) -> Figure:
    """Return the declared comparisons, a panel per task: `task, exit, one, other, difference, low, high, verdict`."""
    groups = dict(list(judged.groupby("task", sort=False)))
    heights = {task: 1.6 + 0.55 * len(own[["one", "other"]].drop_duplicates()) for task, own in groups.items()}
    figure, axes = stacked(heights)
    for task, axis in axes.items():
        forest(axis, groups[task])
        axis.set_title(f"{task} ({_seeds(groups[task])})")
    legend_below(figure, *axes.values(), columns=5)
    return figure


def beside_paper(both: pd.DataFrame) -> Figure:
    """Return error by exit of our tasks beside the paper's: `source, task, arm, exit, error, low, high`."""
    sources = both.drop_duplicates("task").set_index("task")["source"]
    figure, axes = panels([*sources.index])
    for task, axis in axes.items():
        arms_by_exit(axis, both[both["task"] == task])
        axis.set_title(f"{task} ({'ours' if sources[task] == 'fedexit' else 'paper'})")
    legend_below(figure, *axes.values())
    return figure


def error_by_cost(spent: pd.DataFrame) -> Figure:
    """Return error over work of homogeneous fleets: `task, exit, error, low, high, macs_share` in percent."""
    groups = dict(list(spent.groupby("task", sort=False)))
    figure, axes = panels([*groups], width=6)
    for task, axis in axes.items():
        axis.plot(groups[task]["macs_share"], groups[task]["error"], color="0.6", lw=1, zorder=0)
        for row in groups[task].itertuples():
            colour, marker, _ = EXITS[row.exit]
            axis.plot([row.macs_share] * 2, [row.low, row.high], color=colour, lw=1.5)
            axis.plot(row.macs_share, row.error, marker, color=colour, ms=9, label=f"everyone at {row.exit}")
        axis.set(xlabel="multiply-accumulates (% of everyone at 12)", xlim=(0, 105))
        top = groups[task][["error", "high"]].max(axis=None)  # high is empty for one seed
        axis.set(ylabel="error on test (%), lower is better", ylim=(0, 1.1 * top))
    legend_below(figure, *axes.values(), columns=2)
    return figure


def exponent(rows: pd.DataFrame) -> Figure:
    """Return error over the depth exponent: `task, arm, exit, g, error, low, high`; yardsticks have no `g`."""
    sweep, bounds = rows[rows["g"].notna()], rows[rows["g"].isna()]
    figure, axes = panels([*sweep["task"].unique()], width=5.4)
    for task, axis in axes.items():
        error_by_exponent(axis, sweep[sweep["task"] == task], bounds[bounds["task"] == task])
        axis.set_title(f"{task} ({_seeds(sweep[sweep['task'] == task])})")
    legend_below(figure, *axes.values(), columns=3)
    return figure


def bytes_sent(bought: pd.DataFrame) -> Figure:
    """Return error over bytes of the arms that save bytes: `task, arm, megabytes, error` in percent."""
    shown = bought[bought["arm"].isin(["Eq. (1)", "adapters", "all weights, bytes of adapters"])]
    figure, axes = panels([*shown["task"].unique()], width=6.0)
    for task, axis in axes.items():
        error_by_bytes(axis, shown[shown["task"] == task])
    legend_below(figure, *axes.values())
    return figure


def error_by_work(rows: pd.DataFrame) -> Figure:
    """Return error over work of exits taken at run time: `task, way, error, macs, step`, as shares and per clip."""
    figure, axes = panels([*rows["task"].unique()], width=6.0)
    for task, axis in axes.items():
        draw_work(axis, rows[rows["task"] == task])
    legend_below(figure, *axes.values(), columns=3)
    return figure


def exit_shares(shares: pd.DataFrame) -> Figure:
    """Return where clips stop: `rule` and a column per exit."""
    figure, axes = panels(["where clips stop"], width=6.4, height=2.8)
    shares_by_exit(axes["where clips stop"], shares.set_index("rule"))
    legend_below(figure, axes["where clips stop"])
    return figure


def similarity(rows: pd.DataFrame) -> Figure:
    """Return the likeness of cut models to the full one: `cut, layer, cka`."""
    figure, axes = panels(["likeness to the full model"], width=6.4, height=3.8)
    similarity_by_layer(axes["likeness to the full model"], rows)
    legend_below(figure, *axes.values(), columns=2)
    return figure


def paper_table1(table: pd.DataFrame) -> Figure:
    """Return Table 1 of the paper as lines: `task, metric, setting, depth, value` in percent."""
    groups = dict(list(table.groupby("task", sort=False)))
    figure, axes = panels([*groups], width=4.0, height=2.8)
    for task, axis in axes.items():
        for setting, own in groups[task].groupby("setting", sort=False):
            colour, marker, dash = METHODS[setting]
            own = own.sort_values("depth")
            axis.plot(own["depth"], own["value"], color=colour, marker=marker, ls=dash, label=setting)
        metric = groups[task]["metric"].iloc[0]
        axis.set(title=f"{task} (paper)", xticks=[3, 6, 9, 12], xlabel="exit (layer)", ylabel=f"{metric} (%)")
    legend_below(figure, *axes.values())
    return figure


def table1(table: pd.DataFrame) -> Figure:
    """Return our numbers of notebook 20 beside the paper's: `task, metric, setting, depth, ours, paper`, in percent."""
    groups = dict(list(table.groupby("task", sort=False)))
    figure, axes = panels([*groups])
    for task, axis in axes.items():
        for setting, (colour, marker, dash) in looks_of(table["setting"].unique()).items():
            own = groups[task][groups[task]["setting"] == setting].sort_values("depth")
            for source, face in (("ours", colour), ("paper", "white")):
                points = own.dropna(subset=source)
                look: dict[str, Any] = dict(color=colour, marker=marker, mfc=face, ls=dash if source == "ours" else "")
                axis.plot(points["depth"], points[source], label=f"{setting}, {source}", **look)
        metric = groups[task]["metric"].iloc[0]
        axis.set(xticks=sorted(set(groups[task]["depth"])), xlabel="exit (layer)", ylabel=f"{metric} (%)")
    legend_below(figure, *axes.values(), columns=2)
    return figure


table2 = table1  # the same columns


def engine(data: pd.DataFrame) -> Figure:
    """Return a mark per repetition of `fedexit bench`: `engine, kind, processes, ratio` to the bare loop."""
    clients = {"full": "all clients at exit 12", "mixed": "exits 3 and 9"}
    once = ((data["engine"] == "fedexit") & (data["kind"] == "mixed")).map({True: ", convolved once", False: ""})
    data = data.assign(label=data["engine"] + ", " + data["kind"].map(clients) + once)
    figure, axes = panels(["speed of a round"], width=8, height=1.4 + 0.4 * data["label"].nunique())
    axis = axes["speed of a round"]
    marks: dict[str, Any] = dict(hue="processes", style="processes", palette="colorblind", s=70, alpha=0.8)
    sns.scatterplot(data, x="ratio", y="label", ax=axis, **marks)
    axis.axvline(1, color="black", ls="--", lw=1)
    says = "seconds of a round, as a multiple of the bare loop's\n(all at exit 12, as many processes; less is faster)"
    axis.set(xlabel=says, ylabel="", xlim=(0, None))
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1))
    return figure
