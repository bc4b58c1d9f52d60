"""Run the rounds: sample clients, run their local rounds, aggregate by layer, evaluate every exit (paper, sec. 2)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from fedexit.data.batches import Example
from fedexit.federated.aggregation import check_exponent, make_aggregator
from fedexit.federated.checks import check_data, check_depths, check_run, try_parts
from fedexit.federated.clients import Client, LocalTraining
from fedexit.federated.fedra import round_of_drawn_layers
from fedexit.federated.ledger import client_costs, ledger_row
from fedexit.federated.local_heads import Heads, heads_in
from fedexit.federated.methods import Method, check_method, enlisted, everyone, find_method
from fedexit.federated.regime import Regime, as_average, check_regime, train_heads, update_average
from fedexit.federated.resuming import Depths, Kept, Plan, RoundState, continued, hash_of, identity_of, resumed, saved
from fedexit.federated.server import stepped
from fedexit.federated.workers import Round, Transport, Work, local_rounds
from fedexit.model.exits import MultiExitModel, check_trainable
from fedexit.model.metrics import all_rates, predict
from fedexit.support.checkpoints import owned_checkpoint
from fedexit.support.checks import listed, whole_number
from fedexit.support.errors import FedexitError
from fedexit.support.placement import Device, device_for
from fedexit.support.progress import progress
from fedexit.support.streams import numpy_stream

CURVE = ["round", "exit", "metric", "value", "n"]


@dataclass(frozen=True)
class Federation:
    """The result of `federate`.

    The ledger has a row per local round: `round, client, tier, depth, examples, loss`, the columns of `client_costs`,
    and `seconds` of wall time, the only column that differs between equal runs.
    """

    model: MultiExitModel  # the trained model, a copy of the given one; with the averaged weights of `Regime.average`
    table: pd.DataFrame  # errors of every exit on `dev`: `round, exit, metric, value, n`
    clients: pd.DataFrame  # the ledger: see above
    heads: Heads = field(default_factory=dict)  # heads that clients kept, by client (`local_heads`)
    last: dict[str, Tensor] = field(default_factory=dict)  # weights after the last round, if `model` is an average
    # errors of `model`, with the heads that a client kept, on its `Client.dev` at each exit up to L_i, after the last
    # round: `client, exit, metric, value, n`
    by_client: pd.DataFrame = field(default_factory=pd.DataFrame)

    def _repr_html_(self) -> str:
        """Return for a notebook how much was trained, and the errors at every exit after the last round."""
        last = self.table[self.table["round"] == self.table["round"].max()]
        rounds = self.clients["round"].max() if len(self.clients) else 0
        errors = last.pivot(index="metric", columns="exit", values="value").to_html(float_format="{:.3f}".format)
        return f"<p>{rounds} rounds, {len(self.clients)} local rounds; errors on dev:</p>{errors if len(last) else ''}"


def federate(
    model: MultiExitModel,
    clients: Sequence[Client],
    method: str | Method = "layerwise",
    rounds: int = 10,
    seed: int = 0,
    depth_exponent: float | None = None,
    fraction: float = 1.0,
    training: LocalTraining | None = None,
    dev: Sequence[Example] = (),
    evaluate_every: int = 1,
    checkpoint: str | Path | None = None,
    workers: int = 1,
    depths: Depths | None = None,
    regime: Regime | None = None,
    on_round: Callable[[int, MultiExitModel, pd.DataFrame], object] | None = None,
    threads: int = 1,
    device: Device | None = None,
    transport: Transport | None = None,
) -> Federation:
    """Fine-tune a copy of `model` with clients of mixed depth, and return it as `Federation.model`.

    In each round a `fraction` of the clients trains layers 1..L_i and the head of exit L_i from the global weights, and
    the server averages them by Eq. (1). Equal arguments give bit-identical results.

    Args:
        model: The global model before training. It does not change.
        clients: The clients; their names differ and their depths are exits of `model`.
        method: The name of an entry of `fedexit.federated.methods.METHODS`, or a `Method`.
        rounds: Number of rounds, >= 1; 0 as well after rounds of heads (`regime`), for a backbone that stays frozen.
        seed: Seed of all random streams, an integer.
        depth_exponent: g of Eq. (1); None takes the method's own.
        fraction: Share of the clients per round, in (0, 1]; at least one client is sampled.
        training: Options of local training.
        dev: Clips on which every exit is evaluated.
        evaluate_every: Rounds between evaluations. The start and the last round are always evaluated.
        checkpoint: A file that keeps the state after every round (with its ledger beside it, `.rows.jsonl`). A run
            that finds it resumes with bit-identical results. Only `rounds`, `workers`, `device` and `evaluate_every`
            may differ; other clips are recognised by their content.
        workers: Processes that train clients side by side, one thread each. Their number changes no result.
        depths: A function from the number of a round (from 1) to depths by client name that differ from the clients'
            own in that round, such as `fedexit.devices.policy.depths_of_round` or `drop_outs`. None as a depth means
            that the client is sampled and its update does not arrive. A round without any update changes no weight.
        regime: Heads first, falling rates, an averaged model; None leaves them out. Rounds of heads have numbers up to
            0 in the ledger. With falling rates a checkpoint resumes only with equal `rounds`.
        on_round: A function that is called after every round with its number, the global model and the table of errors
            so far, for example to log them. If it returns True, the federation stops there. It is called before the
            round is stored, so a resumed run calls it again for a round that was not stored.
        threads: Threads of torch in each process. Their number can change the last digits of a result.
        device: Where it trains, and the result lies: `auto`, `cpu`, `cuda` or `mps`; None: where `model` lies. On a GPU
            the last digits of results can differ.
        transport: Trains the clients elsewhere, where their clips are checked (`fedexit.flower.server.on_grid`). None
            trains them here. A client whose update does not arrive is absent from the round.

    Raises FedexitError before the first round for arguments out of range, clips that cannot be trained on (see
    `checks`), a method that needs another model, and a checkpoint that is damaged or of another run; later for a loss
    or an average that is not finite, and a worker that dies.

    Example:
        >>> result = federate(model, [Client("ann", clips, depth=3), Client("ben", more_clips, depth=12)], rounds=2)

        With `writer = torch.utils.tensorboard.SummaryWriter()`, log to TensorBoard and stop early:

        >>> def on_round(number, model, table):
        ...     for row in table[table["round"] == number].itertuples():
        ...         writer.add_scalar(f"{row.metric}/exit {row.exit}", row.value, number)
        ...     return table["value"].iloc[-1] < 0.05
        >>> federate(model, clients, rounds=100, dev=dev, on_round=on_round)
    """
    way, training, given = find_method(method), training or LocalTraining(), listed(clients, "clients", "Client")
    check_trainable(model)
    regime = regime or Regime()
    check_regime(regime, model)
    check_run(given, rounds, fraction, workers, evaluate_every, least=0 if regime.heads_rounds else 1)
    check_method(way)
    clients = enlisted(way, given)
    _check_method(model, way)
    check_depths(model, clients)
    exponent = check_exponent(way.depth_exponent if depth_exponent is None else depth_exponent)
    if not isinstance(training, LocalTraining):
        raise FedexitError(f"training must be a LocalTraining, not a {type(training).__name__}")
    for name, own in {"depths": depths, "on_round": on_round}.items():
        if not (own is None or callable(own)):
            raise FedexitError(f"{name} must be a function, not a {type(own).__name__}")
    place = device_for(model, device)
    check_data(model, () if transport else clients, dev, training, way.objective, place)
    threads = whole_number(threads, "threads", 1)
    plan = Plan(way, whole_number(seed, "seed"), exponent, float(fraction), training, rounds, regime, threads)
    try_parts(model, way)
    due = {number for number in range(rounds + 1) if number % evaluate_every == 0 or number == rounds}
    identity = identity_of(model, clients, dev, plan) if checkpoint is not None else {}
    model = copy.deepcopy(model).to(place)
    work = Work(training, way.objective, way.local_round)
    trainers = transport or partial(local_rounds, workers=workers, threads=threads)
    with owned_checkpoint(checkpoint), trainers(model, clients, work) as run:
        state, kept = resumed(model, checkpoint, identity)
        state = continued(state, rounds, due if len(dev) else set(), depths, Path(checkpoint or "").name)
        if regime.heads_rounds and not kept.ledger:
            state = _heads_first(model, clients, plan, state, kept, checkpoint, identity)
        if state.round in due - {row[0] for row in state.evaluations}:
            state = replace(state, evaluations=state.evaluations + _errors(model, kept, dev, state.round))
        for number in progress(range(state.round + 1, rounds + 1), f"{way.name}, seed {seed}"):
            drawn, hashes, rows = sample(clients, fraction, plan.seed, number), state.depths, len(kept.ledger)
            if depths is not None:
                changed = _depths_in(number, depths, given)
                drawn, hashes = _arriving(drawn, changed, model, way), [*hashes, hash_of(changed)]
            _train(number, drawn, plan, model, run, kept)
            errors = _errors(model, kept, dev, number) if number in due else []
            state = RoundState(number, state.evaluations + errors, hashes, state.ledger_bytes)
            answer = on_round and on_round(number, model, pd.DataFrame(state.evaluations, columns=CURVE))
            if checkpoint is not None:
                state = saved(state, kept, kept.ledger[rows:], model, checkpoint, identity)
            if isinstance(answer, bool | np.bool_) and answer:
                break
        table = pd.DataFrame(state.evaluations, columns=CURVE)
        last = {name: tensor.clone() for name, tensor in model.trainable_weights().items()} if kept.average else {}
        model.load_weights({**model.trainable_weights(), **kept.average})
        by_client = _by_client(model, clients, kept.heads)
    return Federation(model.eval(), table, pd.DataFrame(kept.ledger), kept.heads, last, by_client)


def _by_client(model: MultiExitModel, clients: Sequence[Client], heads: Heads) -> pd.DataFrame:
    """Return the table `Federation.by_client`."""
    parts = [pd.DataFrame(columns=["client", *CURVE[1:]])]
    for client in [client for client in clients if len(client.dev)]:
        own = heads.get(client.name)
        with as_average(model, {**model.trainable_weights(), **own} if own else {}):
            found = predict(model, client.dev, [exit for exit in model.exits if exit <= client.depth])
        parts.append(all_rates(found).assign(client=client.name))
    return pd.concat(parts[1:] or parts, ignore_index=True)[parts[0].columns]


def _heads_first(
    model: MultiExitModel,
    clients: Sequence[Client],
    plan: Plan,
    state: RoundState,
    kept: Kept,
    checkpoint: str | Path | None,
    identity: dict,
) -> RoundState:
    """Train the heads before round 1, and store them: a run that is interrupted meanwhile begins again."""
    sampled = partial(sample, clients, plan.fraction, plan.seed)
    kept.ledger.extend(train_heads(model, plan.regime, sampled, plan.training, plan.seed))
    return state if checkpoint is None else saved(state, kept, kept.ledger, model, checkpoint, identity)


def _errors(model: MultiExitModel, kept: Kept, dev: Sequence[Example], number: int) -> list[list]:
    """Return the errors after round `number` of the averaged model, or of the last one without an average."""
    with as_average(model, kept.average):
        return evaluated(model, dev, number)


def _train(number: int, drawn: Sequence[Client], plan: Plan, model: MultiExitModel, run: Round, kept: Kept) -> None:
    """Train the clients `drawn` in round `number`, average their updates, and load the new weights into `model`."""
    way, weights = plan.method, model.trainable_weights()
    if callable(way.rule) or way.server:  # copies, because parts of the user's own may keep or change them
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    server = make_aggregator(weights, way.rule, plan.depth_exponent, model.backbone.layers)
    drawn = [replace(client, own=kept.heads.get(client.name, {})) for client in drawn]
    share = plan.regime.share(number, plan.rounds)
    for client, update, report in run(drawn, (plan.seed, "round", number, "client"), share):
        server.add(update)
        if way.local_heads:
            kept.heads[client.name] = kept.heads.get(client.name, {}) | heads_in(update.weights)
        kind = client.name, client.depth
        if kind not in kept.costs:
            about = client.depth, report.lengths, plan.training, report.cached, way.objective
            kept.costs[kind] = client_costs(model, *about)
        kept.ledger.append(ledger_row(number, client, report, kept.costs[kind]))
    averages = server.result()
    model.load_weights(stepped(way.server, weights, averages, kept.moments) if way.server else averages)
    if plan.regime.average:
        update_average(kept.average, model.trainable_weights(), plan.regime.average)


def sample(clients: Sequence[Client], fraction: float, seed: int, number: int) -> list[Client]:
    """Sample a share `fraction` of the clients (at least one) for round `number`, without replacement."""
    count = max(1, round(fraction * len(clients)))
    drawn = numpy_stream(seed, "sampling", number).choice(len(clients), size=count, replace=False)
    return [clients[i] for i in sorted(drawn)]


def drop_outs(clients: Sequence[str], share: float, seed: int, number: int) -> dict[str, None]:
    """Return the clients whose updates do not arrive in round `number`: each name with probability `share`.

    For `federate`, as `depths=partial(drop_outs, names, share, seed)`. Raises FedexitError for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise FedexitError(f"the share of drop-outs must be in [0, 1], not {share}")
    return {name: None for name in clients if numpy_stream(seed, "drop-out", number, name).random() < share}


