"""Processes of one thread each: for many jobs side by side, and for the clients of one round.

One thread, because two on a busy core are ten times slower, and because sums may round differently with another number
of threads: so no bit depends on how many workers there are.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedexit.data.batches import Example
from fedexit.federated.aggregation import Update
from fedexit.federated.clients import Client, LocalTraining, local_round
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError
from fedexit.support.processes import _pool, _start_worker, one_thread

Stream = tuple[str | int, ...]
Round = Callable[[Iterable[Client], Stream], Iterator[tuple[Client, Update, dict]]]
_ALIGN = 64  # bytes: where torch lets a tensor begin


@contextmanager
def local_rounds(
    model: MultiExitModel, clients: Sequence[Client], training: LocalTraining, workers: int
) -> Iterator[Round]:
    """Gives a function `run(drawn, stream)`: the local rounds of the clients `drawn`, from the weights of `model`.

    It yields (client, update, metrics) in the order of `drawn`; the tensors of an update are good until the next one is
    asked for. A client's random stream is `stream` and its name. One worker is this process. Raises FedexitError for
    several workers on a GPU, too little shared memory and a worker that dies.
    """
    with one_thread():
        if workers == 1:
            yield _here(model, training)
            return
        if next(model.parameters()).device.type != "cpu":
            raise FedexitError("several workers share a CPU, not a GPU: take workers=1 or move the model to the CPU")
        shared = _Shared.of(model.trainable_weights(), sections=1 + 2 * workers)
        clients = [replace(client, data=_plain(client.data)) for client in clients]
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)  # because a model with weight norm cannot be pickled
            # its server has imported torch: a worker starts at once, and all share the libraries' memory
            with _pool("forkserver", workers, _start_inside, folder, clients, training, shared) as pool:
                yield _elsewhere(pool, model, clients, shared)


def _here(model: MultiExitModel, training: LocalTraining) -> Round:
    scratch: dict[int, MultiExitModel] = {}

    def run(drawn: Iterable[Client], stream: Stream) -> Iterator[tuple[Client, Update, dict]]:
        weights = model.trainable_weights()
        for client in drawn:
            if client.depth not in scratch:
                scratch[client.depth] = _scratch(model, client.depth, training)
            yield client, *local_round(scratch[client.depth], weights, client, training, (*stream, client.name))

    return run


def _scratch(model: MultiExitModel, depth: int, training: LocalTraining) -> MultiExitModel:
    """Where clients of `depth` train, one after the other."""
    return model.client_model(depth, training.exits(depth, model.exits))


def _plain(data: Sequence[Example]) -> Sequence[Example]:
    """`data` as it can go to a worker: not as a list of tensors, as torch would send each by a file descriptor."""
    return _Arrays([(clip.numpy(), label) for clip, label in data]) if isinstance(data, list | tuple) else data


class _Arrays(Sequence[Example]):
    """Examples whose clips are kept as NumPy arrays."""

    def __init__(self, pairs: list[tuple[np.ndarray, int]]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        clip, label = self.pairs[index]
        return torch.from_numpy(clip), label


class _Shared(NamedTuple):
    """Shared memory in sections of one size: the global weights, then a place for each of some updates."""

    memory: Tensor
    section: int
    places: dict[str, tuple[int, torch.Size, torch.dtype]]

    @classmethod
    def of(cls, weights: dict[str, Tensor], sections: int) -> "_Shared":
        places, end = {}, 0
        for name, tensor in weights.items():
            places[name] = end, tensor.shape, tensor.dtype
            end += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
        try:
            memory = torch.empty(sections * end, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise FedexitError(
                f"the workers need {sections * end / 1e6:.0f} MB of shared memory (/dev/shm); take workers=1, or more "
                "of it (a container's --shm-size)"
            ) from error
        return cls(memory, end, places)

    def split(self) -> list[dict[str, Tensor]]:
        """The weights of each section, by name, in its memory."""
        return [self._weights(start) for start in range(0, len(self.memory), self.section)]

    def _weights(self, start: int) -> dict[str, Tensor]:
        views = {}
        for name, (offset, shape, dtype) in self.places.items():
            size = shape.numel() * dtype.itemsize
            views[name] = self.memory[start + offset : start + offset + size].view(dtype).view(shape)
        return views


def _elsewhere(pool: ProcessPoolExecutor, model: MultiExitModel, clients: Sequence[Client], shared: _Shared) -> Round:
    positions = {client.name: position for position, client in enumerate(clients)}
    sections = shared.split()

    def run(drawn: Iterable[Client], stream: Stream) -> Iterator[tuple[Client, Update, dict]]:
        for name, tensor in model.trainable_weights().items():
            sections[0][name].copy_(tensor)
        todo, running, free = deque(drawn), deque(), list(range(1, len(sections)))
        while todo or running:
            while todo and free:
                client, section = todo.popleft(), free.pop()
                for name, tensor in client.own.items():
                    sections[section][name].copy_(tensor)
                told = positions[client.name], client.depth, list(client.own)
                job = pool.submit(_train, *told, stream, section)
                running.append((client, section, job))
            client, section, job = running.popleft()
            names, depth, metrics = job.result()
            sent = {name: sections[section][name] for name in names}
            yield client, Update(sent, len(client.data), depth), metrics
            free.append(section)

    return run


class _Inside:
    """What a worker holds: everything but the global weights is its own."""

    def __init__(self, folder: str, clients: list[Client], training: LocalTraining, shared: _Shared):
        self.model = MultiExitModel.from_pretrained(folder)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in shared.places)
        self.clients, self.training, self.scratch = clients, training, {}
        self.sections = shared.split()


_inside: _Inside | None = None  # one per process


def _start_inside(folder: str, clients: list[Client], training: LocalTraining, shared: _Shared) -> None:
    global _inside
    _start_worker()
    _inside = _Inside(folder, clients, training, shared)


def _train(position: int, depth: int, own: list[str], stream: Stream, section: int) -> tuple[list[str], int, dict]:
    """The local round of a client: the update goes to `section`, its names and depth and the metrics are given back.

    What the client has of its `own`, by these names, comes in the same section.
    """
    into = _inside.sections[section]
    client = replace(_inside.clients[position], depth=depth, own={name: into[name] for name in own})
    if client.depth not in _inside.scratch:
        _inside.scratch[client.depth] = _scratch(_inside.model, client.depth, _inside.training)
    scratch = _inside.scratch[client.depth]
    update, metrics = local_round(scratch, _inside.sections[0], client, _inside.training, (*stream, client.name))
    for name, tensor in update.weights.items():
        into[name].copy_(tensor)
    return list(update.weights), update.depth, metrics
