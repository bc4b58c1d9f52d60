"""Follow what every exit spells while a clip plays, mix tiers by hand, and show controls to a reader (notebook 25)."""

import os
from collections.abc import Callable, Iterable, Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from fedexit.data.constants import SAMPLE_RATE
from fedexit.model.exits import MultiExitModel
from fedexit.support.extras import extra

BANDS = 40  # of the spectrogram, of equal width up to 8 kHz
FLOOR = 1e-8  # power relative to the peak: -80 dB


def frames_of(model: MultiExitModel, waveform: Tensor) -> pd.DataFrame:
    """Return what the exits of a CTC model spell, frame by frame, beside a coarse picture of the sound.

    The sound cannot be played from it: it has one range of samples and `BANDS` levels per frame.

    Args:
        model: a model with CTC heads (`head="ctc"`).
        waveform: (T,) at 16 kHz.

    Returns:
        One row per frame: `second` (its middle), `low` and `high` (range of the samples), `band 1` to `band 40` (dB
        below the peak), and for each exit K `exit K` (the best character, `_` between words, empty for the blank of
        CTC) and `sure K` (its probability).
    """
    with torch.no_grad():
        outputs = model.eval()(waveform[None])
    count = min(logits.shape[1] for logits in outputs.values())
    size = len(waveform) // count
    pieces = waveform[: count * size].reshape(count, size)
    power = torch.fft.rfft(pieces * torch.hann_window(size)).abs().square()[:, 1:]
    levels = nn.functional.adaptive_avg_pool1d(power[:, None], BANDS)[:, 0]
    decibel = 10 * (levels / levels.max()).clamp_min(FLOOR).log10().double()
    table = pd.DataFrame({"second": (torch.arange(count).double() + 0.5).mul(size / SAMPLE_RATE).numpy()})
    table["low"], table["high"] = pieces.amin(1).double().numpy(), pieces.amax(1).double().numpy()
    table[[f"band {band}" for band in range(1, BANDS + 1)]] = decibel.numpy().round(1)
    spelled = ["", *("_" if letter == " " else letter for letter in model.labels)]
    for exit, logits in outputs.items():
        sure, best = logits[0, :count].softmax(-1).max(-1)
        table[f"exit {exit}"] = [spelled[code] for code in best.tolist()]
        table[f"sure {exit}"] = sure.double().numpy().round(4)
    return table.round({"second": 4, "low": 3, "high": 3})


def same_as_last(frames: pd.DataFrame, exits: Iterable[int]) -> pd.DataFrame:
    """Return how often each exit spells what the last of `exits` spells: `exit, frames, share`.

    Only the frames count in which the last exit spells a character. `frames` is a table of `frames_of`.
    """
    *_, last = exits = list(exits)
    spoken = frames[frames[f"exit {last}"] != ""]
    shares = [(spoken[f"exit {exit}"] == spoken[f"exit {last}"]).mean() for exit in exits]
    return pd.DataFrame({"exit": exits, "frames": len(spoken), "share": shares})


def mixed(devices: Mapping[int, int], tiers: Iterable[int], g: float, layers: int = 12) -> pd.DataFrame:
    """Return what each tier contributes to each layer under Eq. (1), if all clients hold equally much data.

    Args:
        devices: number of clients by the depth that their device can afford.
        tiers: depths of the federation. A device takes the deepest that it can afford; without one it stays away.
        g: exponent of the depth in the weights.
        layers: layers of the backbone.

    Returns:
        One row per layer and tier that trains it: `layer, tier, clients, share, effective`. `effective` is the number
        of equally weighted clients whose average varies as much as that of the layer.
    """
    tiers = sorted(tiers)
    held = dict.fromkeys(tiers, 0)
    for depth, number in devices.items():
        if fits := [tier for tier in tiers if tier <= depth]:
            held[fits[-1]] += number
    rows = []
    for layer in range(1, layers + 1):
        weights = {tier: tier**g for tier in tiers if tier >= layer and held[tier]}
        total = sum(held[tier] * weight for tier, weight in weights.items())
        squares = sum(held[tier] * weight**2 for tier, weight in weights.items())
        rows += [
            (layer, tier, held[tier], held[tier] * weight / total, total**2 / squares)
            for tier, weight in weights.items()
        ]
    return pd.DataFrame(rows, columns=["layer", "tier", "clients", "share", "effective"])


def explore(draw: Callable[..., object], **controls: object) -> None:
    """Show `draw` with controls in JupyterLab. Under `fedexit run` nothing is shown: a figure stands for it.

    Args:
        draw: a function that shows something for the values of the controls.
        controls: for each argument of `draw` what `ipywidgets.interact` accepts: a range, a list of choices, a widget.

    Raises:
        FedexitError: ipywidgets is not installed.
    """
    if "FEDEXIT_OUT" in os.environ:
        print("run this notebook in JupyterLab to move the controls")
        return
    with extra("notebooks"):
        from ipywidgets import interact
    interact(draw, **controls)