def evaluated(model: MultiExitModel, dev: Sequence[Example], number: int) -> list[list]:
    """Return the rows of `Federation.table` for round `number`."""
    rates = all_rates(predict(model, dev)) if len(dev) else pd.DataFrame()
    return [[number, int(row.exit), row.metric, float(row.value), int(row.n)] for row in rates.itertuples()]


def _check_method(model: MultiExitModel, way: Method) -> None:
    """Raise FedexitError when `model` does not fit the method."""
    if way.narrow:
        raise FedexitError(f"method {way.name} cuts width, not depth: run it by fedexit.lab.heterofl.federate_by_width")
    if way.shared_head and not model.shared_head:
        raise FedexitError(f"method {way.name} needs one head for all exits: make the model with shared_head=True")
    if way.local_round is round_of_drawn_layers and model.backbone.lora:
        raise FedexitError(f"method {way.name} must send the layers that it draws: train all weights, without LoRA")


def _depths_in(number: int, depths: Depths, clients: Sequence[Client]) -> dict[str, int | None]:
    """Return the depths of round `number` that differ from the clients' own."""
    found = depths(number)
    if not isinstance(found, Mapping):
        raise FedexitError(f"depths gave a {type(found).__name__} for round {number}; give depths by client name")
    if unknown := set(found) - {client.name for client in clients}:
        raise FedexitError(f"depths of round {number} name {min(unknown, key=str)!r}, which is not a client")
    return dict(found)


def _arriving(
    drawn: Sequence[Client], depths: Mapping[str, int | None], model: MultiExitModel, way: Method
) -> list[Client]:
    """Return the clients of `drawn` whose updates arrive, at their depths of the round."""
    if way.enlist is not everyone and set(depths.values()) - {None}:
        raise FedexitError(
            f"method {way.name} sets the depths of its clients; those of a round may only be None (nothing arrives)"
        )
    found = [(client, depths.get(client.name, client.depth)) for client in drawn]
    arriving = [replace(client, depth=depth) for client, depth in found if depth is not None]
    check_depths(model, arriving)
    return arriving
