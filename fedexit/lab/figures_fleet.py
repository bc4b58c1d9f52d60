"""Draw the figures on Flower and privacy (notebooks 21 and 23), each from the rows of its CSV file alone."""

import pandas as pd

from fedexit.lab.looks import legend_below, panels
from fedexit.support.extras import extra

with extra("notebooks"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

PARTS = ("pack", "train", "flower", "unpack")  # of a round


def stages(seconds: pd.DataFrame) -> Figure:
    """Return the seconds per round by part, a bar per engine: `engine, pack, train, flower, unpack`."""
    figure, axis = plt.subplots(figsize=(7, 1.8 + 0.6 * len(seconds)))
    left = pd.Series(0.0, index=seconds.index)
    for name in PARTS:
        axis.barh(seconds["engine"], seconds[name], left=left, label=name)
        left = left + seconds[name]
    axis.set(xlabel="seconds per round", title=None if len(seconds) else "not measured: Flower did not run")
    if len(seconds):
        legend_below(figure, axis)
    return figure


def noise_by_layer(noise: pd.DataFrame) -> Figure:
    """Return the standard deviation of the noise by layer: `layer, sigma`."""
    figure, axis = plt.subplots(figsize=(6.5, 3.6))
    axis.step(noise["layer"], noise["sigma"], where="mid", marker="o")
    axis.set(xlabel="layer", ylabel="standard deviation of noise", ylim=(0, None), xticks=range(1, 13))
    return figure


def error_by_epsilon(errors: pd.DataFrame) -> Figure:
    """Return error by exit, a line per amount of noise: `case, exit, error, half, guess`, in percent."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    for (case, own), marker in zip(errors.groupby("case", sort=False), "Dosv^<>", strict=False):
        axis.errorbar(own["exit"], own["error"], own["half"], marker=marker, capsize=2, label=case)
    axis.axhline(errors["guess"].iloc[0], color="0.5", ls=":", label="most frequent word")
    axis.set(xlabel="exit", ylabel="error on test (%)", xticks=sorted(set(errors["exit"])))
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def leakage(found: pd.DataFrame) -> Figure:
    """Return the AUC of membership by layer, of one update and of the sum: `attack, change, group, depth, mean, ...`.

    The mean has an interval of `half_interval` on both sides, in percent. 50 is guessing.
    """
    members = found[(found["attack"] == "membership") & found["group"].str.startswith("layer")]
    members = members.assign(layer=members["group"].str.extract(r"(\d+)", expand=False).astype(int))
    figure, axes = panels(["update", "sum"], width=5.4)
    for change, axis in axes.items():
        rows = members[members["change"] == change].sort_values("layer")
        for (depth, own), marker in zip(rows.groupby("depth"), "os^D", strict=False):
            axis.errorbar(
                own["layer"], own["mean"], own["half_interval"], marker=marker, capsize=2, label=f"depth {depth}"
            )
        axis.axhline(50, color="0.5", ls=":")
        axis.set(xlabel="layer", ylabel="AUC of membership (%)", xticks=range(1, 13))
    legend_below(figure, *axes.values(), columns=4)
    return figure
