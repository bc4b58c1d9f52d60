"""Draw the figures on faulty and hostile clients (notebook 24), each from the rows of its CSV file alone."""

import pandas as pd

from fedexit.lab.looks import legend_below, looks_of, panels
from fedexit.support.extras import extra

with extra("notebooks"):
    from matplotlib.figure import Figure


def error_by_share(errors: pd.DataFrame) -> Figure:
    """Return error against the share of bad clients, a panel per kind and exit: `kind, rule, share, exit, mean, ...`.

    The band is the interval of Eq. (1) without bad clients (`clean`, `clean_half`). All numbers are in percent.
    """
    exits = sorted(set(errors["exit"]))
    names = {f"{kind}, exit {exit}": (kind, exit) for kind in errors["kind"].unique() for exit in (exits[0], exits[-1])}
    figure, axes = panels([*names], width=5.2, height=3.6)
    looks = looks_of(errors["rule"].unique())
    for name, (kind, exit) in names.items():
        rows, axis = errors[(errors["kind"] == kind) & (errors["exit"] == exit)], axes[name]
        clean, half = rows["clean"].iloc[0], rows["clean_half"].iloc[0]
        axis.axhspan(clean - half, clean + half, color="0.85", label="Eq. (1), clean")
        for rule, own in rows.groupby("rule", sort=False):
            colour, mark, dash = looks[str(rule)]
            axis.plot(own["share"], own["mean"], color=colour, marker=mark, linestyle=dash, label=rule)
        axis.set(xlabel="bad clients (%)", ylabel="error on test (%)", ylim=(0, 100))
    legend_below(figure, *axes.values(), columns=4)
    return figure


def error_with_faults(errors: pd.DataFrame) -> Figure:
    """Return error by exit with faulty and hostile clients together: `rule, exit, mean, half_interval, clean, ...`.

    The band is the interval of Eq. (1) without bad clients (`clean`, `clean_half`). All numbers are in percent.
    """
    figure, axes = panels(["10 % faulty and 10 % hostile clients"], width=7.5, height=4.2)
    [axis] = axes.values()
    clean = errors.drop_duplicates("exit")
    low, high = clean["clean"] - clean["clean_half"], clean["clean"] + clean["clean_half"]
    axis.fill_between(clean["exit"], low, high, color="0.85", label="Eq. (1), clean")
    for (rule, own), look in zip(
        errors.groupby("rule", sort=False), looks_of(errors["rule"].unique()).values(), strict=True
    ):
        colour, mark, dash = look
        axis.errorbar(
            own["exit"], own["mean"], own["half_interval"], color=colour, marker=mark, ls=dash, capsize=2, label=rule
        )
    axis.set(xlabel="exit", ylabel="error on test (%)", xticks=sorted(set(errors["exit"])), ylim=(0, 100))
    legend_below(figure, axis, columns=4)
    return figure
