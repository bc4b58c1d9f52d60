"""Run `federate` with an inspector: skip, count and name the clients whose updates cannot be used, up to a limit."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from fedexit.federated.aggregation import Aggregator, Update
from fedexit.federated.checks import check_data
from fedexit.federated.clients import Client, LocalRound, LocalTraining, RoundReport, local_round
from fedexit.federated.methods import Method
from fedexit.federated.objectives import Objective
from fedexit.federated.rounds import Federation, federate
from fedexit.federated.workers import Round, Stream, Transport, Work, local_rounds
from fedexit.model.costs import held_weights
from fedexit.model.exits import MultiExitModel
from fedexit.robust.inspection import Inspector
from fedexit.robust.scores import Changes, changes_of, scored
from fedexit.support.checkpoints import load_checkpoint, save_checkpoint
from fedexit.support.checks import few
from fedexit.support.errors import FedexitError

Note = Callable[[dict[str, Any]], object]


def federate_guarded(
    model: MultiExitModel,
    clients: Sequence[Client],
    method: str | Method = "layerwise",
    limit: float = 0.3,
    scores: bool = False,
    note: Note = print,
    transport: Transport | None = None,
    **options: Any,
) -> Federation:
    """Run `federate`, but leave a bad client out of its round instead of ending the run. Accepted updates are the same.

    A client is refused when its local round fails (a loss that is not finite, too little memory), and when its update
    does not pass `fedexit.robust.inspection.Inspector`. Without a bad client the weights are those of `federate`.

    Args:
        model: The global model before training.
        clients: As for `federate`.
        method: As for `federate`; `fedexit.robust.rules.ROBUST` has methods that withstand hostile clients.
        limit: The largest share of a round's clients that may be refused, in [0, 1]; more end the run.
        scores: Whether the ledger gets the norm and the cosine of each update by layer (`fedexit.robust.scores`). It
            takes the memory of all updates of a round.
        note: Called with `round, client, event, why` for every client that is refused.
        transport: As for `federate`; None trains the clients here.
        options: Other arguments of `federate`. Beside a `checkpoint` lies a file `.guard` with the ledger's columns.

    Returns:
        The federation. Its ledger has the column `refused`: the reason, or an empty text. The row of a refused client
        has no costs. With `scores` it has `norm GROUP` and `cosine GROUP` for each layer, head and the frontend.

    Raises:
        FedexitError: as `federate`; too many clients were refused; the file `.guard` does not fit the checkpoint.

    Example:
        >>> found = federate_guarded(model, clients, ROBUST["median"], rounds=5, scores=True)
        >>> culprits(found.clients).head()
    """
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1:
        raise FedexitError(f"limit is the share of a round's clients that may be refused; give 0 to 1, not {limit!r}")
    inner = transport or partial(_here, options.get("workers", 1), options.get("threads", 1))
    file = options.get("checkpoint")
    guard = Guard(inner, float(limit), scores, note, Path(f"{file}.guard") if file is not None else None)
    found = federate(model, clients, method, transport=guard, **options)
    return replace(found, clients=joined(found.clients, guard.rows))


def _here(
    workers: int, threads: int, model: MultiExitModel, clients: Sequence[Client], work: Work
) -> AbstractContextManager[Round]:
    """Check the clips, as `federate` does without a transport, and train here."""
    check_data(model, clients, (), work.training, work.objective)
    return local_rounds(model, clients, work, workers, threads)


@dataclass
class Guard:
    """Pass on the updates of another transport that can be used; it is a transport itself.

    inner: trains the clients.
    limit, scores, note: see `federate_guarded`.
    file: keeps `rows` after every round; None keeps them in memory.
    rows: what the ledger gets, a row per update, accepted or refused.
    """

    inner: Transport
    limit: float
    scores: bool
    note: Note
    file: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    _done: int = 0  # the last round in `rows`

    @contextmanager
    def __call__(self, model: MultiExitModel, clients: Sequence[Client], work: Work) -> Iterator[Round]:
        """Give the function of a round: see `fedexit.federated.workers.local_rounds`."""
        if found := load_checkpoint(self.file, self._identity):
            self._done, self.rows = found[0]["round"], found[0]["rows"]
        held = _held(model, work.objective) if work.train is local_round else None
        with self.inner(model, clients, work._replace(train=Careful(work.train))) as run:

            def guarded(drawn: Iterable[Client], stream: Stream, share: float = 1.0) -> Iterator:
                known, number = list(drawn), int(stream[2])
                inspector = Inspector(number, known, model.trainable_weights(), model.backbone.layers, held)
                return self._round(inspector, run(known, stream, share))

            yield guarded

    @property
    def _identity(self) -> list[object]:
        return ["guard", self.scores]

    def _round(
        self, inspector: Inspector, arriving: Iterator[tuple[Client, Update, RoundReport]]
    ) -> Iterator[tuple[Client, Update, RoundReport]]:
        number, rows, changes = inspector.number, list[dict[str, Any]](), dict[str, Changes]()
        if self._done < number - 1:
            raise FedexitError(f"{self.file} lacks rounds before {number}; delete the checkpoint and run again")
        for client, update, report in arriving:
            try:
                if isinstance(report, FailedReport):
                    raise FedexitError(report.why)
                inspector.check(client.name, update, report=report)
            except FedexitError as error:
                rows.append(self._refused(client, number, str(error), rows, len(inspector.drawn)))
                continue
            if self.scores:
                changes[client.name] = changes_of(inspector.weights, update)
            rows.append({"round": number, "client": client.name, "refused": ""})
            yield client, update, report
        columns = scored(changes)
        self.rows = [row for row in self.rows if row["round"] < number]
        self.rows += [row if row["refused"] else row | columns.get(row["client"], {}) for row in rows]
        self._done = number
        if self.file is not None:
            save_checkpoint(self.file, self._identity, {"round": number, "rows": self.rows}, {})

    def _refused(self, client: Client, number: int, why: str, rows: list[dict], drawn: int) -> dict[str, Any]:
        """Note a refused client and return its row. Raises FedexitError when there are too many in this round."""
        self.note({"round": number, "client": client.name, "event": "refused", "why": why})
        bad = [row["client"] for row in rows if row["refused"]] + [client.name]
        if len(bad) > self.limit * drawn:
            raise FedexitError(
                f"round {number}: {len(bad)} of {drawn} clients were refused ({few(bad)}), limit={self.limit:g} allows "
                f"{math.floor(self.limit * drawn)}; the last: {why}"
            )
        about = dict(tier=client.tier, depth=client.depth, examples=len(client.data))
        return {"round": number, "client": client.name, "refused": why, **about}


def _held(model: MultiExitModel, objective: Objective) -> Callable[[int], set[str]]:
    """Return the function that gives the names of the weights that a client of a depth sends."""

    @cache
    def names(depth: int) -> set[str]:
        return {*held_weights(model.trainable_weights(), objective.exits(depth, model.exits))}

    return names


@dataclass(frozen=True)
class Careful:
    """Run a local round; if it fails, return an empty update and a `FailedReport`.

    train: the local round.
    """

    train: LocalRound

    def __call__(
        self, model: MultiExitModel, weights: Mapping[str, Tensor], client: Client, training: LocalTraining,
        stream: Stream, objective: Objective,
    ) -> tuple[Update, RoundReport]:  # fmt: skip
        """Return the update and the report of the client."""
        try:
            found = self.train(model, weights, client, training, stream, objective)
            if isinstance(found, tuple) and found and isinstance(found[0], Update):
                Aggregator(weights).check(found[0])
            return found
        except FedexitError as error:
            return Update({}, 1, client.depth), FailedReport(math.nan, 0.0, [], why=str(error))


@dataclass(frozen=True)
class FailedReport(RoundReport):
    """The report of a local round that failed. why: the reason."""

    why: str = ""


def joined(ledger: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the ledger with the columns and the refused clients in the `rows` of a `Guard`, round by round."""
    about = pd.DataFrame(rows, columns=None if rows else ["round", "client", "refused"])
    accepted = about[about["refused"] == ""].drop(columns=["tier", "depth", "examples"], errors="ignore")
    if ledger.empty:
        ledger = pd.DataFrame(columns=["round", "client"])
    found = ledger.merge(accepted, on=["round", "client"], how="left")
    bad = about[about["refused"] != ""].dropna(axis="columns", how="all")
    table = pd.concat([found, bad], ignore_index=True) if len(bad) else found
    table = table.astype({"depth": int, "examples": int}) if len(table) else table
    return table.fillna({"refused": ""}).sort_values("round", kind="stable", ignore_index=True)
