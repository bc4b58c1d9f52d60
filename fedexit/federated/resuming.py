"""Keep the state of a federation in a checkpoint, and resume from it with bit-identical results."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fedexit.data.batches import Example, data_digest
from fedexit.federated.clients import Client, LocalTraining
from fedexit.federated.local_heads import Heads, packed, unpacked
from fedexit.federated.methods import Method
from fedexit.federated.regime import Regime
from fedexit.federated.server import MOMENTS, FedAdam
from fedexit.model.exits import MultiExitModel
from fedexit.support import checkpoints
from fedexit.support.errors import FedexitError

_AVERAGE, _MOMENT = "average:", "moment:"
Depths = Callable[[int], Mapping[str, int | None]]


@dataclass(frozen=True)
class RoundState:
    """The progress of a federation, as its checkpoint holds it. The ledger is in a table beside it."""

    round: int  # number of finished rounds
    evaluations: list[list]  # rows of `Federation.table`
    depths: list[str]  # a hash per round of the depths that `depths` returned
    ledger_bytes: int  # bytes of the ledger's table that belong to this state


@dataclass(frozen=True)
class Kept:
    """Rows and tensors that outlive a round, beside the model's weights; they are updated in place."""

    ledger: list[dict] = field(default_factory=list)  # rows of `Federation.clients`
    costs: dict[tuple[str, int], dict] = field(default_factory=dict)  # costs of a local round, by client and depth
    moments: dict[str, Tensor] = field(default_factory=dict)  # moments of the server's optimiser
    heads: Heads = field(default_factory=dict)  # that clients kept
    average: dict[str, Tensor] = field(default_factory=dict)  # exponential average of the global model


class Plan(NamedTuple):
    """Settings that are equal in all rounds of a federation: see `federate`."""

    method: Method
    seed: int
    depth_exponent: float
    fraction: float
    training: LocalTraining
    rounds: int
    regime: Regime
    threads: int = 1


def identity_of(model: MultiExitModel, clients: Sequence[Client], dev: Sequence[Example], plan: Plan) -> dict:
    """Return the facts that must be equal for a checkpoint to belong to a run: start, settings and data."""
    way, options = plan.method, checkpoints.options_set
    regime = {**options(plan.regime), **({"rounds": plan.rounds} if plan.regime.falling_rates else {})}
    return {
        "start": model.checksum(),
        "method": [way.name, _named(way.rule), options(way.objective), _named(way.local_round), way.local_heads],
        "server": options(way.server) if isinstance(way.server, FedAdam) else _named(way.server),
        "settings": [plan.seed, plan.depth_exponent, plan.fraction, options(plan.training)] + [regime] * bool(regime),
        "clients": [[client.name, client.tier, client.depth, data_digest(client.data)] for client in clients],
        "dev": data_digest(dev),
        **({"threads": plan.threads} if plan.threads > 1 else {}),
        **({"targets": model.targets} if model.targets in ("number", "multi-label") else {}),
    }


def _named(part: object) -> object:
    """Return what identifies a part of a method in every process: its name, or its type and plain attributes."""
    if isinstance(part, str):
        return part
    if isinstance(part, partial):
        return [_named(part.func), [*map(_named, part.args)], {key: _named(own) for key, own in part.keywords.items()}]
    if name := getattr(part, "__qualname__", ""):
        return name
    if isinstance(part, bool | int | float):
        return part
    held = getattr(part, "__dict__", {})
    plain = {name: value for name, value in held.items() if isinstance(value, str | bool | int | float)}
    return [type(part).__qualname__, plain] if plain else type(part).__qualname__


def resumed(model: MultiExitModel, checkpoint: str | Path | None, identity: dict) -> tuple[RoundState, Kept]:
    """Return what the checkpoint holds, after loading its weights into `model`; an empty state without a file."""
    if checkpoint is None or not (found := checkpoints.load_checkpoint(checkpoint, identity)):
        return RoundState(0, [], [], 0), Kept()
    with checkpoints.refusing_damage(checkpoint):
        state, device = RoundState(**found[0]), next(model.parameters()).device
        if [type(value) for value in vars(state).values()] != [int, list, list, int]:
            raise TypeError("its state has another form")
        tensors = {name: tensor.to(device) for name, tensor in found[1].items()}
        if other := [n for n, tensor in model.trainable_weights().items() if tensors[n].shape != tensor.shape]:
            raise ValueError(f"{other[0]} has another shape")
    kept = Kept(checkpoints.read_rows(checkpoint, state.ledger_bytes), heads=unpacked(tensors))
    moments = [name for name in tensors if name.startswith((_MOMENT, *MOMENTS))]
    kept.moments.update({name.removeprefix(_MOMENT): tensors[name] for name in moments})
    kept.average.update({n.removeprefix(_AVERAGE): tensor for n, tensor in tensors.items() if n.startswith(_AVERAGE)})
    model.load_weights(tensors)
    return state, kept


def continued(state: RoundState, rounds: int, due: set[int], depths: Depths | None, name: str) -> RoundState:
    """Return the state of the checkpoint `name` without evaluations that are not `due`.

    Raise FedexitError when the run cannot continue from it: it has more rounds, other depths, or lacks an evaluation.
    """
    if state.round > rounds:
        raise FedexitError(f"checkpoint {name} holds {state.round} rounds already; rounds={rounds} is too few")
    if state.depths != [hash_of(depths(number)) for number in range(1, state.round + 1) if depths is not None]:
        raise FedexitError(f"checkpoint {name} has other depths in its rounds; name another file")
    # a shorter run evaluated its last round, which a longer one need not do
    evaluations = [row for row in state.evaluations if row[0] in due]
    lacking = sorted(due - {row[0] for row in evaluations})
    if lacking and lacking[0] < state.round:
        lost = f"checkpoint {name} has no errors after round {lacking[0]}"
        raise FedexitError(f"{lost}; take evaluate_every as it was, or name another file")
    return replace(state, evaluations=evaluations)


def saved(
    state: RoundState, kept: Kept, rows: list[dict], model: MultiExitModel, checkpoint: str | Path, identity: dict
) -> RoundState:
    """Write the ledger's new `rows`, then the checkpoint that counts them; return the state that it holds."""
    state = replace(state, ledger_bytes=checkpoints.append_rows(checkpoint, rows, state.ledger_bytes))
    average = {_AVERAGE + name: tensor for name, tensor in kept.average.items()}
    moments = {
        name if name.startswith(MOMENTS) else _MOMENT + name: tensor.clone() for name, tensor in kept.moments.items()
    }
    tensors = {**model.trainable_weights(), **moments, **packed(kept.heads), **average}
    checkpoints.save_checkpoint(checkpoint, identity, asdict(state), tensors)
    return state


def hash_of(depths: Mapping[str, int | None]) -> str:
    """Return a short hash of the depths of a round, whatever their order."""
    facts = sorted((name, None if depth is None else int(depth)) for name, depth in depths.items())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
