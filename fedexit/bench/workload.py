"""Define the workload that all engines share: a small wav2vec 2.0, clients with seeded noise, FedAvg with plain SGD.

All engines train the same model on the same clips with the same batches in the same order. They must end with the same
weights, so that only the engine differs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

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
EXITS = {"full": (12,), "empty": (12,), "mixed": (3, 9)}  # client i has depth i modulo the number of depths


@dataclass(frozen=True)
class Workload:
    """The model, the data and the training of one run.

    Attributes:
        kind: `full` trains every client to exit 12, `mixed` half of them to exit 3 and half to exit 9. Clients of
            `empty` return untrained, so that its rounds measure the cost of the engine alone.
        rounds: communication rounds.
        clients: number of clients; all take part in every round.
        clips: clips per client.
        samples: samples per clip, at 16 kHz.
        batch: clips per batch.
        width: hidden size of the Transformer.
        channels: channels of the convolutions.
    """

    kind: str = "full"
    rounds: int = 5
    clients: int = 16
    clips: int = 16
    samples: int = 16_000
    batch: int = 8
    width: int = 96
    channels: int = 32


@dataclass(frozen=True)
class Sizes:
    """The amount of work that is measured. The defaults take about 15 minutes.

    Attributes:
        workload: what the engines train.
        preset: backbone whose shape the parts `aggregate` and `depth` use.
        models: clients that the part `aggregate` averages.
        samples: samples at 16 kHz of a clip of the part `depth`.
    """

    workload: Workload = field(default_factory=Workload)
    preset: str = "base"
    models: int = 10
    samples: int = 32_000


def build_model(workload: Workload) -> MultiExitModel:
    """Return the global model: 12 layers, fixed random weights, no dropout, no masking, frozen convolutions."""
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
    """Return the clients, each with its own clips of noise and labels."""
    return [build_client(workload, number) for number in range(workload.clients)]


def build_client(workload: Workload, number: int) -> Client:
    """Return client `number` (from 0) of `build_clients` without building the others."""
    random = torch.Generator().manual_seed(stream_seed(SEED, "bench", "client", number))
    clips = torch.randn(workload.clips, workload.samples, generator=random)
    labels = torch.randint(len(LABELS), (workload.clips,), generator=random).tolist()
    exits = EXITS[workload.kind]
    return Client(str(number), list(zip(clips, labels, strict=True)), exits[number % len(exits)])


def epoch(workload: Workload, client: Client, round_number: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the batches (waveforms, lengths, labels) that `federate` draws for a client in a round (from 1)."""
    rng = numpy_stream(SEED, "round", round_number, "client", client.name, "batches", 0)
    return list(batches(client.data, workload.batch, rng))


def loss(model: MultiExitModel, waveforms: Tensor, lengths: Tensor, labels: Tensor, depth: int) -> Tensor:
    """Return the cross-entropy at the exit `depth`."""
    return torch.nn.functional.cross_entropy(model(waveforms, lengths, exits=[depth])[depth], labels)


def train_locally(model: MultiExitModel, workload: Workload, client: Client, round_number: int) -> None:
    """Train `model` in place for one local epoch of plain SGD; every engine except `fedexit` calls this."""
    if workload.kind == "empty":
        return
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    for waveforms, lengths, labels in epoch(workload, client, round_number):
        optimiser.zero_grad()
        loss(model, waveforms, lengths, labels, client.depth).backward()
        optimiser.step()


def checksum(weights: Mapping[str, Tensor]) -> float:
    """Return the sum of absolute values in double precision."""
    return sum(float(tensor.detach().double().abs().sum()) for tensor in weights.values())


def outcome(workload: Workload, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Return two numbers that identify final `weights`: `checksum`, and `moved`, the checksum of their change.

    `moved` is the sensitive one. Training changes these weights little: a missing client or another order of clips
    changes the sixth digit of `checksum` but the third digit of `moved`.
    """
    start = build_model(workload).trainable_weights()
    moved = {name: weights[name].detach() - tensor for name, tensor in start.items()}
    return {"checksum": checksum(weights), "moved": checksum(moved)}


def same_weights(found: Mapping, expected: Mapping, kind: str) -> bool:
    """Return whether two `outcome`s are equal up to the rounding of sums in another order."""
    rounding = 1e-6 * expected["checksum"] if kind == "empty" else 0.0  # largest rounding error of an untrained mean
    return math.isclose(found["moved"], expected["moved"], rel_tol=1e-4, abs_tol=rounding)
