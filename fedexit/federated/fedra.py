"""Train by FedRA (Su et al., ECCV 2024): a client gets L_i layers, drawn anew in each round, not the first L_i."""

from collections.abc import Mapping

from torch import Tensor

from fedexit.federated.aggregation import Update
from fedexit.federated.clients import Client, LocalTraining, RoundReport, local_round
from fedexit.federated.objectives import Objective
from fedexit.model.exits import MultiExitModel
from fedexit.model.names import in_layer, layer_of
from fedexit.support.streams import numpy_stream


def round_of_drawn_layers(
    model: MultiExitModel,
    global_weights: Mapping[str, Tensor],
    client: Client,
    training: LocalTraining,
    stream: tuple[str | int, ...],
    objective: Objective,
) -> tuple[Update, RoundReport]:
    """Run `local_round` on L_i of all layers, drawn from the stream and kept in their order.

    Arguments and errors are those of `local_round`. The update has the depth of the global model, because its layers
    may lie anywhere.
    """
    layers = max(layer_of(name) or 0 for name in global_weights)
    drawn = sorted(numpy_stream(*stream, "layers").choice(layers, client.depth, replace=False) + 1)
    places = {}
    for name in model.trainable_weights():
        place = in_layer(name, drawn[layer - 1]) if (layer := layer_of(name)) else name
        places[name] = place if place in global_weights else name  # only layer 1 of WavLM has relative positions
    received = {name: global_weights[place] for name, place in places.items()}
    update, report = local_round(model, received, client, training, stream, objective)
    return Update({places[name]: tensor for name, tensor in update.weights.items()}, update.examples, layers), report
