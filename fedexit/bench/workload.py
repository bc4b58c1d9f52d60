"""The workload that all engines share: a small wav2vec 2.0, clients with seeded noise, FedAvg with plain SGD.

It is the same model, the same clips, the same batches in the same order for each of them, so that they must end with
the same weights, and what differs is the engine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from fedexit.data.batches import batches
from fedexit.federated.clients import Client
from fedexit.model.backbone import Backbone
from fedexit.model.exits import MultiExitModel
from fedexit.support.streams import numpy_stream, seeded, stream_seed

SEED = 0
LEARNING_RATE = 0.01
LABELS = [str(label) for label in range(10)]
EXITS = {"full": (12,), "empty": (12,), "mixed": (3, 9)}  # the clients' depths, in turn


@dataclass(frozen=True)
class Workload:
    """How much of what. `kind`: `full` depth, `mixed` (half the clients at exit 3, half at 9), or `empty`.

    Clients of an `empty` workload return at once, untrained: its rounds are the engine's own cost. `samples` per clip
    at 16 kHz; `width` and `channels` are those of the Transformer and the convolutions.
    """

    kind: str = "full"
    rounds: int = 5
    clients: int = 16
    clips: int = 16
    samples: int = 16_000
    batch: int = 8
    width: int = 96
    channels: int = 32


def build_model(workload: Workload) -> MultiExitModel:
    """The global model with random weights, always the same: 12 layers, no dropout, no masking, frozen convolutions."""
    config = AutoConfig.for_model(
        "wav2vec2", hidden_size=workload.width, num_hidden_layers=12, num_attention_heads=4,
        intermediate_size=4 * workload.width, conv_dim=(workload.channels,) * 7, num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
        feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip
    with seeded(SEED, "bench", "backbone"):
        backbone = Backbone(AutoModel.from_config(config), "bench", pretrained=False)
    return MultiExitModel(backbone, LABELS, EXITS[workload.kind], seed=SEED)


def build_clients(workload: Workload) -> list[Client]:
    """Clients with clips of noise, each with labels of its own."""
    return [build_client(workload, number) for number in range(workload.clients)]


def build_client(workload: Workload, number: int) -> Client:
    """Client `number` (from 0) of `build_clients`, made without the others."""
    random = torch.Generator().manual_seed(stream_seed(SEED, "bench", "client", number))
    clips = torch.randn(workload.clips, workload.samples, generator=random)
    labels = torch.randint(len(LABELS), (workload.clips,), generator=random).tolist()
    exits = EXITS[workload.kind]
    return Client(str(number), list(zip(clips, labels, strict=True)), exits[number % len(exits)])


def epoch(workload: Workload, client: Client, round_number: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The batches (waveforms, lengths, labels) of a client in a round (from 1): the very ones that `federate` draws."""
    rng = numpy_stream(SEED, "round", round_number, "client", client.name, "batches", 0)
    return list(batches(client.data, workload.batch, rng))


def loss(model: MultiExitModel, waveforms: Tensor, lengths: Tensor, labels: Tensor, depth: int) -> Tensor:
    """Cross-entropy at the exit `depth`."""
    return torch.nn.functional.cross_entropy(model(waveforms, lengths, exits=[depth])[depth], labels)


def train_locally(model: MultiExitModel, workload: Workload, client: Client, round_number: int) -> None:
    """One local epoch of plain SGD, in place: what every engine but fedexit's own calls."""
    if workload.kind == "empty":
        return
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    for waveforms, lengths, labels in epoch(workload, client, round_number):
        optimiser.zero_grad()
        loss(model, waveforms, lengths, labels, client.depth).backward()
        optimiser.step()


def checksum(weights: Mapping[str, Tensor]) -> float:
    """Sum of absolute values, in double precision."""
    return sum(float(tensor.detach().double().abs().sum()) for tensor in weights.values())


def outcome(workload: Workload, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """What tells final `weights` from others: their `checksum`, and that of how far training `moved` them.

    The second one decides. Training moves these weights so little that a forgotten client, or clips in another order,
    shows in the sixth digit of the sum of all weights and later; in `moved` it shows in the third.
    """
    start = build_model(workload).trainable_weights()
    moved = {name: weights[name].detach() - tensor for name, tensor in start.items()}
    return {"checksum": checksum(weights), "moved": checksum(moved)}


def same_weights(found: Mapping, expected: Mapping, kind: str) -> bool:
    """Whether two engines' `outcome`s are the same, but for the order in which they add the same numbers."""
    rounding = 1e-6 * expected["checksum"] if kind == "empty" else 0.0  # all that an untrained mean can differ by
    return math.isclose(found["moved"], expected["moved"], rel_tol=1e-4, abs_tol=rounding)
