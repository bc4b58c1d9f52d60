"""Draw the figures of notebooks 00 to 05, each from the rows of its CSV file alone."""

from typing import Any

import numpy as np
import pandas as pd

from fedexit.lab.looks import EXITS, OTHERS, legend_below, panels
from fedexit.support.extras import extra

with extra("notebooks"):
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.colors import LogNorm, PowerNorm
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure

BLUE, VERMILION = "#0072B2", "#D55E00"
SPLITS = {"train": ("#00224E", "o", "-"), "dev": (VERMILION, "s", "--"), "test": ("#009E73", "^", ":")}
HOLDERS = {  # deep is dark
    "old weights": "#ffffff", "depth 12": "#08306b", "depth 9": "#2f7ebc", "depth 6": "#94c4df", "depth 3": "#dfecf7"
}  # fmt: skip
BACKBONES = {
    "tiny-distilled": (BLUE, "o", "-"),
    "tiny": (VERMILION, "s", "--"),
    "tiny-random": ("#777777", "v", ":"),
}


def pyramid(layers: pd.DataFrame) -> Figure:
    """Return who trains which layer: `layer, share of clients`."""
    figure, axis = plt.subplots(figsize=(6, 3.4))
    colours = [EXITS[3 * -(-layer // 3)][0] for layer in layers["layer"]]
    axis.barh(layers["layer"], 100 * layers["share of clients"], color=colours)
    axis.set(xlabel="clients that train the layer (%)", ylabel="layer", yticks=layers["layer"], xlim=(0, 100))
    axis.grid(axis="y", visible=False)
    return figure


def sizes(rows: pd.DataFrame) -> Figure:
    """Return how much more than depth / 12 a cut backbone holds: `preset, depth, share`."""
    rows = rows[rows["depth"] < 12].assign(excess=lambda own: 100 * (own["share"] - own["depth"] / 12))
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    sns.barplot(rows, x="depth", y="excess", hue="preset", palette="colorblind", edgecolor="white", ax=axis)
    for bars in axis.containers:
        assert isinstance(bars, BarContainer)
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set(xlabel="depth (layers held)", ylabel="share of the full backbone,\npoints above depth / 12")
    axis.legend(title="preset")
    axis.grid(axis="x", visible=False)
    return figure


def shares(table: pd.DataFrame) -> Figure:
    """Return the share of each tier in each layer, by rule: `federation, rule, layer, tier, share`."""
    figure, axes = plt.subplots(2, 6, sharex=True, sharey=True, figsize=(13, 5))
    look: dict[str, Any] = dict(
        multiple="stack", discrete=True, hue_order=list(HOLDERS), palette=HOLDERS, edgecolor="0.4", alpha=1
    )
    parts = table.groupby(["federation", "rule"], sort=False)
    for axis, ((federation, rule), part) in zip(axes.flat, parts, strict=True):
        last = axis is axes[0, -1]
        sns.histplot(part, x="layer", weights="share", hue="tier", legend=last, ax=axis, **look)
        axis.set(title=f"{federation}, {rule}", ylabel="share of the average", xticks=[3, 6, 9, 12], ylim=(0, 1))
    sns.move_legend(axes[0, -1], "upper left", bbox_to_anchor=(1, 1))
    return figure


def durations(counts: pd.DataFrame) -> Figure:
    """Return lengths of clips as outlines, a line per split: `seconds` and clips per split."""
    figure, axis = plt.subplots(figsize=(8, 3.5))
    for split, (colour, _, dash) in SPLITS.items():
        share = 100 * counts[split] / counts[split].sum()
        label = f"{split}, {counts[split].sum()} clips"
        axis.step(counts["seconds"], share, where="post", color=colour, ls=dash, lw=1.6, label=label)
    axis.set(xlabel="length of the clip (s)", ylabel="clips of the split (%)", xlim=(0, 12), ylim=(0, None))
    axis.legend()
    return figure


def spectrogram(grid: pd.DataFrame) -> Figure:
    """Return the spectrogram of a clip: `hertz`, and a column of dB per time, named `0.016 s`."""
    times = [float(name.removesuffix(" s")) for name in grid.columns[1:]]
    figure, axis = plt.subplots(figsize=(8, 3.5))
    look: dict[str, Any] = dict(cmap="Greys", shading="nearest", vmin=-80, vmax=0, rasterized=True)
    image = axis.pcolormesh(times, grid["hertz"], grid.iloc[:, 1:], **look)
    figure.colorbar(image, label="dB relative to the peak")
    axis.set(xlabel="time (s)", ylabel="frequency (Hz)")
    axis.grid(visible=False)
    return figure


def voices_by_split(voices: pd.DataFrame) -> Figure:
    """Return clips per voice and split on a log scale: `speaker` and clips per split."""
    figure, axis = plt.subplots(figsize=(8, 6))
    for split, (colour, marker, _) in SPLITS.items():
        own = voices[voices[split] > 0]
        axis.plot(own[split], own["speaker"], marker, color=colour, ms=7, alpha=0.8, label=split)
    axis.set(xscale="log", xlabel="clips with a transcript (log scale)")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(range(len(voices)), voices["speaker"])
    axis.invert_yaxis()
    axis.legend(title="split")
    return figure


def client_labels(held: pd.DataFrame) -> Figure:
    """Return which client holds which voice, a panel per partition: `partition, client, label, share`."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 9), sharey=True)
    for axis, (how, part) in zip(axes, held.groupby("partition"), strict=True):
        matrix = part.pivot(index="client", columns="label", values="share").fillna(0)
        look: dict[str, Any] = dict(cmap="Greys", norm=PowerNorm(0.5, 0, 1), xticklabels=1, yticklabels=1, cbar=False)
        sns.heatmap(matrix, ax=axis, **look)
        axis.set(title=f"partition {how}", xlabel="voice", ylabel="")
        axis.tick_params(labelsize=8)
    label = "share of the client's clips (square-root scale)"
    figure.colorbar(axes[1].collections[0], ax=axes, label=label, shrink=0.6)
    return figure


def layer_movement(moved: pd.DataFrame) -> Figure:
    """Return how far each layer moves in a round, for each average: `rule, layer, clients, relative_change`."""
    figure, axis = plt.subplots(figsize=(8, 4))
    looks = {"Eq. (1)": ("#009E73", ""), "stale": (VERMILION, "//")}
    for (rule, (colour, hatch)), shift in zip(looks.items(), (-0.2, 0.2), strict=True):
        own = moved[moved["rule"] == rule]
        heights = 100 * own["relative_change"]
        axis.bar(own["layer"] + shift, heights, 0.4, color=colour, hatch=hatch, edgecolor="white", label=rule)
    axis.set_xticks(own["layer"], own["layer"].astype(str) + "\n(" + own["clients"].astype(str) + ")")
    axis.set(xlabel="layer (clients in $S_l$)", ylabel="relative change in one round (%)")
    axis.grid(axis="x", visible=False)
    axis.legend()
    return figure


def more_rounds(table: pd.DataFrame) -> Figure:
    """Return error by round and exit: `round, exit, value, n`; exit 0 always answers the most frequent class."""
    figure, axis = plt.subplots(figsize=(7.5, 4))
    constant = table.loc[table["exit"] == 0, "value"].mean()
    axis.axhline(100 * constant, color="black", lw=6, alpha=0.15, label="always the most frequent class")
    for exit, own in table[table["exit"] > 0].groupby("exit"):
        colour, marker, dash = EXITS[exit]
        axis.plot(own["round"], 100 * own["value"], color=colour, marker=marker, ls=dash, label=f"exit {exit}")
    clips = int(table["n"].max())
    axis.set(xlabel="round", ylabel="error on dev (%)", title=f"{clips} clips, random backbone: one constant answer")
    legend_below(figure, axis, columns=5)
    return figure


def masking(rows: pd.DataFrame) -> Figure:
    """Return the mel bands and codes of a clip, masked frames shaded: `second, code, masked, mel 0, mel 1, ...`."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 4), sharex=True, height_ratios=[3, 1])
    bands = rows.filter(regex="^mel ").T
    top.pcolormesh(rows["second"], range(len(bands)), bands, cmap="Greys", shading="nearest", rasterized=True)
    for second in rows.loc[rows["masked"], "second"]:
        for axis in (top, bottom):
            axis.axvspan(second - 0.01, second + 0.01, color=VERMILION, alpha=0.3, lw=0)
    bottom.step(rows["second"], rows["code"], where="mid", color="black", lw=1)
    top.set_ylabel("mel band")
    bottom.set(xlabel="time (s)", ylabel="code")
    return figure


def loss_curve(loss: pd.DataFrame) -> Figure:
    """Return the loss of pre-training, a panel per stage: `backbone, stage, target, part, update, loss`."""
    groups = {f"{name}, {stage}": own for (name, stage), own in loss.groupby(["backbone", "stage"], sort=False)}
    figure, axes = panels([*groups], width=5, height=3.4)
    for name, axis in axes.items():
        for (target, own), (colour, marker, _) in zip(groups[name].groupby("target", sort=False), OTHERS, strict=False):
            train, dev = (own[own["part"] == part] for part in ("train", "dev"))
            axis.plot(train["update"], train["loss"], color=colour, lw=0.8, label=f"{target}, train")
            axis.plot(dev["update"], dev["loss"], marker, color=colour, mfc="white", ms=4, label=f"{target}, dev")
        axis.set(xlabel="update", ylabel="loss on masked frames")
        axis.legend(fontsize="x-small", ncols=2)
    return figure


def layer_profile(means: pd.DataFrame) -> Figure:
    """Return probe error by layer, a panel per task: `task, model, layer, test, half_interval` in percent.

    Models without a layer, such as log-mel features, become horizontal lines.
    """
    figure, axes = panels([*means["task"].unique()], width=5)
    for task, axis in axes.items():
        own, others = means[means["task"] == task], iter(OTHERS)
        for place, (model, rows) in enumerate(own.groupby("model", sort=False)):
            if len(rows) == 1:
                axis.axhline(rows["test"].item(), color="black", lw=1, ls=(0, (1 + 3 * (place % 3), 2)), label=model)
                continue
            colour, marker, dash = BACKBONES.get(model) or next(others)
            spots = rows["layer"] * 12 / rows["layer"].max()
            low, high = rows["test"] - rows["half_interval"], rows["test"] + rows["half_interval"]
            axis.fill_between(spots, low, high, color=colour, alpha=0.12, lw=0)
            axis.plot(spots, rows["test"], color=colour, marker=marker, ls=dash, ms=4, lw=1.3, label=model)
        axis.set(xlabel="layer", ylabel="probe error (%), lower is better", xticks=range(0, 13, 3), ylim=(0, None))
    legend_below(figure, *axes.values())
    return figure


def kinship(plotted: pd.DataFrame) -> Figure:
    """Return how unlike the layers are, a panel per model: `model, one, other, cka`."""
    figure, axes = panels([*plotted["model"].unique()])
    for model, axis in axes.items():
        matrix = plotted[plotted["model"] == model].pivot(index="one", columns="other", values="cka")
        unlike = np.clip(1 - matrix, 1e-4, 1)
        last = model == plotted["model"].iloc[-1]
        look: dict[str, Any] = dict(
            norm=LogNorm(1e-4, 1), cmap="cividis", square=True, cbar=last, cbar_kws={"label": "1 - CKA (log)"}
        )
        sns.heatmap(unlike, ax=axis, **look)
        axis.set(xlabel="layer", ylabel="layer")
    return figure
