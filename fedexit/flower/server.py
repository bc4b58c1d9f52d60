"""Run `federate` over Flower: send each node the layers up to its depth, check its reply, keep the order of clients."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fedexit.federated.aggregation import Aggregator, Update
from fedexit.federated.clients import Client, RoundReport, local_round
from fedexit.federated.ledger import client_costs
from fedexit.federated.methods import Method, find_method
from fedexit.federated.regime import Regime
from fedexit.federated.rounds import Federation, federate
from fedexit.federated.workers import Round, Stream, Work
from fedexit.flower import wire
from fedexit.flower.fleet import Node, clients_of
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.extras import extra

with extra("flower"):
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
    from flwr.app import Message, MessageType, RecordDict
    from flwr.serverapp import Grid

_PAUSE = 0.2  # seconds between two looks for replies
_TRIES = 5  # for a request to the SuperLink, one second apart
Note = Callable[[dict[str, Any]], object]


def federate_on(
    grid: "Grid",
    nodes: Sequence[Node],
    model: MultiExitModel,
    method: str | Method = "layerwise",
    deadline: float = 600.0,
    wait: float = 60.0,
    note: Note = print,
    timed: Note | None = None,
    **options: Any,
) -> Federation:
    """Run `federate` with clients that train on the nodes of a Flower grid; weights are bit-identical to those here.

    A node that is away, fails, sends another update than its job asks for, or misses the deadline costs its client's
    round only. The ledger has no row for it, and `note` gets the reason.

    Args:
        grid: Flower's connection to the nodes.
        nodes: The fleet (`fedexit.flower.fleet.read_fleet`).
        model: The global model before training.
        method: As for `federate`; a method whose local round is not fedexit's own is refused, `fedra` among them.
        deadline: Seconds that the server waits for the replies of a round, > 0.
        wait: Seconds that it waits for clients of the fleet before the first round; without any client it stops.
        note: Called with `round, client, event, why` for every update that does not arrive.
        timed: Called after every round with its times and bytes: see `OnGrid`.
        options: Other arguments of `federate`. Depths of a round may not exceed those of the fleet.

    Raises:
        FedexitError: as `federate`, for heads that learn alone first, and when no client of the fleet is there.
    """
    way = find_method(method)
    if way.local_round is not local_round:
        raise FedexitError(f"method {way.name} has a local round of its own; nodes run fedexit's: take another method")
    if (options.get("regime") or Regime()).heads_rounds:
        raise FedexitError("heads_rounds needs the clients' clips on the server; start from a model with trained heads")
    if not isinstance(model.head, str):
        raise FedexitError("nodes know fedexit's heads only; make the model with a head that has a name")
    if not deadline > 0:
        raise FedexitError(f"the deadline of a round must be > 0 seconds, not {deadline}")
    place = OnGrid(grid, {node.client: node for node in nodes}, deadline, wait, note, timed or (lambda row: None))
    return federate(model, clients_of(nodes), way, transport=place, **options)


@dataclass
class OnGrid:
    """Train the clients of `federate` on the nodes of a Flower grid: its `transport`.

    Every round gives `timed` a row: `round, sent` (jobs), `arrived` (updates), `bytes_down, bytes_up` (weights in
    messages), `bytes_start` (models that nodes lacked), and seconds: `pack`, `wait` (nodes, network and Flower),
    `train` (the longest local round, a part of `wait`), `unpack`.
    """

    grid: Grid
    nodes: Mapping[str, Node]  # by client
    deadline: float
    wait: float
    note: Note
    timed: Note
    _starts: dict[int, "_Start"] = field(default_factory=dict)  # by depth
    _places: dict[int, int] = field(default_factory=dict)  # partition by node id, in a simulation
    _has: set[tuple[int, str]] = field(default_factory=set)  # node ids and hashes of the models that they hold
    _checked: set[tuple[str, int]] = field(default_factory=set)  # clients and depths whose costs can be computed

    @contextmanager
    def __call__(self, model: MultiExitModel, clients: Sequence[Client], work: Work) -> Iterator[Round]:
        """Give the function of a round: see `fedexit.federated.workers.local_rounds`."""
        for client in clients:
            if client.depth > self.nodes[client.name].depth:
                raise FedexitError(_too_deep(client, self.nodes[client.name]))
        self._wait_for_nodes()

        def run(drawn: Iterable[Client], stream: Stream, share: float = 1.0) -> Iterator:
            return self._round(model, work, list(drawn), stream, share)

        yield run

    def _wait_for_nodes(self) -> None:
        until = time.monotonic() + self.wait
        while len(online := self._online()) < len(self.nodes) and time.monotonic() < until:
            time.sleep(_PAUSE)
        if not online:
            raise FedexitError(f"no client of the fleet came within {self.wait:g} s; start their nodes, then run again")
        for client in self.nodes.keys() - online.keys():
            self.note({"round": 0, "client": client, "event": "away", "why": f"not there after {self.wait:g} s"})

    def _online(self) -> dict[str, int]:
        """Return the node id of each client whose node is there, by registered key, or by partition if simulated."""
        infos = self._infos()
        keys = {_pem(node.key): name for name, node in self.nodes.items() if node.key}
        if keys:
            return {keys[info.public_key]: info.node_id for info in infos if info.public_key in keys}
        if any(info.public_key.startswith(b"-----BEGIN") for info in infos):
            raise FedexitError("the fleet file has no keys, so nodes cannot be distinguished; add the column key")
        new = [info.node_id for info in infos if info.node_id not in self._places]
        asked = {self._push(RecordDict(), MessageType.QUERY, node_id, "0", 60.0): node_id for node_id in new}
        for reply, node_id in self._replies({key: node_id for key, node_id in asked.items() if key}, 60.0):
            if not reply.has_error():
                self._places[node_id] = int(reply.content[wire.REPORT]["partition"])
        names = dict(enumerate(self.nodes))
        here = {info.node_id for info in infos}
        return {names[at]: node_id for node_id, at in self._places.items() if at in names and node_id in here}

    def _infos(self) -> list[Any]:
        """Return Flower's facts about the nodes that are there."""
        for _ in range(_TRIES):
            with suppress(Exception):  # a busy SuperLink fails now and then, by errors of the libraries below it
                return list(self.grid.get_nodes())
            time.sleep(1)
        return list(self.grid.get_nodes())

    def _push(self, content: RecordDict, kind: str, node_id: int, group: str, seconds: float) -> str | None:
        """Send a message and return its number, or None if the SuperLink does not take it."""
        message = Message(content, node_id, kind, ttl=seconds, group_id=group)
        for _ in range(_TRIES):
            with suppress(Exception):
                self.grid.push_messages([message])
                return message.metadata.message_id
            time.sleep(1)
        return None

    def _replies(self, asked: dict[str, Any], seconds: float) -> Iterator[tuple[Message, Any]]:
        """Yield each reply with the entry of `asked` that its message has; what stays in `asked` did not come."""
        until = time.monotonic() + seconds
        while asked:
            replies: list[Message] = []
            with suppress(Exception):  # as in `_infos`; the next look may succeed
                replies = list(self.grid.pull_messages(list(asked)))
            for reply in replies:
                if (entry := asked.pop(reply.metadata.reply_to_message_id, None)) is not None:
                    yield reply, entry
            if not asked or time.monotonic() > until:
                return
            time.sleep(_PAUSE)

    def _round(
        self, model: MultiExitModel, work: Work, drawn: list[Client], stream: Stream, share: float
    ) -> Iterator[tuple[Client, Update, RoundReport]]:
        """Send the jobs of a round, and yield the updates that arrive in the order of the clients."""
        begin, number, weights = time.monotonic(), stream[2], model.trainable_weights()
        online, asked, found = self._online(), dict[str, Client](), dict[str, tuple[Update, RoundReport]]()
        size = dict(bytes_down=0, bytes_up=0, bytes_start=0)
        for client in drawn:
            if client.name not in online:
                self._lost(number, client, "away", "its node is not connected")
                continue
            node_id, content = online[client.name], self._job(model, work, client, stream, share, weights)
            digest = self._starts[client.depth].digest
            if (node_id, digest) not in self._has:
                content[wire.START] = self._starts[client.depth].record
                size["bytes_start"] += sum(map(len, self._starts[client.depth].record.values()))
            size["bytes_down"] += wire.array_bytes(content)
            if key := self._push(content, MessageType.TRAIN, node_id, str(number), self.deadline):
                asked[key] = client
                self._has.add((node_id, digest))
            else:
                self._lost(number, client, "unsent", "the SuperLink did not take its job")
        packed, sent = time.monotonic(), len(asked)
        replies = list(self._replies(asked, self.deadline))
        waited = time.monotonic()
        for reply, client in replies:
            size["bytes_up"] += 0 if reply.has_error() else wire.array_bytes(reply.content)
            answer = self._read(model, work, client, stream, reply, online[client.name])
            if isinstance(answer, str):
                self._has.discard((online[client.name], self._starts[client.depth].digest))
                self._lost(number, client, "refused", answer)
            else:
                found[client.name] = answer
        for client in asked.values():
            self._has.discard((online[client.name], self._starts[client.depth].digest))
            self._lost(number, client, "late", f"no reply within {self.deadline:g} s")
        done, train = time.monotonic(), max((report.seconds for _, report in found.values()), default=0.0)
        times = dict(pack=packed - begin, wait=waited - packed, train=train, unpack=done - waited)
        self.timed({"round": number, "sent": sent, "arrived": len(found), **size, **times})
        for client in [client for client in drawn if client.name in found]:
            yield client, *found.pop(client.name)

    def _lost(self, number: object, client: Client, event: str, why: str) -> None:
        self.note({"round": number, "client": client.name, "event": event, "why": why})

    def _job(
        self, model: MultiExitModel, work: Work, client: Client, stream: Stream, share: float,
        weights: Mapping[str, Tensor],
    ) -> RecordDict:  # fmt: skip
        """Return the message of a client: its job, and the weights up to its depth."""
        node = self.nodes[client.name]
        if client.depth > node.depth:
            raise FedexitError(_too_deep(client, node))
        if client.depth not in self._starts:
            scratch = work.scratch(model, client.depth)
            self._starts[client.depth] = _Start(list(scratch.trainable_weights()), *wire.start_of(scratch))
        start = self._starts[client.depth]
        about, options = (client.name, node.data, client.depth, list(stream), share), (work.training, work.objective)
        own = {name: client.own[name] for name in start.names if name in client.own}  # a depth may change
        job = wire.Job(*about, *options, list(own), start.digest)
        held = wire.packed_weights(weights[name] for name in start.names)
        content = RecordDict({wire.JOB: job.packed(), wire.WEIGHTS: held})
        if own:
            content[wire.OWN] = wire.packed_weights(own.values())
        return content

    def _read(
        self, model: MultiExitModel, work: Work, client: Client, stream: Stream, reply: Message, node_id: int
    ) -> tuple[Update, RoundReport] | str:
        """Return the update and the report of a reply, or why it is refused."""
        if reply.has_error():
            return f"Flower reports an error: {reply.error.reason}"
        try:
            report = reply.content[wire.REPORT]
            if "json" not in report:
                return str(report.get("refused") or f"its node lacks the {report.get('lacks')}; it gets it next time")
            facts = wire.read_report(report)
            mine = dict(client=client.name, depth=client.depth, stream=list(stream), examples=len(client.data))
            if other := [name for name, value in mine.items() if facts.pop(name) != value]:
                return f"its reply states another {other[0]}"
            if reply.metadata.src_node_id != node_id:
                return "another node sent its reply"
            whole = model.trainable_weights()
            held = {name: whole[name] for name in self._starts[client.depth].names}
            weights = wire.unpacked_weights(reply.content[wire.WEIGHTS], held)
            return self._checked_update(model, work, client, weights, RoundReport(**facts))
        except Exception as error:  # a node may send anything
            return f"its reply cannot be used: {first_line(error)}"

    def _checked_update(
        self, model: MultiExitModel, work: Work, client: Client, weights: dict[str, Tensor], report: RoundReport
    ) -> tuple[Update, RoundReport]:
        """Return the update. Raises FedexitError for weights that are not finite, and for a report of other clips."""
        update = Update(weights, len(client.data), client.depth)
        Aggregator(model.trainable_weights(), layers=model.backbone.layers).check(update)
        if len(report.lengths) != len(client.data):
            raise FedexitError(f"{len(report.lengths)} lengths for {len(client.data)} clips")
        if (client.name, client.depth) not in self._checked:
            client_costs(model, client.depth, report.lengths, work.training, report.cached, work.objective)
            self._checked.add((client.name, client.depth))
        report = replace(report, loss=float(report.loss), seconds=float(report.seconds))
        if not math.isfinite(report.loss):
            raise FedexitError(f"its loss is {report.loss}: the client diverged")
        return update, report


@dataclass(frozen=True)
class _Start:
    """The model of one depth: the names of its trainable weights, and what a node needs once."""

    names: list[str]
    digest: str
    record: Any


def _too_deep(client: Client, node: Node) -> str:
    return f"client {client.name} would train to depth {client.depth}; the fleet allows {node.depth}: raise it there"


def _pem(key: str) -> bytes:
    """Return a public key in SSH format as Flower stores it."""
    try:
        return load_ssh_public_key(key.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as error:
        raise FedexitError(f"key {key:.40}... of the fleet is not a public key in SSH format; copy its .pub") from error
