"""Draw the figures on cost and devices (notebooks 12, 17 and 19), each from the rows of its CSV file alone."""

from typing import Any

import pandas as pd

from fedexit.lab.looks import EXITS, legend_below, looks_of, panels
from fedexit.lab.plots import coverage_lines, depth_tiles, memory_bars, memory_by_depth
from fedexit.support.extras import extra

with extra("notebooks"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure


def work(steps: pd.DataFrame) -> Figure:
    """Return time and multiply-accumulates of a training step by depth: `kind, depth, share, mac_share`."""
    figure, axes = panels(["a training step"], width=6)
    axis = axes["a training step"]
    for (kind, own), marker, dash in zip(steps.groupby("kind"), "os", ("-", "--"), strict=True):
        axis.plot(own["depth"], 100 * own["share"], marker=marker, ls="", ms=8, label=f"time, {kind}")
        axis.plot(own["depth"], 100 * own["mac_share"], color="black", ls=dash, label=f"MACs, {kind}")
    depths = sorted(set(steps["depth"]))
    axis.set(xlabel="depth", ylabel=f"share of depth {depths[-1]} (%)", xticks=depths, ylim=(0, 105))
    legend_below(figure, axis, columns=2)
    return figure


def memory(held: pd.DataFrame) -> Figure:
    """Return training memory by depth, a panel per length of clips: columns of `fedexit.lab.plots.memory_bars`."""
    groups = {f"{name}, clips of {s:g} s": own for (name, s), own in held.groupby(["geometry", "clip_seconds"])}
    figure, axes = panels([*groups])
    top = 1.05 * held["training"].max()
    for name, axis in axes.items():
        memory_bars(axis, groups[name])
        axis.set(ylim=(0, top), ylabel="MiB")
    legend_below(figure, *axes.values(), columns=4)
    return figure


def clock(curves: pd.DataFrame) -> Figure:
    """Return error on dev over simulated minutes: `arm, seed, exit, round, minutes, error`; faint lines are seeds."""
    figure, axes = panels([f"keyword, exit {exit}" for exit in sorted(curves["exit"].unique())], width=5.2)
    for (exit, arm), rows in curves.groupby(["exit", "arm"], sort=False):
        axis, (colour, marker, dash) = axes[f"keyword, exit {exit}"], looks_of([arm])[arm]
        for _, own in rows.groupby("seed"):
            axis.plot(own["minutes"], own["error"], color=colour, ls=dash, lw=0.5, alpha=0.4)
        mean = rows.groupby("round")[["minutes", "error"]].mean()
        axis.plot(mean["minutes"], mean["error"], color=colour, marker=marker, ls=dash, ms=6, lw=1.8, label=arm)
    for axis in axes.values():
        axis.set(xlabel="simulated minutes", ylabel="error on dev (%), lower is better", ylim=(0, None))
    legend_below(figure, *axes.values())
    return figure


def calibration(peaks: pd.DataFrame) -> Figure:
    """Return measured over modelled memory: columns `geometry, depth, seconds` and memory in MiB."""
    order = peaks.sort_values("model_mib")
    names = [f"{row.geometry}\ndepth {row.depth}\n{row.seconds:g} s" for row in order.itertuples()]
    figure, axis = plt.subplots(figsize=(2 + 1.0 * len(names), 3.8))
    axis.axhline(1, color="black", ls=":", label="the model as it is")
    ratios = order[["corrected_mib", "measured_mib", "left_alone_mib"]].div(order["model_mib"], axis=0)
    axis.plot(names, ratios["corrected_mib"], "_", color="0.4", ms=30, mew=3, label="corrected")
    axis.plot(names, ratios["measured_mib"], "ko", mfc="white", ms=7, label="measured")
    axis.plot(names, ratios["left_alone_mib"], "x", color="#D55E00", ms=7, label="measured, allocator left alone")
    low, high = min(0.95, ratios.min().min() - 0.02), ratios.max().max() + 0.05
    axis.set(ylabel="memory, as a multiple of the model's", ylim=(low, high), xlim=(-0.5, len(names) - 0.5))
    legend_below(figure, axis)
    return figure


def budgets(rows: pd.DataFrame) -> Figure:
    """Return training memory by depth and the budgets of devices: `geometry, task, depth, memory_mib`."""
    figure, axes = panels([*rows["geometry"].unique()], width=6.2, height=4.8)
    for name, axis in axes.items():
        memory_by_depth(axis, rows[rows["geometry"] == name])
        axis.set_ylabel("training memory (MiB)")
    legend_below(figure, *axes.values())
    return figure


def choices(rows: pd.DataFrame) -> Figure:
    """Return the depth of each device and task: `geometry, device, task, task_exit, depth, set_by`."""
    says = rows["depth"].astype("Int64").astype("string").fillna("–") + " · " + rows["set_by"]
    rows = rows.assign(says=says, depth=rows["depth"].astype(float))
    devices, tasks = list(rows["device"].unique()), list(rows["task"].unique())
    best = rows.drop_duplicates("task").set_index("task")["task_exit"]
    figure, axes = panels([*rows["geometry"].unique()], width=6.4)
    for name, axis in axes.items():
        shown = rows[rows["geometry"] == name].pivot(index="device", columns="task", values=["depth", "says"])
        shown = shown.reindex(index=devices)
        depth_tiles(axis, shown["depth"][tasks].astype(float), labels=shown["says"][tasks])
        axis.set_xticks([k + 0.5 for k in range(len(tasks))], [f"{task}\nbest exit {best[task]}" for task in tasks])
    legend_below(figure, *axes.values())
    return figure


def rounds(history: pd.DataFrame) -> Figure:
    """Return the depth of each client by round, a panel per policy: `policy, round, client, chosen, why`."""
    clients, policies = list(history["client"].unique()), list(history["policy"].unique())
    figure, axes = panels(policies, width=7, height=0.2 * len(clients) + 1.2)
    for policy, axis in axes.items():
        own = history[history["policy"] == policy].astype({"chosen": float})
        own = own.assign(lost=own["why"].isin(["killed", "out of memory"]))
        tiles = own.pivot(index="client", columns="round", values=["chosen", "lost"]).loc[clients]
        depth_tiles(axis, tiles["chosen"].astype(float), lost=tiles["lost"])
        axis.set_xlabel("round")
        axis.tick_params(axis="y", labelsize=7)
    legend_below(figure, *axes.values())
    return figure


def coverage(spread: pd.DataFrame) -> Figure:
    """Return clients and effective clients by layer: `what, policy, layer, mean, low, high`."""
    figure, axes = panels(["clients", "effective"], width=5.4)
    for what, axis in axes.items():
        coverage_lines(axis, spread[spread["what"] == what])
    axes["clients"].set(title="clients in $S_l$", ylabel="clients per round")
    axes["effective"].set(title="effective number of clients")
    legend_below(figure, *axes.values())
    return figure


def margins(swept: pd.DataFrame) -> Figure:
    """Return what a safety margin costs: `margin, trained, no_exit_fits, out_of_memory, mean_depth`."""
    figure, axes = panels(["client rounds", "depth"], width=5)
    looks = {"trained": ("o", "-"), "no_exit_fits": ("s", "--"), "out_of_memory": ("^", ":")}
    for name, (marker, dash) in looks.items():
        label = name.replace("_", " ")
        axes["client rounds"].plot(100 * swept["margin"], 100 * swept[name], marker=marker, ls=dash, label=label)
    axes["depth"].plot(100 * swept["margin"], swept["mean_depth"], "ko-")
    best = swept.loc[swept["mean_depth"].idxmax()]
    axes["client rounds"].set(ylabel="client rounds (%)", title="what becomes of them")
    axes["depth"].set(
        ylabel="layers per client and round", title=f"most layers at a margin of {100 * best['margin']:.0f} %"
    )
    for axis in axes.values():
        axis.axvline(100 * best["margin"], color="0.5", lw=1, ls=":")
        axis.set(xlabel="margin (% of the free memory)", ylim=(0, None))
    legend_below(figure, axes["client rounds"])
    return figure


def error_by_latency(rows: pd.DataFrame) -> Figure:
    """Return error over latency of exported exits: `exit, form, median_ms, megabytes, error`; exit 0 is guessing."""
    markers = {"torch": "o", "onnx": "s", "onnx int8": "^"}
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    for exit, own in rows[rows["exit"] > 0].groupby("exit"):
        axis.plot(own["median_ms"], own["error"], color=EXITS[exit][0], lw=0.8, zorder=1, label=f"exit {exit}")
        for row in own.itertuples():
            look: dict[str, Any] = dict(color=EXITS[exit][0], marker=markers[row.form], alpha=0.8)
            axis.scatter(row.median_ms, row.error, 25 * row.megabytes, **look)
    for form, marker in markers.items():
        axis.scatter([], [], 60, color="0.5", marker=marker, label=form)
    for row in rows[rows["exit"] == 0].itertuples():
        axis.axhline(row.error, color="0.5", ls=":", lw=1, label=row.form)
    axis.set(xlabel="ms of one core per second of speech (less is faster)", ylabel="error on test (%)", xlim=(0, None))
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
