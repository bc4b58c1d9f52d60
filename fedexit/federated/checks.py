"""Check a federation before its first round: numbers, clients, clips and memory."""

import numbers
from collections.abc import Sequence

from fedexit.data.batches import Example
from fedexit.federated.aggregation import Update, aggregate
from fedexit.federated.clients import Client, LocalTraining
from fedexit.federated.ledger import client_costs
from fedexit.federated.methods import Method
from fedexit.federated.objectives import Objective
from fedexit.federated.server import FedAdam, stepped
from fedexit.model.exits import MultiExitModel
from fedexit.support.checks import trial_copy, whole_number
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.placement import Device, check_memory, device_for, in_words


def check_run(
    clients: Sequence[Client], rounds: int, fraction: float, workers: int = 1, evaluate_every: int = 1, least: int = 1
) -> None:
    """Raise FedexitError for an empty federation, bad names, `rounds` below `least` and other numbers out of range."""
    if not clients:
        raise FedexitError("a federation needs at least one client; the list is empty")
    for client in clients:
        if not isinstance(client, Client):
            raise FedexitError(f"clients must be a list of Client, not of {type(client).__name__}")
        if not isinstance(client.name, str) or not client.name or not isinstance(client.tier, str):
            found = f"{client.name!r} and {client.tier!r}"
            raise FedexitError(f"a client's name and tier must be texts, and the name not empty; they are {found}")
        if any("\ud800" <= letter <= "\udfff" for letter in client.name + client.tier):
            raise FedexitError(f"name {client.name!r} or tier {client.tier!r} is not valid Unicode; rename the client")
    names = [client.name for client in clients]
    if len(set(names)) < len(names):
        raise FedexitError(f"client {next(n for n in names if names.count(n) > 1)} is listed twice; names must differ")
    for name, n, low in (("rounds", rounds, least), ("workers", workers, 1), ("evaluate_every", evaluate_every, 1)):
        whole_number(n, name, low)
    if not isinstance(fraction, numbers.Real) or not 0 < fraction <= 1:
        raise FedexitError(f"fraction must be in (0, 1], not {fraction}")


def check_depths(model: MultiExitModel, clients: Sequence[Client]) -> None:
    """Raise FedexitError for a client whose depth is not an exit of `model`."""
    for client in clients:
        whole_number(client.depth, f"depth of client {client.name}", 1)
        if client.depth not in model.exits:
            known = ", ".join(map(str, model.exits))
            raise FedexitError(f"client {client.name} asks for exit {client.depth}; the model has {known}")


def try_parts(model: MultiExitModel, way: Method) -> None:
    """Call a rule and a server of the user's own once, on copies of the weights of `model` and of the parts.

    Raises FedexitError when one of them fails or does not keep its contract.
    """
    own_server = way.server is not None and not isinstance(way.server, FedAdam)
    if not own_server and not callable(way.rule):
        return
    weights, averages = ({name: one.clone() for name, one in model.trainable_weights().items()} for _ in range(2))
    try:
        if callable(way.rule):
            aggregate(weights, 2 * [Update(averages, 1, model.backbone.layers)], trial_copy(way.rule))
        if own_server:
            stepped(trial_copy(way.server), weights, averages, {})
    except Exception as error:  # of any code
        raise FedexitError(
            f"method {way.name}, on trial: {type(error).__name__}: {first_line(error)}; see the contracts in "
            "fedexit.federated.aggregation.aggregate and fedexit.federated.server"
        ) from error


def check_data(
    model: MultiExitModel,
    clients: Sequence[Client],
    dev: Sequence[Example],
    training: LocalTraining,
    objective: Objective,
    device: Device | None = None,
) -> None:
    """Check every clip and target of `clients` and `dev`, and the memory of the largest batch at each depth.

    Clips of a corpus and stored features are checked by their lengths; other clips are read once. Raises FedexitError
    for a client without clips, a clip or target out of range (see `check_example`), a clip shorter than one frame, a
    text too long for its clip (CTC), and a batch that needs more memory than is free on `device`, or where `model` is.
    """
    longest: dict[tuple[int, int], tuple[int, Client, bool]] = {}  # by depth and size of a batch
    for client in clients:
        lengths, cached = model.check_clips(client.data, f"client {client.name}", spells=True)
        if not lengths:
            raise FedexitError(f"client {client.name} has no clips; leave it out of the federation")
        kind = client.depth, min(training.batch_size, len(lengths))
        if kind not in longest or max(lengths) > longest[kind][0]:
            longest[kind] = max(lengths), client, cached
        model.check_clips(client.dev, f"client {client.name}, dev")
    model.check_clips(dev, "dev")
    for (depth, size), (length, client, cached) in longest.items():
        need = client_costs(model, depth, [length] * size, training, cached, objective)["memory_training"]
        check_memory(need, device_for(model, device), f"client {client.name}", in_words(size, length, cached), depth)
