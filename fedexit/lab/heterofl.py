"""Train by HeteroFL (Diao et al., ICLR 2021): weak clients train narrow layers, but all of them.

A client of width r has the first share r of the channels, attention heads and feed-forward units of every layer, so it
holds the leading block of each weight. Work and memory of a layer fall with r^2: width 1/2 costs about as much as a
quarter of the depth. This method needs other models and another average than the methods of
`fedexit.federated.methods`. It has its own round loop, with the same random streams as `fedexit.federated.rounds`.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fedexit.data.batches import Example, collate
from fedexit.federated.aggregation import finite
from fedexit.federated.checks import check_data, check_run
from fedexit.federated.clients import Client, LocalTraining, local_round
from fedexit.federated.ledger import client_costs, ledger_row
from fedexit.federated.objectives import Objective
from fedexit.federated.rounds import CURVE, Federation, evaluated, sample
from fedexit.model.backbone import Backbone, backbone_from_config, config_of, state_hash
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import head_name
from fedexit.support.checks import check_exit
from fedexit.support.errors import FedexitError
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress

_SCALED = ("hidden_size", "num_attention_heads", "intermediate_size", "num_conv_pos_embedding_groups")
Place = tuple[Tensor, ...]  # the index of a narrow tensor's elements in the full one


def narrowed(model: MultiExitModel, width: float) -> MultiExitModel:
    """Return a copy of `model` with the first share `width` of its channels, attention heads and feed-forward units.

    The frozen convolutions stay whole. Raises FedexitError for a share outside (0, 1] or without whole numbers, LoRA,
    and a head with a recurrent layer or of your own.
    """
    if model.backbone.lora:
        raise FedexitError("adapters have no channels to leave out; use a model without LoRA")
    if model.head not in ("pooled", "ctc"):
        raise FedexitError(
            f"head {head_name(model.head)} is recurrent or your own and has no known leading block; take pooled or ctc"
        )
    config = config_of(model.backbone)
    for name in _SCALED:
        if not 0 < width <= 1 or (config[name] * width) % 1:
            raise FedexitError(f"width {width} of {name} {config[name]} is not a whole number above 0; take another")
        config[name] = int(config[name] * width)
    backbone = backbone_from_config(config, model.backbone.name, model.backbone.pretrained)
    narrow = model.like(backbone, model.exits)
    places, full = places_in(model, narrow), model.state_dict()
    narrow.load_state_dict({name: full[name][place] for name, place in places.items()})
    return narrow


def places_in(model: MultiExitModel, narrow: MultiExitModel) -> dict[str, Place]:
    """Return, by name, the index of each weight and buffer of `narrow` in that of `model`."""
    full, pooled = model.state_dict(), model.head == "pooled"
    return {
        name: _place(tensor.shape, full[name].shape, pooled and name.startswith("heads.") and ".norm." not in name)
        for name, tensor in narrow.state_dict().items()
    }


def _place(narrow: torch.Size, full: torch.Size, pooled: bool) -> Place:
    """Return the index of the leading block. A head on pooled statistics has two: for the means and the deviations."""
    index = [torch.arange(size) for size in narrow]
    if pooled and narrow[-1] < full[-1]:
        half = torch.arange(narrow[-1] // 2)
        index[-1] = torch.cat([half, full[-1] // 2 + half])
    return torch.meshgrid(*index, indexing="ij")


def average_by_element(
    global_weights: Mapping[str, Tensor], updates: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Place]]]
) -> dict[str, Tensor]:
    """Average every element over the clients that trained it, with equal weights (HeteroFL).

    updates: pairs of a client's weights and their index in the global weights (`places_in`). An element that no client
    trained stays bit-identical. Raises FedexitError when an average is not finite.
    """
    sums = {name: torch.zeros_like(tensor) for name, tensor in global_weights.items()}
    counts = {name: torch.zeros_like(tensor) for name, tensor in global_weights.items()}
    for weights, places in updates:
        for name, tensor in weights.items():
            sums[name][places[name]] += tensor
            counts[name][places[name]] += 1
    means = {
        name: torch.where(counts[name] > 0, sums[name] / counts[name], old) for name, old in global_weights.items()
    }
    return {name: finite(name, mean) for name, mean in means.items()}


class WidthModels(nn.Module):
    """Models of several widths with the interface of one `MultiExitModel`.

    Its `exits` are depths: each stands for the width that costs about as much as that depth.
    """

    def __init__(self, models: Mapping[int, MultiExitModel]):
        super().__init__()
        self.exits = sorted(models)
        self.labels, self.targets = models[self.exits[0]].labels, models[self.exits[0]].targets
        self.models = nn.ModuleDict({str(depth): models[depth] for depth in self.exits})

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, exits: Iterable[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the logits of the model of each of `exits` (default all). See `MultiExitModel.forward`."""
        return self._asked("forward", waveforms, lengths, exits)

    def embeddings(
        self, waveforms: Tensor, lengths: Tensor | None = None, exits: Iterable[int] | None = None
    ) -> dict[int, Tensor]:
        """Return `MultiExitModel.embeddings` of the model of each of `exits` (default all)."""
        return self._asked("embeddings", waveforms, lengths, exits)

    def checksum(self) -> str:
        """Return the SHA-256 of all weights and their names."""
        return state_hash(self)

    def check_clips(self, data: Sequence[Example], owner: str, start: int = 0) -> tuple[list[int], bool]:
        """Check that the models can read all clips and targets. See `MultiExitModel.check_clips`."""
        deepest: Any = self.models[str(self.exits[-1])]
        return deepest.check_clips(data, owner, start=start)

    def _asked(self, what: str, waveforms: Tensor, lengths: Tensor | None, exits: Iterable[int] | None) -> dict:
        asked = self.exits if exits is None else sorted(exits)
        for depth in asked:
            check_exit(depth, self.exits, "the models by width")
        models: dict[int, Any] = {depth: self.models[str(depth)] for depth in asked}
        return {depth: getattr(model, what)(waveforms, lengths)[model.exits[-1]] for depth, model in models.items()}


