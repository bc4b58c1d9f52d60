"""The round loop: sample clients, run their local rounds, aggregate by layer, evaluate every exit (paper, sec. 2)."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from torch.utils.data import ConcatDataset

from fedexit.data.batches import Example
from fedexit.federated.aggregation import MOMENTS, make_aggregator
from fedexit.federated.clients import Client, LocalTraining
from fedexit.federated.ledger import client_costs, ledger_row
from fedexit.federated.local_heads import Heads, heads_in, packed, unpacked
from fedexit.federated.methods import Method, everyone, find_method
from fedexit.federated.workers import local_rounds
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import all_rates, predict
from fedexit.support.checkpoints import load_checkpoint, options_set, save_checkpoint
from fedexit.support.errors import FedexitError
from fedexit.support.progress import progress
from fedexit.support.streams import numpy_stream

CURVE = ["round", "exit", "metric", "value", "n"]


@dataclass(frozen=True)
class Federation:
    """What `federate` gives back.

    model: the global model; table: errors of every exit on `dev` per round (`round, exit, metric, value, n`); clients:
    the ledger, one row per local round: `round, client, tier, depth, examples, loss`, the columns of `client_costs`
    (see there), and `seconds` of wall time, the only column that is not the same each time; heads: those that clients
    kept, by client, where the method lets them (`fedexit.federated.local_heads`).
    """

    model: MultiExitModel
    table: pd.DataFrame
    clients: pd.DataFrame
    heads: Heads = field(default_factory=dict)


def federate(
    model: MultiExitModel,
    clients: Sequence[Client],
    method: str = "layerwise",
    rounds: int = 10,
    seed: int = 0,
    depth_exponent: float | None = None,
    fraction: float = 1.0,
    training: LocalTraining | None = None,
    dev: Sequence[Example] = (),
    evaluate_every: int = 1,
    checkpoint: str | Path | None = None,
    workers: int = 1,
    depths: Callable[[int], Mapping[str, int | None]] | None = None,
) -> Federation:
    """Federated fine-tuning of `model` (changed in place) with clients of mixed depth.

    Each round a `fraction` of the clients trains its layers 1..L_i and the head of exit L_i from the global weights,
    and the server averages them by Eq. (1); `method`, the name of an entry of `fedexit.federated.methods.METHODS`,
    may change any
    of it. What it sets of `training` stands, whatever is given; a `depth_exponent` stands in place of its own. Every
    exit is evaluated on `dev` before the first round, every `evaluate_every` rounds and after the last. `checkpoint`: a
    file that keeps the state after every round; a run that finds it goes on from there and ends with the same bits as
    one that was never stopped; `rounds` alone may grow, and other clips are told by their targets. `workers`: processes
    that train a round's clients side by side, with one thread each; their number changes no bit. `depths`: from the
    number of a round (1 is the first) to the depths of clients, by name, that are not their own in it, as a depth
    policy (`fedexit.devices.policy.depths_of_round`) or `drop_outs` set them; None says that the client is drawn and
    nothing of it arrives. A round in which nothing arrives changes no weight.
    Raises FedexitError for an unknown method, one that needs another model, an empty federation, a depth that is no
    exit, one by `depths` where the method sets its clients' own, bad numbers, a checkpoint of another run and workers
    that cannot work (see `local_rounds`).
    """
    way = find_method(method)
    if way.narrow:
        raise FedexitError(
            f"method {method} cuts width, not depth: run it by fedexit.federated.heterofl.federate_by_width"
        )
    if way.shared_head and not model.shared_head:
        raise FedexitError(f"method {method} needs one head for all exits: make the model with shared_head=True")
    clients, training = way.enlist(clients), way.training(training or LocalTraining())
    if training.random_layers and model.backbone.lora:
        raise FedexitError(f"method {method} would have to send the layers that it draws: train all weights, not LoRA")
    depth_exponent = way.depth_exponent if depth_exponent is None else depth_exponent
    check_run(clients, rounds, fraction, workers, evaluate_every)
    _check_depths(model, clients)
    settings = method, seed, depth_exponent, fraction, training
    identity = _identity(model, clients, dev, *settings) if checkpoint is not None else None
    state, moments = {"round": 0, "evaluations": [], "clients": [], "depths": []}, {}
    heads: Heads = {}
    if found := load_checkpoint(checkpoint, identity):
        state, tensors = found
        tensors = {name: tensor.to(next(model.parameters()).device) for name, tensor in tensors.items()}
        model.load_weights(tensors)
        heads = unpacked(tensors)
        moments = {name: tensor for name, tensor in tensors.items() if name.startswith(MOMENTS)}
        if state.setdefault("depths", []) != [
            dict(depths(number)) for number in range(1, state["round"] + 1) if depths
        ]:
            raise FedexitError(f"checkpoint {Path(checkpoint).name} has other depths in its rounds; name another file")
    if state["round"] > rounds:
        raise FedexitError(f"checkpoint {Path(checkpoint).name} holds {state['round']} rounds already, not {rounds}")
    due = {number for number in range(rounds + 1) if number % evaluate_every == 0 or number == rounds}
    # a shorter run evaluated its last round, where this one need not
    state["evaluations"] = [row for row in state["evaluations"] if row[0] in due]
    lacking = sorted(due - {row[0] for row in state["evaluations"]})
    if len(dev) and lacking and lacking[0] < state["round"]:
        raise FedexitError(
            f"checkpoint {Path(checkpoint).name} has no errors after round {lacking[0]}; take evaluate_every as it "
            "was, or name another file"
        )
    costs: dict[tuple[str, int], dict] = {}  # of a client's round, which are the same in each
    with local_rounds(model, clients, training, workers) as run:
        if state["round"] in lacking:
            state["evaluations"] += evaluated(model, dev, state["round"])
        for number in progress(range(state["round"] + 1, rounds + 1), f"{method}, seed {seed}"):
            weights = model.trainable_weights()
            aggregator = make_aggregator(weights, way.rule, depth_exponent)
            drawn = sample(clients, fraction, seed, number)
            if depths is not None:
                state["depths"].append(dict(depths(number)))
                drawn = _that_arrive(drawn, state["depths"][-1], model, way)
            drawn = [replace(client, own=heads.get(client.name, {})) for client in drawn]
            for client, update, told in run(drawn, (seed, "round", number, "client")):
                aggregator.add(update)
                if way.local_heads:
                    heads[client.name] = heads.get(client.name, {}) | heads_in(update.weights)
                kind = client.name, client.depth
                if kind not in costs:
                    costs[kind] = client_costs(model, client.depth, told["lengths"], training, told["cached"])
                state["clients"].append(ledger_row(number, client, told, costs[kind]))
            averages = aggregator.result()
            model.load_weights(way.server.step(weights, averages, moments) if way.server else averages)
            if number in due:
                state["evaluations"] += evaluated(model, dev, number)
            state["round"] = number
            if checkpoint is not None:
                save_checkpoint(checkpoint, identity, state, {**model.trainable_weights(), **moments, **packed(heads)})
    table = pd.DataFrame(state["evaluations"], columns=CURVE)
    return Federation(model.eval(), table, pd.DataFrame(state["clients"]), heads)


def sample(clients: Sequence[Client], fraction: float, seed: int, number: int) -> list[Client]:
    """The clients of round `number`: a share `fraction` (at least one) drawn without replacement, in listed order."""
    count = max(1, round(fraction * len(clients)))
    drawn = numpy_stream(seed, "sampling", number).choice(len(clients), size=count, replace=False)
    return [clients[i] for i in sorted(drawn)]


def drop_outs(clients: Sequence[str], share: float, seed: int, number: int) -> dict[str, None]:
    """Those of the `clients`, by name, of whom nothing arrives in round `number`: each with probability `share`.

    For `federate`, as `depths=partial(drop_outs, names, share, seed)`. Raises FedexitError for what is no probability.
    """
    if not 0 <= share <= 1:
        raise FedexitError(f"the share of drop-outs must be in [0, 1], not {share}")
    return {name: None for name in clients if numpy_stream(seed, "drop-out", number, name).random() < share}


def _that_arrive(
    drawn: Sequence[Client], depths: Mapping[str, int | None], model: MultiExitModel, way: Method
) -> list[Client]:
    """The `drawn` clients at their depths of the round, without those of whom nothing arrives."""
    if way.enlist is not everyone and set(depths.values()) - {None}:
        raise FedexitError(
            f"method {way.name} sets the depths of its clients; those of a round may only be None (nothing arrives)"
        )
    there = [client for client in drawn if depths.get(client.name, client.depth) is not None]
    there = [replace(client, depth=depths.get(client.name, client.depth)) for client in there]
    _check_depths(model, there)
    return there


def evaluated(model: MultiExitModel, dev: Sequence[Example], number: int) -> list[list]:
    """Lines of `Federation.table` after round `number`."""
    if not len(dev):
        return []
    rates = all_rates(predict(model, dev))
    return [[number, int(row.exit), row.metric, float(row.value), int(row.n)] for row in rates.itertuples()]


def check_run(
    clients: Sequence[Client], rounds: int, fraction: float, workers: int = 1, evaluate_every: int = 1
) -> None:
    """Raise FedexitError for an empty federation, names that are not all different and bad numbers."""
    if not clients:
        raise FedexitError("a federation needs at least one client; the list is empty")
    names = [client.name for client in clients]
    if len(set(names)) < len(names):
        raise FedexitError(f"client {next(n for n in names if names.count(n) > 1)} is listed twice; names must differ")
    if min(rounds, workers, evaluate_every) < 1 or not 0 < fraction <= 1:
        raise FedexitError(
            "rounds, workers and evaluate_every must be >= 1 and fraction in (0, 1], not "
            f"{rounds}, {workers}, {evaluate_every} and {fraction}"
        )


def _check_depths(model: MultiExitModel, clients: Sequence[Client]) -> None:
    for client in clients:
        if client.depth not in model.exits:
            known = ", ".join(map(str, model.exits))
            raise FedexitError(f"client {client.name} asks for exit {client.depth}; the model has {known}")


def _identity(model: MultiExitModel, clients: Sequence[Client], dev: Sequence[Example], *settings: object) -> dict:
    """What must be equal for a checkpoint to be this run's: start, settings, clients, dev (but rounds may grow).

    Clips count by their targets, in their order: these tell other clips, and other clients' clips, without a sound.
    """
    *plain, training = settings
    roster = [[client.name, client.tier, client.depth, _digest(client.data)] for client in clients]
    known = {"start": model.checksum(), "settings": [*plain, options_set(training)], "clients": roster}
    return {**known, "dev": _digest(dev)}


def _digest(data: Sequence[Example]) -> str:
    return hashlib.sha256(repr(_targets(data)).encode()).hexdigest()[:16]


def _targets(data: Sequence[Example]) -> list:
    """All targets; no clip is decoded where the data list them."""
    if isinstance(data, ConcatDataset):
        return [target for part in data.datasets for target in _targets(part)]
    return data.targets if hasattr(data, "targets") else [target for _, target in data]
