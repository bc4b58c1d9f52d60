"""List the methods that are compared: each entry names its changes to the paper's round, and their source.

An entry may change who takes part and how deep, the loss of a client, the heads, the average of the server and the step
that it takes towards the average. Everything else is as in the paper: every client at its own depth, the loss at its
last exit, one head per exit, and the average by Eq. (1) as the new weights.

A `Method` of your own goes to `federate` as it is, or by name once it is in `METHODS`. See `Method`.

With LoRA (`fedexit.model.lora`) clients train, send and average adapters instead of all weights. Every method but FedRA
works with it.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fedexit.federated.aggregation import RULES, Rule, check_exponent
from fedexit.federated.clients import Client, LocalRound, local_round
from fedexit.federated.fedra import round_of_drawn_layers
from fedexit.federated.objectives import Objective
from fedexit.federated.server import FedAdam, Server
from fedexit.support.errors import FedexitError


def everyone(clients: Sequence[Client]) -> Sequence[Client]:
    """Return every client at its own depth."""
    return clients


def one_depth(clients: Sequence[Client]) -> Sequence[Client]:
    """Return every client. Raise FedexitError when their depths differ."""
    depths = sorted({client.depth for client in clients})
    if len(depths) > 1:
        raise FedexitError(f"homogeneous clients have one depth, not {', '.join(map(str, depths))}; give all the same")
    return clients


def deepest_tier(clients: Sequence[Client]) -> Sequence[Client]:
    """Return only the clients of the greatest depth."""
    deepest = max((client.depth for client in clients), default=0)
    return [client for client in clients if client.depth == deepest]


def all_shallow(clients: Sequence[Client]) -> Sequence[Client]:
    """Return every client at the smallest depth of any."""
    least = min((client.depth for client in clients), default=0)
    return [replace(client, depth=least) for client in clients]


def all_deepest(clients: Sequence[Client]) -> Sequence[Client]:
    """Return every client at the greatest depth of any."""
    greatest = max((client.depth for client in clients), default=0)
    return [replace(client, depth=greatest) for client in clients]


PAPERS_LOSS = Objective()


@dataclass(frozen=True)
class Method:
    """One method of federated training. `federate` checks its parts, and tries an own rule and server on copies.

    With several workers, `local_round` must be defined in a module or script, because processes load it by its name.

    Example:
        >>> mine = Method("mine", rule="masked", objective=Objective(proximal=0.1))
        >>> federate(model, clients, method=mine)
    """

    name: str  # the name by which `federate` knows it
    source: str = ""
    changes: str = ""  # the difference from the paper's method in one line
    rule: str | Rule = "layerwise"  # the rule of the server's average, or your own (`aggregation.aggregate`)
    depth_exponent: float = 1.0  # g of Eq. (1)
    enlist: Callable[[Sequence[Client]], Sequence[Client]] = everyone  # returns the participants, with depths
    objective: Objective = PAPERS_LOSS
    local_round: LocalRound = local_round  # has the arguments and results of `clients.local_round`
    server: Server | None = None  # its step towards the average (`server`); None: the average itself
    shared_head: bool = False  # one head for all exits
    local_heads: bool = False  # a client keeps its head; new clients get the average
    narrow: bool = False  # narrow models instead of shallow ones: see `heterofl`
    ranked: bool = False  # narrow models keep the channels, heads and units of the largest norm, not the first

    def exits(self, depths: Sequence[int]) -> list[int]:
        """Return the exits that the model of this method needs when clients have these `depths`."""
        return sorted({client.depth for client in self.enlist([Client("", (), depth) for depth in depths])})


PAPER, KIM = "Guo et al. 2026", "DepthFL, Kim et al. 2023"
ALL, MUTUAL = Objective("all"), Objective("all", "mutual")
SELF, BY_DEPTH = Objective("all", "deepest"), Objective("depth-weighted")
PROXIMAL = Objective(proximal=0.01)  # Li et al. use 0.001 to 1, by task
_ENTRIES = [
    # who takes part and how deep
    Method("homogeneous", f"{PAPER}, sec. 3", "all clients at one depth: FedAvg", "masked", enlist=one_depth),
    Method("exclusive", f"{KIM}, its baseline", "only the deepest tier takes part", "masked", enlist=deepest_tier),
    Method("all-shallow", "ours, a baseline", "all clients at the smallest depth", "masked", enlist=all_shallow),
    Method(
        "heterofl", "HeteroFL, Diao et al. 2021", "weak clients train narrow layers; plain mean",
        "count", enlist=all_deepest, narrow=True,
    ),
    Method(
        "heterofl-ranked", "HeteroFL, channels by norm (ours)", "weak clients train the strongest channels; plain mean",
        "count", enlist=all_deepest, narrow=True, ranked=True,
    ),
    # the average of the server
    Method("stale", f"{PAPER}, as we read its FedAvg", "n_i over whole models, with untrained layers", "stale"),
    Method("stale-g1", "ours, for the ablation", "n_i L_i over whole models, with untrained layers", "unmasked"),
    Method("masked", "ReeFL, Lee et al. 2024", "n_i over the clients that trained a layer", "masked"),
    Method("layerwise", f"{PAPER}, Eq. (1)", "n_i L_i over the clients that trained a layer"),
    *(
        Method(f"layerwise-g{g:g}", f"ours, after {PAPER}", f"n_i L_i^{g:g} in Eq. (1)", depth_exponent=g)
        for g in (-1.0, 0.5, 2.0)
    ),
    Method("count", f"{KIM}; ScaleFL; FedRA", "every client that trained a layer counts the same", "count"),
    Method("inclusive", "InclusiveFL, Liu et al. 2022", "steps of deeper tiers teach shallower ones", "inclusive"),
    # the loss of a client
    Method("layerwise-all", "Fed-EE, Ali et al. 2023", "loss at all exits up to L_i", objective=ALL),
    Method("masked-all", "ReeFL, without its teacher", "n_i; loss at all exits up to L_i", "masked", objective=ALL),
    Method("layerwise-by-depth", "ScaleFL, Ilhan et al. 2023", "all exits, the j-th with weight j", objective=BY_DEPTH),
    Method("layerwise-mutual", KIM, "loss at all exits, each taught by the others", objective=MUTUAL),
    Method("layerwise-self", "ScaleFL, Ilhan et al. 2023", "loss at all exits, taught by the last", objective=SELF),
    Method("depthfl", f"{KIM}, without FedDyn and ramp", "exits teach each other; mean", "count", objective=MUTUAL),
    Method(
        "scalefl", "Ilhan et al. 2023, its split of depth", "losses weighted by depth, taught by the last; plain mean",
        "count", objective=Objective("depth-weighted", "deepest", strength=0.05, temperature=3.0),
    ),
    Method("fedprox", "Li et al. 2020", "n_i; clients stay near the global weights", "masked", objective=PROXIMAL),
    Method("layerwise-prox", "Li et al. 2020", "clients stay near the global weights", objective=PROXIMAL),
    # the step of the server
    Method("fedadam", "Reddi et al. 2021", "n_i; a step of Adam towards the average", "masked", server=FedAdam()),
    Method("layerwise-adam", "Reddi et al. 2021", "a step of Adam towards the average", server=FedAdam()),
    # the heads
    Method("masked-shared", "ours, an open choice", "n_i; one head for all exits", "masked", shared_head=True),
    Method("layerwise-shared", "ours, an open choice", "one head for all exits", shared_head=True),
    Method("layerwise-local", "FedPer, Arivazhagan et al. 2019", "every client keeps its own head", local_heads=True),
    Method(
        "fedra", "Su et al. 2024, without LoRA", "L_i random layers; one head; plain mean",
        "count", local_round=round_of_drawn_layers, shared_head=True,
    ),
]  # fmt: skip
METHODS: dict[str, Method] = {method.name: method for method in _ENTRIES}
"""Methods by name, for `federate(..., method=NAME)`."""


def find_method(method: str | Method) -> Method:
    """Return the entry named `method`, or `method` itself if it is a `Method`. Raise FedexitError for other names."""
    if isinstance(method, Method):
        return method
    if method not in list(METHODS):
        raise FedexitError(f"unknown method {method!r}; known: {', '.join(METHODS)}; or give a Method")
    return METHODS[method]


def check_method(way: Method) -> None:
    """Raise FedexitError for a part of a method that has another type than `Method` says."""
    if not isinstance(way.name, str) or not way.name:
        raise FedexitError(f"the name of a method is {way.name!r}; give a text")
    check_exponent(way.depth_exponent)
    if not callable(way.rule) and way.rule not in RULES:
        raise FedexitError(f"method {way.name}: unknown rule {way.rule!r}; known: {', '.join(RULES)}; or a function")
    parts = {
        "enlist": (callable(way.enlist), "a function from the clients to the participants"),
        "objective": (isinstance(way.objective, Objective), "an Objective"),
        "local_round": (_takes(way.local_round, 6), "a function with the arguments of clients.local_round"),
        "server": (way.server is None or _takes(getattr(way.server, "step", None), 3), _STEP),
    }
    for part, (fits, wanted) in parts.items():
        if not fits:
            raise FedexitError(f"method {way.name}: its {part} is {getattr(way, part)!r:.80}; give {wanted}")


_STEP = "an object with step(weights, averages, moments), see fedexit.federated.server"


def _takes(function: object, arguments: int) -> bool:
    """Return whether a function can be called with that number of arguments."""
    if not callable(function):
        return False
    with suppress(ValueError):  # some functions state no signature
        try:
            inspect.signature(function).bind(*range(arguments))
        except TypeError:
            return False
    return True


def enlisted(way: Method, clients: Sequence[Client]) -> Sequence[Client]:
    """Return the participants. Raises FedexitError unless they are some of the clients, each once."""
    found = way.enlist(clients)
    if found is clients:
        return found
    names = [one.name for one in found if isinstance(one, Client)] if isinstance(found, Sequence) else []
    if not names or len(names) < len(found) or sorted(names) != sorted({*names} & {one.name for one in clients}):
        kind = f"{type(found).__name__}: {found!r:.60}"
        raise FedexitError(f"method {way.name}: its enlist returned a {kind}; return a list of clients, each once")
    return found
