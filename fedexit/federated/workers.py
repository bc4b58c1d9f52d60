"""Train the clients of one round side by side, in processes of one thread each by default.

Two threads on a busy core are ten times slower than one, and sums may round differently with another number of threads.
With equal threads per process, results are bit-identical for any number of workers.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import NamedTuple

from torch import Tensor

from fedexit.federated.aggregation import Aggregator, Update
from fedexit.federated.clients import Client, LocalRound, LocalTraining, RoundReport, at_share, local_round
from fedexit.federated.objectives import Objective
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import HEADS
from fedexit.support.errors import FedexitError
from fedexit.support.processes import limited_threads, start_worker, worker_pool
from fedexit.support.sharing import Shared, pickled

Stream = tuple[str | int, ...]
Round = Callable[[Iterable[Client], Stream, float], Iterator[tuple[Client, Update, RoundReport]]]


class Work(NamedTuple):
    """The work of a client in one round: its local round with the options of training and the loss."""

    training: LocalTraining
    objective: Objective = Objective()
    train: LocalRound = local_round

    def scratch(self, model: MultiExitModel, depth: int) -> MultiExitModel:
        """Return a model in which clients of `depth` train, one after the other."""
        return model.client_model(depth, self.objective.exits(depth, model.exits))

    def run(
        self, scratch: MultiExitModel, weights: dict[str, Tensor], client: Client, stream: Stream, share: float
    ) -> tuple[Update, RoundReport]:
        """Return the update and the report of `client`, trained with a `share` of the full learning rates."""
        training = at_share(self.training, share)
        found = self.train(scratch, weights, client, training, (*stream, client.name), self.objective)
        if self.train is not local_round:
            pair = isinstance(found, tuple) and len(found) == 2
            if not pair or not all(map(isinstance, found, (Update, RoundReport))):
                raise FedexitError(
                    f"client {client.name}: local_round returned a {type(found).__name__}; return a pair (Update, "
                    "RoundReport), as fedexit.federated.clients.local_round does"
                )
            Aggregator(weights).check(found[0])
        return found


Transport = Callable[[MultiExitModel, Sequence[Client], Work], AbstractContextManager[Round]]


@contextmanager
def local_rounds(
    model: MultiExitModel, clients: Sequence[Client], work: Work, workers: int = 1, threads: int = 1
) -> Iterator[Round]:
    """Give a function `run(drawn, stream, share)` that yields (client, update, report) in the order of `drawn` clients.

    The tensors of an update are valid until the next update is requested. A client's random stream is `stream` and its
    name; `share` is that of the full learning rates. With one worker, this process does the work. Raises FedexitError
    for several workers on a GPU, clients and own parts that cannot be sent to a process, too little shared memory, and
    a worker that dies.
    """
    with limited_threads(threads):
        if workers == 1:
            yield _here(model, work)
            return
        if next(model.parameters()).device.type != "cpu":
            raise FedexitError("several workers share a CPU, not a GPU: take workers=1 or move the model to the CPU")
        sent = pickled([replace(client, dev=()) for client in clients])
        head = HEADS[model.head] if isinstance(model.head, str) else model.head  # a name may be known here alone
        parts = pickled((work.train, work.objective), "the method's local_round"), pickled(head, "the model's head")
        shared = Shared.of(model.trainable_weights(), sections=1 + 2 * workers)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)  # because a model with weight norm cannot be pickled
            # the forkserver has imported torch: workers start at once and share the memory of the libraries
            given = folder, sent, work.training, *parts, shared, threads
            with worker_pool("forkserver", workers, _start_inside, *given) as pool:
                yield _elsewhere(pool, model, clients, shared)


def _here(model: MultiExitModel, work: Work) -> Round:
    scratch: dict[int, MultiExitModel] = {}

    def run(
        drawn: Iterable[Client], stream: Stream, share: float = 1.0
    ) -> Iterator[tuple[Client, Update, RoundReport]]:
        weights = model.trainable_weights()
        for client in drawn:
            if client.depth not in scratch:
                scratch[client.depth] = work.scratch(model, client.depth)
            yield client, *work.run(scratch[client.depth], weights, client, stream, share)

    return run


def _elsewhere(pool: ProcessPoolExecutor, model: MultiExitModel, clients: Sequence[Client], shared: Shared) -> Round:
    positions = {client.name: position for position, client in enumerate(clients)}
    sections = shared.split()

    def run(
        drawn: Iterable[Client], stream: Stream, share: float = 1.0
    ) -> Iterator[tuple[Client, Update, RoundReport]]:
        for name, tensor in model.trainable_weights().items():
            sections[0][name].copy_(tensor)
        todo, free = deque(drawn), list(range(1, len(sections)))
        running: deque[tuple[Client, int, Future]] = deque()
        while todo or running:
            while todo and free:
                client, section = todo.popleft(), free.pop()
                for name, tensor in client.own.items():
                    sections[section][name].copy_(tensor)
                job = pool.submit(
                    _train, positions[client.name], client.depth, list(client.own), stream, share, section
                )
                running.append((client, section, job))
            client, section, job = running.popleft()
            names, examples, depth, report = job.result()
            sent = {name: sections[section][name] for name in names}
            yield client, Update(sent, examples, depth), report
            free.append(section)

    return run


class _Inside:
    """The state of a worker. Only the sections of weights are shared with other processes."""

    def __init__(self, folder: str, clients: bytes, training: LocalTraining, parts: bytes, head: bytes, shared: Shared):
        train, objective = ForkingPickler.loads(parts)
        self.model = MultiExitModel.from_pretrained(folder, ForkingPickler.loads(head))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in shared.places)
        self.clients, self.work = ForkingPickler.loads(clients), Work(training, objective, train)
        self.scratch: dict[int, MultiExitModel] = {}
        self.sections = shared.split()


_inside: _Inside  # one per process, set as it starts


def _start_inside(
    folder: str, clients: bytes, training: LocalTraining, parts: bytes, head: bytes, shared: Shared, threads: int
) -> None:
    global _inside
    start_worker(threads)
    _inside = _Inside(folder, clients, training, parts, head, shared)


def _train(
    position: int, depth: int, own: list[str], stream: Stream, share: float, section: int
) -> tuple[list[str], int, int, RoundReport]:
    """Train a client, write its update to `section`, and return the update's names, examples, depth and the report.

    Before, that section holds the weights `own` that the client kept, by these names.
    """
    into, work = _inside.sections[section], _inside.work
    client = replace(_inside.clients[position], depth=depth, own={name: into[name] for name in own})
    if client.depth not in _inside.scratch:
        _inside.scratch[client.depth] = work.scratch(_inside.model, client.depth)
    update, report = work.run(_inside.scratch[client.depth], _inside.sections[0], client, stream, share)
    for name, tensor in update.weights.items():
        into[name].copy_(tensor)
    return list(update.weights), update.examples, update.depth, report
