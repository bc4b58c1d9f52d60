"""Study the depth policy (notebook 17): calibration of memory, choices, a simulated fleet, and sentences on them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from fedexit.devices.policy import (
    Need,
    Policy,
    coverage,
    depth_for,
    largest_safe_exit,
    limit,
    outcomes_of_round,
    round_seconds,
)
from fedexit.devices.probe import ProbedClient, measured_memories
from fedexit.devices.profiles import MIB, Calibration, Profile
from fedexit.lab.wording import listed, percent
from fedexit.model.costs import memory
from fedexit.model.exits import MultiExitModel

Where = tuple[str, str]  # geometry and task


def needs_table(needs: Mapping[Where, Mapping[int, Need]]) -> pd.DataFrame:
    """Return the needs of a round by exit: `geometry, task, depth, memory_mib, sent_mib, gmacs`."""
    rows = [
        (*where, depth, need.memory / MIB, need.sent / MIB, need.macs / 1e9)
        for where, by_exit in needs.items()
        for depth, need in by_exit.items()
    ]
    return pd.DataFrame(rows, columns=["geometry", "task", "depth", "memory_mib", "sent_mib", "gmacs"])


def measured_peaks(
    models: Mapping[str, MultiExitModel], points: Sequence[tuple[str, int, float]], batch: int
) -> pd.DataFrame:
    """Measure the training memory of clients in fresh processes, with freed memory given back and left alone.

    Args:
        models: the model of each geometry.
        points: geometry, depth and seconds of the clips of each client.
        batch: clips per batch.

    Returns:
        Columns `geometry, depth, seconds, model_mib, measured_mib, left_alone_mib`.

    Raises:
        FedexitError: as `measured_memories`.
    """
    clients = [ProbedClient(name, depth, batch, seconds) for name, depth, seconds in points]
    both = (measured_memories(clients, plain_allocator) for plain_allocator in (False, True))
    rows = []
    for (name, depth, seconds), peak, left_alone in zip(points, *both, strict=True):
        predicted = memory(models[name], int(16_000 * seconds), batch, depth).training
        rows.append((name, depth, seconds, predicted / MIB, peak / MIB, left_alone / MIB))
    columns = ["geometry", "depth", "seconds", "model_mib", "measured_mib", "left_alone_mib"]
    return pd.DataFrame(rows, columns=columns)


def corrected(peaks: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """Return `measured_peaks` with `corrected_mib`, and as shares `too_low` (below 0: too high) and `kept`.

    `kept` is what the allocator keeps if it is left alone.
    """
    peaks = peaks.assign(corrected_mib=[calibration.corrected(m * MIB) / MIB for m in peaks["model_mib"]])
    peaks["too_low"] = 1 - peaks["corrected_mib"] / peaks["measured_mib"]
    peaks["kept"] = peaks["left_alone_mib"] / peaks["measured_mib"] - 1
    return peaks


def chosen_depths(policies: Mapping[Where, Policy], devices: Mapping[str, Profile]) -> pd.DataFrame:
    """Return the depth of each device by policy, what set it, and the seconds of its round.

    Returns:
        Columns `geometry, task, device, safe_exit, task_exit, depth, set_by, round_seconds`.
    """
    rows = []
    for where, policy in policies.items():
        for name, device in devices.items():
            chosen = depth_for(device, policy)
            seconds = round_seconds(policy.needs[chosen], device.device) if chosen else float("nan")
            safe = largest_safe_exit(device, policy)
            rows.append((*where, name, safe, policy.task_exit, chosen, limit(device, policy), seconds))
    columns = ["geometry", "task", "device", "safe_exit", "task_exit", "depth", "set_by", "round_seconds"]
    return pd.DataFrame(rows, columns=columns).astype({"safe_exit": "Int64", "depth": "Int64"})


def simulated(
    policies: Mapping[str, Policy], clients: Mapping[str, Profile], owner: Mapping[str, str], rounds: int, seed: int
) -> pd.DataFrame:
    """Return the outcome of each round for each client: `policy, round, client, device, chosen, done, why`.

    Args:
        policies: the policies by name.
        clients: the profile of each client.
        owner: the class of device of each client.
        rounds: number of rounds.
        seed: draws load, battery and faults.
    """
    rows = [
        (name, number, client, owner[client], *outcome)
        for name, policy in policies.items()
        for number in range(rounds)
        for client, outcome in outcomes_of_round(policy, clients, number, seed).items()
    ]
    return pd.DataFrame(rows, columns=["policy", "round", "client", "device", "chosen", "done", "why"])


def outcome_shares(history: pd.DataFrame, policies: Iterable[str], classes: Sequence[str]) -> pd.DataFrame:
    """Return the share of each outcome of `simulated` by policy and class of device, in the order of `classes`.

    Classes that the fleet lacks are left out.
    """
    shares = pd.crosstab([history["policy"], history["device"]], history["why"], normalize="index")
    shares = shares.reindex(pd.MultiIndex.from_product([policies, classes], names=["policy", "device"]))
    return shares.dropna().rename_axis(columns=None).reset_index()


def coverage_by_layer(history: pd.DataFrame, examples: int, layers: int) -> pd.DataFrame:
    """Return clients and effective clients of each layer: mean over rounds, and the limits of nine rounds of ten.

    Args:
        history: the rows of `simulated`.
        examples: clips of each client.
        layers: layers of the backbone.

    Returns:
        Columns `what, policy, layer, mean, low, high`, where `what` is `clients` or `effective`.
    """
    held = dict.fromkeys(history["client"], examples)
    parts = []
    for (policy, number), own in history.groupby(["policy", "round"], sort=False):
        done = own.dropna(subset=["done"]).set_index("client")["done"].astype(int).to_dict()
        parts.append(coverage(done, held, layers).assign(policy=policy, round=number))
    long = pd.concat(parts, ignore_index=True).melt(["policy", "round", "layer"], ["clients", "effective"], "what")
    values = long.groupby(["what", "policy", "layer"], sort=False)["value"]
    spread = values.agg(mean="mean", low=lambda v: v.quantile(0.05), high=lambda v: v.quantile(0.95))
    return spread.reset_index()


def margins_swept(
    policy: Policy, margins: Iterable[float], clients: Mapping[str, Profile], rounds: int, seed: int
) -> pd.DataFrame:
    """Simulate the same rounds with other margins: `margin, trained, out_of_memory, no_exit_fits, mean_depth`.

    All but the margin are means over clients and rounds; `mean_depth` counts clients without an update as 0.
    """
    rows = []
    for margin in margins:
        own = replace(policy, margin=margin)
        outcomes = [o for number in range(rounds) for o in outcomes_of_round(own, clients, number, seed).values()]
        done = [o.done for o in outcomes if o.done]
        counts = len(done), sum(o.why == "out of memory" for o in outcomes), sum(o.chosen is None for o in outcomes)
        rows.append((margin, *(count / len(outcomes) for count in counts), sum(done) / len(outcomes)))
    return pd.DataFrame(rows, columns=["margin", "trained", "out_of_memory", "no_exit_fits", "mean_depth"])


def choice_sentences(choices: pd.DataFrame) -> list[str]:
    """Return one sentence per geometry of `chosen_depths`, in Markdown: what set the depths, and what fits nowhere."""
    lines = []
    for name, own in choices.groupby("geometry", sort=False):
        nowhere = own["depth"].isna().groupby(own["device"], sort=False).all()
        out = list(nowhere[nowhere].index)
        lines.append(
            f"`{name}`: the device and not the task sets the depth in {(own['set_by'] != 'task').sum()} of {len(own)} "
            f"choices; no exit fits on {listed(out) if out else 'no device'}, whatever the task."
        )
    return lines


def fleet_sentences(
    peaks: pd.DataFrame, spread: pd.DataFrame, swept: pd.DataFrame, policy: Policy, where: Where, clients: int
) -> list[str]:
    """Return sentences on the calibration, the simulated fleet and the margin.

    Args:
        peaks: the rows of `corrected`.
        spread: the rows of `coverage_by_layer`, with the policies `static` and `dynamic, faults`.
        swept: the rows of `margins_swept`.
        policy: the policy of the simulation.
        where: its geometry and its task.
        clients: number of clients.
    """
    unseen = max(peaks.loc[peaks["seconds"] != 1, "too_low"].max(), 0)
    mean = spread[spread["what"] == "clients"].pivot(index="layer", columns="policy", values="mean")
    first, last = mean.loc[1], mean.loc[policy.task_exit]
    best = swept.loc[swept["mean_depth"].idxmax(), "margin"]
    delivers = f"For these invented faults the margin that delivers most layers is {percent(best)}"
    if best < policy.margin:
        delivers += f"; our default of {percent(policy.margin)} is larger: it also protects the device's owner from "
        delivers += "crashes, which the simulation does not count"
    return [
        f"The corrected model of memory is at most {percent(unseen, 1)} too low at clip lengths that its fit has not "
        f"seen; the margin is {percent(policy.margin)}.",
        f"In the simulated fleet ({', '.join(where)}, one seed) layer 1 is trained by {first['static']:.1f} of "
        f"{clients} clients and layer {policy.task_exit} by {last['static']:.1f}; with load, battery and faults by "
        f"{first['dynamic, faults']:.1f} and {last['dynamic, faults']:.1f}.",
        f"{delivers}.",
    ]
