"""Draw the figures of notebook 25, each from the rows of its CSV file alone."""

from typing import Any

import pandas as pd

from fedexit.lab.figures_basics import HOLDERS
from fedexit.lab.looks import OTHERS, legend_below
from fedexit.support.extras import extra

with extra("notebooks"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure


def over_time(frames: pd.DataFrame) -> Figure:
    """Return waveform, spectrogram and what each exit spells over time: the columns of `listening.frames_of`."""
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(11, 6), sharex=True, height_ratios=[1, 2, 2])
    top.fill_between(frames["second"], frames["low"], frames["high"], color="#0072B2", lw=0)
    top.set_ylabel("waveform")
    bands = frames.filter(regex="^band ")
    hertz = [(band + 0.5) * 8 / bands.shape[1] for band in range(bands.shape[1])]
    look: dict[str, Any] = dict(cmap="Greys", shading="nearest", vmin=-80, vmax=0, rasterized=True)
    middle.pcolormesh(frames["second"], hertz, bands.T, **look)
    middle.set_ylabel("frequency (kHz)")
    exits = [name.removeprefix("exit ") for name in frames.filter(regex="^exit ").columns]
    for place, exit in enumerate(exits):
        spelled = frames[f"exit {exit}"].fillna("")
        for row in frames[(spelled != "") & (spelled != spelled.shift())].itertuples():
            strength = 0.35 + 0.65 * float(frames.loc[row.Index, f"sure {exit}"])
            bottom.text(row.second, place, spelled[row.Index], ha="center", va="center", alpha=strength, fontsize=10)
    bottom.set(xlabel="time (s)", ylabel="exit", ylim=(len(exits) - 0.5, -0.5), xlim=(0, frames["second"].max()))
    bottom.set_yticks(range(len(exits)), exits)
    for axis in (top, middle, bottom):
        axis.grid(visible=False)
    return figure


def mix(table: pd.DataFrame) -> Figure:
    """Return shares by layer (above, at the first g) and effective clients (below, a line per g), a column per mix.

    The columns are `mix, g` and those of `listening.mixed`.
    """
    mixes = list(table["mix"].unique())
    figure, axes = plt.subplots(
        2, len(mixes), figsize=(1.5 + 3.4 * len(mixes), 6), sharex=True, sharey="row", squeeze=False
    )
    for (top, bottom), name in zip(axes.T, mixes, strict=True):
        own = table[table["mix"] == name]
        first = own[own["g"] == own["g"].iloc[0]].pivot(index="layer", columns="tier", values="share").fillna(0)
        below = pd.Series(0.0, index=first.index)
        for tier in sorted(first, reverse=True):
            look: dict[str, Any] = dict(color=HOLDERS[f"depth {tier}"], edgecolor="0.4", label=f"depth {tier}")
            top.bar(first.index, 100 * first[tier], 1.0, bottom=100 * below, **look)
            below += first[tier]
        for (g, line), (colour, marker, dash) in zip(own.groupby("g", sort=False), OTHERS, strict=False):
            steady = line.drop_duplicates("layer")
            bottom.plot(steady["layer"], steady["effective"], color=colour, marker=marker, ls=dash, label=f"g = {g:g}")
        top.set_title(f"{name}\ng = {own['g'].iloc[0]:g}")
        bottom.set(xlabel="layer", xticks=[3, 6, 9, 12], ylim=(0, None))
    axes[0, 0].set_ylabel("share of the average (%)")
    axes[1, 0].set_ylabel("effective clients")
    legend_below(figure, *axes.flat, columns=4)
    return figure
