"""The methods that are compared, by name: each is what it changes of the paper's round, and where it comes from.

An entry changes one or several of these: who takes part and how deep, what a client minimises, which heads there are,
how the server averages and what it makes of the average. What it does not say is as in the paper: every client at its
own depth, the loss at its last exit, a head per exit, the average by Eq. (1) as the new weights.

What the weights are is no entry's matter: with LoRA (`fedexit.model.lora`, `Setting.lora`) all of them but FedRA
train, send and average adapters in their place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedexit.federated.aggregation import FedAdam
from fedexit.federated.clients import Client, LocalTraining
from fedexit.support.errors import FedexitError


def everyone(clients: Sequence[Client]) -> Sequence[Client]:
    """Every client, at its own depth."""
    return clients


def one_depth(clients: Sequence[Client]) -> Sequence[Client]:
    """Every client. Raises FedexitError when their depths differ."""
    depths = sorted({client.depth for client in clients})
    if len(depths) > 1:
        raise FedexitError(f"homogeneous clients have one depth, not {', '.join(map(str, depths))}; give all the same")
    return clients


def deepest_tier(clients: Sequence[Client]) -> Sequence[Client]:
    """The clients of the greatest depth alone."""
    deepest = max((client.depth for client in clients), default=0)
    return [client for client in clients if client.depth == deepest]


def all_shallow(clients: Sequence[Client]) -> Sequence[Client]:
    """Every client, at the least depth of any."""
    least = min((client.depth for client in clients), default=0)
    return [replace(client, depth=least) for client in clients]


def all_deepest(clients: Sequence[Client]) -> Sequence[Client]:
    """Every client, at the greatest depth of any."""
    greatest = max((client.depth for client in clients), default=0)
    return [replace(client, depth=greatest) for client in clients]


@dataclass(frozen=True)
class Method:
    """One entry. `changes` says in a line what it is; `source`, whose.

    rule, depth_exponent: how the server averages (`aggregation.aggregate`); enlist: which of the clients take part, and
    how deep; local: what it sets of `LocalTraining`; server: what steps towards the average, None for all the way;
    shared_head: its model has one head for all exits; local_heads: a client goes on with its own, and the server's
    average of them is for newcomers (`fedexit.federated.local_heads`); narrow: what a weak client lacks is width,
    not depth, which `fedexit.federated.heterofl.federate_by_width` runs.
    """

    name: str
    source: str
    changes: str
    rule: str = "layerwise"
    depth_exponent: float = 1.0
    enlist: Callable[[Sequence[Client]], Sequence[Client]] = everyone
    local: Mapping[str, object] = field(default_factory=dict)
    server: FedAdam | None = None
    shared_head: bool = False
    local_heads: bool = False
    narrow: bool = False

    def exits(self, depths: Sequence[int]) -> list[int]:
        """Where clients of these `depths` train when it is done its way: the exits that its model needs."""
        return sorted({client.depth for client in self.enlist([Client("", (), depth) for depth in depths])})

    def training(self, training: LocalTraining) -> LocalTraining:
        """`training` with what the method sets of it."""
        return replace(training, **self.local)


PAPER, KIM = "Guo et al. 2026", "DepthFL, Kim et al. 2023"
ALL, MUTUAL = {"objective": "all"}, {"objective": "all", "distillation": "mutual"}
SELF, BY_DEPTH = {"objective": "all", "distillation": "deepest"}, {"objective": "depth-weighted"}
PROXIMAL = {"proximal": 0.01}  # theirs are 0.001 to 1, by task
_ENTRIES = [
    # who takes part, and how deep
    Method("homogeneous", f"{PAPER}, sec. 3", "all clients at one depth: FedAvg", "masked", enlist=one_depth),
    Method("exclusive", f"{KIM}, its baseline", "the deepest tier alone takes part", "masked", enlist=deepest_tier),
    Method("all-shallow", "ours, a baseline", "all clients at the least depth", "masked", enlist=all_shallow),
    Method(
        "heterofl", "HeteroFL, Diao et al. 2021", "weak clients train all layers, narrow ones, and a plain mean",
        "count", enlist=all_deepest, narrow=True,
    ),
    # how the server averages
    Method("stale", f"{PAPER}, as we read its FedAvg", "n_i over whole models, untrained layers included", "stale"),
    Method("stale-g1", "ours, for the ablation", "n_i L_i over whole models, untrained layers included", "unmasked"),
    Method("masked", "ReeFL, Lee et al. 2024", "n_i over the clients that trained a layer", "masked"),
    Method("layerwise", f"{PAPER}, Eq. (1)", "n_i L_i over the clients that trained a layer"),
    *(
        Method(f"layerwise-g{g:g}", f"ours, after {PAPER}", f"n_i L_i^{g:g} in Eq. (1)", depth_exponent=g)
        for g in (-1.0, 0.5, 2.0)
    ),
    Method("count", f"{KIM}; ScaleFL; FedRA", "every client that trained a layer counts the same", "count"),
    Method("inclusive", "InclusiveFL, Liu et al. 2022", "deeper tiers' steps teach shallower ones", "inclusive"),
    # what a client minimises
    Method("layerwise-all", "Fed-EE, Ali et al. 2023", "the loss at all exits up to L_i", local=ALL),
    Method("masked-all", "ReeFL, without its teacher", "n_i, and the loss at all exits up to L_i", "masked", local=ALL),
    Method("layerwise-by-depth", "ScaleFL, Ilhan et al. 2023", "all exits, the j-th with weight j", local=BY_DEPTH),
    Method("layerwise-mutual", KIM, "all exits, each taught by the others", local=MUTUAL),
    Method("layerwise-self", "ScaleFL, Ilhan et al. 2023", "all exits, taught by the client's last one", local=SELF),
    Method("depthfl", f"{KIM}, without FedDyn and ramp", "mutual teaching, and a plain mean", "count", local=MUTUAL),
    Method(
        "scalefl", "Ilhan et al. 2023, its split of depth", "by depth, taught by the last exit, and a plain mean",
        "count", local={**BY_DEPTH, "distillation": "deepest", "strength": 0.05, "temperature": 3.0},
    ),
    Method("fedprox", "Li et al. 2020", "n_i, and clients are held near the global weights", "masked", local=PROXIMAL),
    Method("layerwise-prox", "Li et al. 2020", "clients are held near the global weights", local=PROXIMAL),
    # what the server makes of the average
    Method("fedadam", "Reddi et al. 2021", "n_i, and a step of Adam towards the average", "masked", server=FedAdam()),
    Method("layerwise-adam", "Reddi et al. 2021", "a step of Adam towards the average", server=FedAdam()),
    # which heads there are
    Method("masked-shared", "ours, an open choice", "n_i, and one head for all exits", "masked", shared_head=True),
    Method("layerwise-shared", "ours, an open choice", "one head for all exits", shared_head=True),
    Method("layerwise-local", "FedPer, Arivazhagan et al. 2019", "every client keeps its own head", local_heads=True),
    Method(
        "fedra", "Su et al. 2024, without LoRA", "L_i layers drawn at random, one head, and a plain mean",
        "count", local={"random_layers": True}, shared_head=True,
    ),
]  # fmt: skip
METHODS: dict[str, Method] = {method.name: method for method in _ENTRIES}


def find_method(name: str) -> Method:
    """The entry `name`. Raises FedexitError when there is none."""
    if name not in METHODS:
        raise FedexitError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
