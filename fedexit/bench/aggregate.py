"""Measure how fast the server averages: the streaming aggregator, simpler ways, and the limit set by memory."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fedexit.devices.probe import resident
from fedexit.federated.aggregation import Aggregator, Update
from fedexit.model.backbone import load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.names import layer_of

DEPTHS = {"full": (12,), "mixed": (3, 6, 9, 12)}  # client i has depth i modulo the number of depths
WAYS = [("limit", "full"), ("aggregator", "full"), ("aggregator", "mixed"), ("sum", "full"), ("stack", "full")]
_STACKED = 4  # clients of the way `stack`, which holds all of them in memory

Read = Callable[[int], dict[str, Tensor]]


def one_way(way: str, depths: str, clients: int, preset: str, started: float) -> list[dict]:
    """Average client models in one way and return a row per measured quantity.

    Args:
        way: `limit` adds one vector to another in place, which no streaming way can beat. `aggregator` uses
            `Aggregator`; a second row leaves out the time of `result`. `sum` computes `acc = acc + w * u`. `stack`
            collects the clients in a list, stacks and sums them.
        depths: a key of `DEPTHS`.
        clients: number of clients; `stack` takes at most four.
        preset: a backbone name; the models have its shape and random weights.
        started: unused; every target has it.

    Returns:
        Rows with `gb_per_s`, the clients' bytes divided by the time of averaging alone, and `extra_mb`, the peak memory
        beyond the global weights and one client. `extra_mb` of `limit` includes its own vectors; it is NaN outside
        Linux.
    """
    weights = MultiExitModel(load_backbone(preset), ["a", "b"]).trainable_weights()
    clients = min(clients, _STACKED) if way == "stack" else clients
    turns = DEPTHS[depths]
    extra: list[float] = []
    read = _reader(weights, turns)
    moved = sum(_bytes(_held(weights, turns[client % len(turns)])) for client in range(clients))
    with _peak(extra):
        seconds = _WAYS[way](weights, read, clients, turns)
    about = {"depths": depths, "clients": clients, "extra_mb": extra[0] / 1e6}
    return [{"way": name, **about, "gb_per_s": moved / 1e9 / spent} for name, spent in seconds.items()]


def _reader(weights: dict[str, Tensor], depths: tuple[int, ...]) -> Read:
    """Return a function that gives client i's weights.

    All clients share one buffer, which is larger than a processor's cache and changes for each client.
    """
    buffer = {name: torch.randn_like(tensor) for name, tensor in weights.items()}

    def read(client: int) -> dict[str, Tensor]:
        for tensor in buffer.values():
            tensor.neg_()
        return _held(buffer, depths[client % len(depths)])

    return read


def _held(weights: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if (layer_of(name) or 0) <= depth}


def _bytes(weights: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def _aggregator(weights: dict[str, Tensor], read: Read, clients: int, depths: tuple[int, ...]) -> dict[str, float]:
    aggregator, adding = Aggregator(weights), 0.0
    for client in range(clients):
        update = Update(read(client), 1 + client, depths[client % len(depths)])
        since = time.perf_counter()
        aggregator.add(update)
        adding += time.perf_counter() - since
    since = time.perf_counter()
    aggregator.result()
    return {"aggregator": adding + time.perf_counter() - since, "aggregator, without result": adding}


def _sum(weights: dict[str, Tensor], read: Read, clients: int, depths: tuple[int, ...]) -> dict[str, float]:
    mean, spent = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}, 0.0
    for client in range(clients):
        update = read(client)
        since = time.perf_counter()
        for name, tensor in update.items():
            mean[name] = mean[name] + tensor * (1 / clients)
        spent += time.perf_counter() - since
    return {"sum": spent}


def _stack(weights: dict[str, Tensor], read: Read, clients: int, depths: tuple[int, ...]) -> dict[str, float]:
    everyone = [{name: tensor.clone() for name, tensor in read(client).items()} for client in range(clients)]
    since = time.perf_counter()
    mean = {name: torch.stack([each[name] * (1 / clients) for each in everyone]).sum(0) for name in weights}
    spent = time.perf_counter() - since
    del mean
    return {"stack": spent}


def _limit(weights: dict[str, Tensor], read: Read, clients: int, depths: tuple[int, ...]) -> dict[str, float]:
    size, spent = _bytes(weights) // 4, 0.0
    update, total = torch.ones(size), torch.zeros(size)
    for client in range(clients):
        update.neg_()
        since = time.perf_counter()
        total.add_(update, alpha=1.0 + client)
        spent += time.perf_counter() - since
    return {"limit": spent}


_WAYS = {"limit": _limit, "aggregator": _aggregator, "sum": _sum, "stack": _stack}


@contextmanager
def _peak(found: list[float]) -> Iterator[None]:
    """Append to `found` the largest rise of resident memory (bytes) during the block; NaN outside Linux."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        yield
        found.append(float("nan"))
        return
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident("VmRSS")
    yield
    found.append(resident("VmHWM") - before)