def widths_for(depths: Iterable[int], backbone: Backbone) -> dict[int, float]:
    """Return the width that costs about as much as each of `depths`: the root of its share of the deepest.

    It is rounded to the nearest width with whole numbers of attention heads, channels and units (`narrowed`).
    """
    depths, config = list(depths), config_of(backbone)
    heads = config["num_attention_heads"]
    widths = [number / heads for number in range(1, heads + 1)]
    whole = [width for width in widths if not any((config[name] * width) % 1 for name in _SCALED)]
    wished = {depth: math.sqrt(depth / max(depths)) for depth in depths}
    return {depth: min((abs(width - wish), width) for width in whole)[1] for depth, wish in wished.items()}


def federate_by_width(
    model: MultiExitModel,
    clients: Sequence[Client],
    widths: Mapping[int, float],
    rounds: int,
    seed: int = 0,
    fraction: float = 1.0,
    training: LocalTraining | None = None,
    unlabelled: Sequence[Example] = (),
    dev: Sequence[Example] = (),
) -> Federation:
    """Run HeteroFL from a copy of `model`: every client trains to its one exit, at the width of its depth.

    The result has `WidthModels` as its model, and a column `width` in its ledger. Nothing is saved on the way. Other
    arguments and errors are as those of `federate`.

    Args:
        model: The full model, with one exit.
        widths: Width by depth (`widths_for`); the depth of a client stands for a width.
        unlabelled: Clips that standardise the heads of narrow models before the first round
            (`MultiExitModel.standardise`), as the statistics of a narrow layer are not a part of those of a wide one.
        dev: Clips for the errors before the first round and after the last.
    """
    training, ledger, costs = training or LocalTraining(), [], {}
    check_run(clients, rounds, fraction)
    if len(model.exits) > 1 or not {client.depth for client in clients} <= set(widths):
        raise FedexitError("HeteroFL needs a model with one exit and a width for every client's depth; see widths_for")
    last = model.exits[-1]
    check_data(model, [replace(client, depth=last) for client in clients], dev, training, Objective())
    model = copy.deepcopy(model)
    with one_thread():
        models = {depth: narrowed(model, width) for depth, width in widths.items()}
        for depth, narrow in models.items():
            if widths[depth] < 1 and len(unlabelled):
                narrow.standardise(*collate(unlabelled)[:2])
        places = {depth: places_in(model, narrow) for depth, narrow in models.items()}
        together: Any = WidthModels(models)
        table = evaluated(together, dev, 0)
        for number in progress(range(1, rounds + 1), f"heterofl, seed {seed}"):
            weights, updates = model.trainable_weights(), []
            for client in sample(clients, fraction, seed, number):
                scratch, place = models[client.depth], places[client.depth]
                stream = (seed, "round", number, "client", client.name)
                update, report = local_round(
                    scratch, _cut(weights, place), replace(client, depth=last), training, stream
                )
                updates.append((update.weights, place))
                if client.name not in costs:
                    costs[client.name] = client_costs(scratch, last, report.lengths, training, report.cached)
                row = ledger_row(number, client, report, costs[client.name])
                ledger.append({**row, "width": widths[client.depth]})
            model.load_weights(average_by_element(weights, updates))
        for depth, narrow in models.items():
            narrow.load_weights(_cut(model.trainable_weights(), places[depth]))
        table += evaluated(together, dev, rounds)
    return Federation(together.eval(), pd.DataFrame(table, columns=CURVE), pd.DataFrame(ledger))


def _cut(weights: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[str, Tensor]:
    return {name: tensor[places[name]] for name, tensor in weights.items()}
