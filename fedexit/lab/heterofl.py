"""Train by HeteroFL (Diao et al., ICLR 2021): weak clients train narrow layers, but all of them.

A client of width r has the first share r of the channels, attention heads and feed-forward units of every layer, so it
holds the leading block of each weight. Work and memory of a layer fall with r^2: width 1/2 costs about as much as a
quarter of the depth. This method needs other models and another average than the methods of
`fedexit.federated.methods`. It has its own round loop, with the same random streams as `fedexit.federated.rounds`.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from fedexit.data.batches import Example, collate
from fedexit.federated.aggregation import finite
from fedexit.federated.checks import check_data, check_run
from fedexit.federated.clients import Client, LocalTraining, at_share, local_round
from fedexit.federated.ledger import client_costs, ledger_row
from fedexit.federated.objectives import Objective
from fedexit.federated.regime import Costs, Regime, Statistics, check_regime, round_of_heads, update_average
from fedexit.federated.rounds import CURVE, Federation, evaluated, sample
from fedexit.lab.channels import Kept, kinds_of_axes, layer_with, strongest
from fedexit.model.backbone import Backbone, backbone_from_config, config_of, state_hash
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import head_name
from fedexit.support.checks import check_exit
from fedexit.support.errors import FedexitError
from fedexit.support.placement import Device, device_for
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress

_SCALED = ("hidden_size", "num_attention_heads", "intermediate_size", "num_conv_pos_embedding_groups")
Place = tuple[Tensor, ...]  # the index of a narrow tensor's elements in the full one


def narrowed(model: MultiExitModel, width: float, ranked: bool = False) -> MultiExitModel:
    """Return a copy of `model` with a share `width` of its channels, attention heads and feed-forward units.

    The frozen convolutions stay whole.

    Args:
        model: the full model.
        width: the share, in (0, 1].
        ranked: keep those of the largest norm (`strongest`), not the first.

    Raises:
        FedexitError: the share is out of range or does not give whole numbers; the model has adapters, or a head that
            is recurrent or your own; `ranked` for a WavLM.
    """
    if model.backbone.lora:
        raise FedexitError("adapters have no channels to leave out; use a model without LoRA")
    if model.head not in ("pooled", "ctc"):
        raise FedexitError(
            f"head {head_name(model.head)} is recurrent or your own and has no known leading block; take pooled or ctc"
        )
    config = config_of(model.backbone)
    if ranked and config["model_type"] == "wavlm":
        raise FedexitError("the position bias of WavLM has no ranked channels; take a HuBERT or ranked=False")
    for name in _SCALED[: 3 if ranked else 4]:
        if not 0 < width <= 1 or (config[name] * width) % 1:
            raise FedexitError(f"width {width} of {name} {config[name]} is not a whole number above 0; take another")
        config[name] = int(config[name] * width)
    backbone = backbone_from_config(config, model.backbone.name, model.backbone.pretrained)
    narrow = model.like(backbone, model.exits).to(device_for(model))
    places, full = places_in(model, narrow, ranked), model.state_dict()
    narrow.load_state_dict({name: full[name][place] for name, place in places.items()})
    return narrow


def places_in(model: MultiExitModel, narrow: MultiExitModel, ranked: bool = False) -> dict[str, Place]:
    """Return, by name, the index of each weight and buffer of `narrow` in that of `model`.

    If `ranked`, call it before `model` is trained, because its weights decide the index.
    """
    full, pooled = model.state_dict(), model.head == "pooled"
    kept = strongest(model.backbone, narrow.backbone) if ranked else {}
    heads = {name for name in full if pooled and name.startswith("heads.") and ".norm." not in name}
    return {
        name: _place(name, tensor.shape, full[name].shape, name in heads, kept)
        for name, tensor in narrow.state_dict().items()
    }


def _place(name: str, narrow: torch.Size, full: torch.Size, pooled: bool, kept: Kept) -> Place:
    """Return the index of the kept block. A head on pooled statistics has two: for the means and the deviations."""
    channels = kept.get((0, "channels"))
    index = [torch.arange(size) for size in narrow]
    for axis, kind in enumerate(kinds_of_axes(name, len(narrow)) if kept else ()):
        if narrow[axis] < full[axis] and not pooled:
            index[axis] = kept[layer_with(name, kind), kind]
    if pooled and narrow[-1] < full[-1]:
        half = torch.arange(narrow[-1] // 2) if channels is None else channels
        index[-1] = torch.cat([half, full[-1] // 2 + half])
    if channels is not None and "pos_conv_embed" in name and narrow[0] < full[0] and len(narrow) == 3:
        groups = channels.view(-1, narrow[1]) % full[1]  # a channel reads only those of its own group
        inputs = groups.repeat_interleave(narrow[1], 0)[:, :, None]
        return channels[:, None, None], inputs, index[2]
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

    def at(self, depth: int) -> MultiExitModel:
        """Return the model of the width that stands for `depth`."""
        return cast(MultiExitModel, self.models[str(depth)])

    def checksum(self) -> str:
        """Return the SHA-256 of all weights and their names."""
        return state_hash(self)

    def check_clips(self, data: Sequence[Example], owner: str, start: int = 0) -> tuple[list[int], bool]:
        """Check that the models can read all clips and targets. See `MultiExitModel.check_clips`."""
        return self.at(self.exits[-1]).check_clips(data, owner, start=start)

    def _asked(self, what: str, waveforms: Tensor, lengths: Tensor | None, exits: Iterable[int] | None) -> dict:
        asked = self.exits if exits is None else sorted(exits)
        for depth in asked:
            check_exit(depth, self.exits, "the models by width")
        models = {depth: self.at(depth) for depth in asked}
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
    evaluate_every: int = 0,
    regime: Regime | None = None,
    on_round: Callable[[int, WidthModels, pd.DataFrame], object] | None = None,
    ranked: bool = False,
    device: Device | None = None,
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
        evaluate_every: Rounds between further evaluations; 0 for none.
        regime: Heads first, falling rates, an averaged model. In rounds of heads every client trains the head of its
            own width on frozen layers, and the server averages by element.
        ranked: Whether narrow models keep the strongest channels of `model`, not the first (`strongest`).
        device: Where to train, as for `federate`.
    """
    training, regime, costs, average = training or LocalTraining(), regime or Regime(), {}, dict[str, Tensor]()
    check_run(clients, rounds, fraction, least=0 if regime.heads_rounds else 1)
    check_regime(regime, model)
    if len(model.exits) > 1 or not {client.depth for client in clients} <= set(widths):
        raise FedexitError("HeteroFL needs a model with one exit and a width for every client's depth; see widths_for")
    last = model.exits[-1]
    where = device_for(model, device)
    check_data(model, [replace(client, depth=last) for client in clients], dev, training, Objective(), where)
    model = copy.deepcopy(model).to(where)
    due = {0, rounds, *(range(0, rounds, evaluate_every) if evaluate_every else ())}
    with one_thread():
        models = {depth: narrowed(model, width, ranked) for depth, width in widths.items()}
        for depth, narrow in models.items():
            if widths[depth] < 1 and len(unlabelled):
                narrow.standardise(*collate(unlabelled)[:2])
        places = {depth: places_in(model, narrow, ranked) for depth, narrow in models.items()}
        sampled = partial(sample, clients, fraction, seed)
        together: Any = WidthModels(models)
        ledger = _heads_first(model, models, places, sampled, training, regime, seed)
        table = _evaluated(together, places, model.trainable_weights(), dev, 0)
        for number in progress(range(1, rounds + 1), f"heterofl, seed {seed}"):
            weights, updates = model.trainable_weights(), []
            local = at_share(training, regime.share(number, rounds))
            for client in sampled(number):
                scratch, place = models[client.depth], places[client.depth]
                stream = (seed, "round", number, "client", client.name)
                update, report = local_round(scratch, _cut(weights, place), replace(client, depth=last), local, stream)
                updates.append((update.weights, place))
                if client.name not in costs:
                    costs[client.name] = client_costs(scratch, last, report.lengths, training, report.cached)
                ledger.append(ledger_row(number, client, report, costs[client.name]))
            model.load_weights(average_by_element(weights, updates))
            if regime.average:
                update_average(average, model.trainable_weights(), regime.average)
            if number in due:
                table += _evaluated(together, places, average or model.trainable_weights(), dev, number)
            _spread(together, places, model.trainable_weights())
            if on_round and on_round(number, together, pd.DataFrame(table, columns=CURVE)) is True:
                break
        _spread(together, places, average or model.trainable_weights())
    rows = pd.DataFrame(ledger)
    return Federation(
        together.eval(), pd.DataFrame(table, columns=CURVE), rows.assign(width=rows["depth"].map(dict(widths)))
    )


