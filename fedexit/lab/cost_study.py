"""Study what depth costs (notebook 12): time of a step, measured memory, savings, and the clock of a federation."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from fedexit.data.batches import Example, normalised
from fedexit.devices.probe import ProbedClient, measured_memories, step_seconds
from fedexit.devices.profiles import MIB
from fedexit.lab.wording import counted, percent
from fedexit.model.exits import MultiExitModel
from fedexit.support.streams import seeded

WHERE = ["geometry", "clip_seconds"]
CELL = ["arm", "seed"]


def noise_batches(model: MultiExitModel, samples: int, batch: int, seed: int) -> dict[str, list[Example]]:
    """Return a batch of noise as waveforms (`convolved`), and as the output of the convolutions (`cached`)."""
    with seeded(seed, "noise"):
        waveforms: list[Example] = [(torch.randn(samples), 0) for _ in range(batch)]
    lengths = torch.tensor([samples])
    features: list[Example] = [
        (model.backbone.convolve(normalised(wave)[None], lengths)[0], 0) for wave, _ in waveforms
    ]
    return {"convolved": waveforms, "cached": features}


def step_times(
    model: MultiExitModel, depths: Sequence[int], batches: Mapping[str, Sequence[Example]], repetitions: int
) -> pd.DataFrame:
    """Measure the seconds of a training step by depth, on one thread: `kind, depth, seconds, share` (of the deepest).

    The depths take turns, so that a slow moment of the machine affects all of them. The median counts.

    Args:
        model: the full model.
        depths: depths of the clients, shallow first.
        batches: a batch of each kind (`noise_batches`).
        repetitions: number of turns.
    """
    rows = [
        (kind, depth, step_seconds(model, depth, batch))
        for _ in range(repetitions)
        for depth in depths
        for kind, batch in batches.items()
    ]
    steps = pd.DataFrame(rows, columns=["kind", "depth", "seconds"]).groupby(["kind", "depth"]).median().reset_index()
    return steps.assign(share=steps["seconds"] / steps.groupby("kind")["seconds"].transform("last"))


def beside_measured(held: pd.DataFrame, backbone: str, seconds: Sequence[float], batch: int) -> pd.DataFrame:
    """Measure the memory of clients in fresh processes, beside that of the model of memory.

    Args:
        held: `geometry, clip_seconds, depth, forward, training` by the model, in MiB.
        backbone: the geometry that is measured.
        seconds: lengths of the clips that are measured, all of them in `held`.
        batch: clips per batch.

    Returns:
        Columns `geometry, clip_seconds, depth, mode, measured_mib, model_mib, model_over_measured`.

    Raises:
        FedexitError: as `measured_memories`.
    """
    depths = sorted(held["depth"].unique().tolist())
    clients = [
        ProbedClient(backbone, depth, batch, length, mode)
        for length in seconds
        for depth in depths
        for mode in ("forward", "training")
    ]
    peaks = measured_memories(clients)
    rows = [(c.backbone, c.seconds, c.depth, c.mode, peak / MIB) for c, peak in zip(clients, peaks, strict=True)]
    measured = pd.DataFrame(rows, columns=[*WHERE, "depth", "mode", "measured_mib"])
    expected = held.melt([*WHERE, "depth"], ["forward", "training"], "mode", "model_mib")
    measured = measured.merge(expected, on=[*WHERE, "depth", "mode"])
    return measured.assign(model_over_measured=measured["model_mib"] / measured["measured_mib"])


def shares_saved(table3: pd.DataFrame, held: pd.DataFrame, shallow: int, deep: int) -> pd.DataFrame:
    """Return the share of memory that depth `shallow` saves against `deep`: `source, of, saved`.

    Args:
        table3: the paper's `task, depth, memory_mb`.
        held: `geometry, clip_seconds, depth, forward, training` by the model of memory.
        shallow: the depth that saves memory.
        deep: the depth that it is compared with.
    """
    theirs = table3.pivot_table(index="task", columns="depth", values="memory_mb")
    rows = [("published", task, 1 - row[shallow] / row[deep]) for task, row in theirs.iterrows()]
    for kind in ("forward", "training"):
        for (name, seconds), own in held.groupby(WHERE, sort=False):
            by_depth = own.set_index("depth")[kind]
            rows.append((f"{kind}, model", f"{name}, {seconds:g} s", 1 - by_depth[shallow] / by_depth[deep]))
    return pd.DataFrame(rows, columns=["source", "of", "saved"])


def clock_of(timed: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how long rounds and federations last, from the rows of `fedexit.devices.fleet.on_devices`.

    Args:
        timed: a row per client and round, with `arm, seed, round, device_seconds, idle_seconds`.

    Returns:
        `minutes` since the start by `arm, seed, round` (as index), and for each `arm, seed` the `minutes` of the whole
        federation, `heads_minutes` (the rounds up to 0) and `idle_share`, the share of time that devices wait.
    """
    rounds = timed.groupby([*CELL, "round"]).agg(
        length=("device_seconds", "max"), busy=("device_seconds", "sum"), idle=("idle_seconds", "sum")
    )
    rounds["minutes"] = rounds.groupby(CELL)["length"].cumsum() / 60
    totals = rounds.groupby(CELL).agg(minutes=("minutes", "last"), busy=("busy", "sum"), idle=("idle", "sum"))
    totals["heads_minutes"] = rounds.query("round <= 0").groupby(CELL)["minutes"].last()
    totals["idle_share"] = totals["idle"] / (totals["idle"] + totals["busy"])
    return rounds, totals.drop(columns=["busy", "idle"]).reset_index()


def memory_sentences(held: pd.DataFrame, savings: pd.DataFrame, spread: float, depths: Sequence[int]) -> list[str]:
    """Return sentences on memory: training against a forward pass, what depth saves, and the paper's Table 3.

    Args:
        held: `geometry, depth, forward, training`; the first geometry is named.
        savings: the rows of `shares_saved`.
        spread: largest spread of what Table 3 leaves after the weights, in MiB.
        depths: the depths, shallow first.
    """
    first = held["geometry"].iloc[0]
    ratio = (held["training"] / held["forward"])[held["geometry"] == first]
    ours = savings["of"].str.startswith(f"{first}, ")
    span = savings[ours | (savings["source"] == "published")].groupby("source")["saved"].agg(["min", "max"])
    spans = {kind: f"{100 * row['min']:.0f} to {percent(row['max'])}" for kind, row in span.iterrows()}
    return [
        f"By our model of memory, training `{first}` takes {ratio.min():.1f} to {ratio.max():.1f} times the memory of "
        "a forward pass.",
        f"For `{first}`, depth {depths[0]} in place of {depths[-1]} saves {spans['training, model']} of the memory of "
        f"training and {spans['forward, model']} of that of a forward pass, by our model; the paper's Table 3 says "
        f"{spans['published']}.",
        f"The paper's Table 3 is the weights of the cut model plus a constant of the task, to within {spread:.1f} MiB.",
    ]


def clock_sentences(totals: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return one sentence per pair of arms on how long they last, from the totals of `clock_of`."""
    mean = totals.groupby("arm")[["minutes", "idle_share"]].mean()
    return [
        f"At the assumed speeds, *keyword* with **{arm}** lasts {mean.loc[arm, 'minutes']:.1f} simulated minutes, "
        f"against {mean.loc[other, 'minutes']:.1f} with **{other}** ({counted(totals['seed'].nunique(), 'seed')}); "
        f"with **{arm}**, devices are idle for {percent(mean.loc[arm, 'idle_share'])} of the time."
        for arm, other in pairs
    ]
