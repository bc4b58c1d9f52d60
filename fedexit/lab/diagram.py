"""Draw the method in one picture: the backbone and its exits, a round of clients, and the average of Eq. (1)."""

from typing import Any

import pandas as pd

from fedexit.lab.looks import EXITS
from fedexit.support.extras import extra

with extra("notebooks"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

LAYERS = 12
ARROW = {"arrowstyle": "->", "color": "0.2", "lw": 1.2}
EQUATION = (
    r"$w_l(t+1) = \frac{\sum_{i \in S_l} n_i\,L_i\;w_{l,i}(t+1)}{\sum_{j \in S_l} n_j\,L_j}$"
    r"$\qquad S_l = \{i: L_i \geq l\}$, the clients that trained layer $l$"
)


def method(clients: pd.DataFrame) -> Figure:
    """Return the diagram of one round.

    Args:
        clients: one row per client, `client, depth, clips`: its name, L_i and n_i.

    Example:
        >>> method(pd.DataFrame({"client": ["phone", "laptop"], "depth": [3, 12], "clips": [40, 60]}))
    """
    figure, (model, fleet, server) = plt.subplots(1, 3, figsize=(12.5, 6.2), width_ratios=[2.1, 4, 3.4])
    _backbone(model)
    _fleet(fleet, clients)
    _server(server, clients)
    figure.supxlabel(EQUATION, fontsize=16)
    return figure


def _backbone(axis: Axes) -> None:
    """Draw the layers, and a head on each exit."""
    for layer in range(1, LAYERS + 1):
        _box(axis, 0, layer, 1.4, "0.88", f"layer {layer}")
    for exit in (3, 6, 9, 12):
        _box(axis, 1.75, exit, 0.95, EXITS[exit][0], f"exit {exit}", dark=exit > 6)
        axis.annotate("", (1.75, exit), (1.42, exit), arrowprops=ARROW)
    axis.annotate("", (0.7, 0.55), (0.7, -0.1), arrowprops=ARROW)
    axis.text(0.7, -0.2, "speech, through\nconvolutions", ha="center", va="top", fontsize=9)
    _bare(axis, "1. A backbone with four exits", (-0.1, 2.8))


def _fleet(axis: Axes, clients: pd.DataFrame) -> None:
    """Draw the layers that each client holds and trains, and its loss on top of them."""
    for place, row in enumerate(clients.itertuples()):
        colour = EXITS[row.depth][0]
        for layer in range(1, LAYERS + 1):
            if layer == row.depth + 1:
                continue  # room for the loss
            held = layer <= row.depth
            _box(axis, place, layer, 0.8, colour if held else "white", "", edge="white" if held else "0.8")
        axis.text(place + 0.4, row.depth + 0.6, f"loss at exit {row.depth}", ha="center", va="bottom", fontsize=9)
        says = f"{row.client}\n$L_i$ = {row.depth}, $n_i$ = {row.clips}"
        axis.text(place + 0.4, -0.2, says, ha="center", va="top", fontsize=9)
    _bare(axis, "2. Each client holds, trains and sends layers 1 to $L_i$", (-0.1, len(clients)))


def _server(axis: Axes, clients: pd.DataFrame) -> None:
    """Draw the share of each client in the average of each layer."""
    for layer in range(1, LAYERS + 1):
        members = clients[clients["depth"] >= layer]
        weights = members["clips"] * members["depth"]
        left = 0.0
        for depth, share in zip(members["depth"], weights / weights.sum(), strict=True):
            axis.barh(layer, share, left=left, height=0.8, color=EXITS[depth][0], edgecolor="white")
            left += share
        axis.text(1.02, layer, f"{len(members)}", va="center", fontsize=9)
    axis.text(1.02, LAYERS + 0.75, "clients\nin $S_l$", va="bottom", fontsize=9)
    says = "share of each client in layer $l$,\n$n_i L_i$ over the sum of $n_j L_j$"
    axis.text(0.5, -0.2, says, ha="center", va="top", fontsize=9)
    _bare(axis, "3. The server averages layer by layer", (0, 1.2))


def _box(
    axis: Axes, left: float, layer: int, width: float, colour: str, text: str, dark: bool = False, edge: str = "white"
) -> None:
    """Draw a rounded box at the height of a layer."""
    shape = FancyBboxPatch((left, layer - 0.4), width, 0.8, "round,pad=0,rounding_size=0.1", fc=colour, ec=edge)
    axis.add_patch(shape)
    look: dict[str, Any] = dict(ha="center", va="center", fontsize=9)
    axis.text(left + width / 2, layer, text, color="white" if dark else "black", **look)


def _bare(axis: Axes, title: str, span: tuple[float, float]) -> None:
    axis.set(xlim=span, ylim=(-1.6, LAYERS + 1.6))
    axis.set_title(title, fontsize=12)
    axis.set_axis_off()