def _heads_first(
    model: MultiExitModel,
    models: Mapping[int, MultiExitModel],
    places: Mapping[int, Mapping[str, Place]],
    sampled: Callable[[int], Sequence[Client]],
    training: LocalTraining,
    regime: Regime,
    seed: int,
) -> list[dict]:
    """Train the heads of all widths on frozen layers, as `fedexit.federated.regime.train_heads` does for exits."""
    rows, last, known, costs = [], model.exits[-1], dict[str, Statistics](), Costs()
    together = WidthModels(models).eval()
    for place in progress(range(1, regime.heads_rounds + 1), "heads"):
        number, updates = place - regime.heads_rounds, []
        local = at_share(training, regime.share(place, regime.heads_rounds))
        _spread(together, places, model.trainable_weights())
        for client in sampled(number):
            at_last = replace(client, depth=last)
            update, row = round_of_heads(models[client.depth], at_last, number, training, local, seed, known, costs)
            updates.append((update.weights, places[client.depth]))
            rows.append({**row, "depth": client.depth})
        weights = model.trainable_weights()
        heads = {name: tensor for name, tensor in weights.items() if name.startswith("heads.")}
        model.load_weights(weights | average_by_element(heads, updates))
    return rows


def _spread(together: WidthModels, places: Mapping[int, Mapping[str, Place]], weights: Mapping[str, Tensor]) -> None:
    """Give the model of each width its part of the global `weights`."""
    for depth, place in places.items():
        together.at(depth).load_weights(_cut(weights, place))


def _evaluated(
    together: WidthModels,
    places: Mapping[int, Mapping[str, Place]],
    weights: Mapping[str, Tensor],
    dev: Sequence[Example],
    number: int,
) -> list[list]:
    """Return the errors of the models of all widths on `dev`, with their parts of the global `weights`."""
    _spread(together, places, weights)
    return evaluated(together, dev, number)  # type: ignore[arg-type]  # it has the interface of a MultiExitModel


def _cut(weights: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[str, Tensor]:
    return {name: tensor[places[name]] for name, tensor in weights.items()}
