"""Write the ledger: the costs of each local round."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedexit.federated.clients import Client, LocalTraining, RoundReport
from fedexit.federated.objectives import Objective
from fedexit.model.costs import clip_macs, fewest_samples, held_weights, memory, sizes_by_layer
from fedexit.model.exits import MultiExitModel
from fedexit.support.checks import check_exit


def client_costs(
    model: MultiExitModel,
    depth: int,
    lengths: Sequence[int],
    training: LocalTraining,
    cached: bool = False,
    objective: Objective = Objective(),  # noqa: B008 (frozen)
) -> dict[str, int]:
    """Return the costs of one local round, which are columns of the ledger.

    Args:
        model: The global model.
        depth: L_i, the depth of the client.
        lengths: Lengths of its clips in samples at 16 kHz; in frames if they are `cached` features.
        training: The options of training.
        cached: Whether the clips are frozen features, so that nothing is convolved.
        objective: The loss, which decides the heads that the client holds.

    Returns `parameters` and `bytes` of the weights that it sends, and receives as well; `macs_forward` and
    `macs_backward` over all clips and epochs, without padding; `memory_forward` and `memory_training` in bytes, for a
    whole batch of its longest clip, by the memory model. Raises FedexitError when `depth` is not an exit, and for clips
    shorter than one frame.
    """
    check_exit(depth, model.exits, model.backbone.name)
    exits = objective.exits(depth, model.exits)
    sent = sizes_by_layer(held_weights(model.trainable_weights(), exits))
    heads = [model.head_at(exit) for exit in exits]
    samples = [fewest_samples(model.backbone.model.config, length) for length in lengths] if cached else lengths
    by_length = {length: clip_macs(model.backbone, length, depth, *heads) for length in set(samples)}
    clips = [by_length[length] for length in samples]
    forward = sum(clip.trained + (0 if cached else clip.frozen) for clip in clips)
    about = depth, training.optimiser, cached, exits, training.recompute
    held = memory(model, max(samples), min(training.batch_size, len(clips)), *about)
    return {
        "parameters": int(sent["parameters"].sum()),
        "bytes": int(sent["bytes"].sum()),
        "macs_forward": forward * training.epochs,
        "macs_backward": sum(clip.backward for clip in clips) * training.epochs,
        "memory_forward": held.forward,
        "memory_training": held.training + bool(objective.proximal) * int(sent["bytes"].sum()),  # w(t) of FedProx
    }


def heads_costs(
    model: MultiExitModel, depth: int, report: RoundReport, training: LocalTraining, first: bool
) -> dict[str, int]:
    """Return the costs of a round that trains heads alone on the frozen backbone (`regime.train_heads`).

    In its `first` such round a client runs its clips through the backbone. The backward pass has one product per head,
    for the gradients of its weights.
    """
    everything = Objective(losses="all")
    once = client_costs(model, depth, report.lengths, replace(training, epochs=1), report.cached, everything)
    exits = everything.exits(depth, model.exits)
    sent = {
        name: tensor for name, tensor in held_weights(model.trainable_weights(), exits).items() if ".linear." in name
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in sent.values())
    macs = len(report.lengths) * sum(model.head_at(exit).macs(1) for exit in exits)
    return {
        "parameters": sum(tensor.numel() for tensor in sent.values()),
        "bytes": size,
        "macs_forward": macs * training.epochs + first * (once["macs_forward"] - macs),
        "macs_backward": macs * training.epochs,
        "memory_forward": once["memory_forward"],
        "memory_training": once["memory_forward"] + 3 * size,  # gradients and Adam's two moments
    }


def ledger_row(number: int, client: Client, report: RoundReport, costs: Mapping[str, int]) -> dict:
    """Return a client's row of `Federation.clients` in round `number`, from its report and its `client_costs`."""
    about = dict(round=number, client=client.name, tier=client.tier, depth=client.depth, examples=len(client.data))
    return {**about, "loss": report.loss, **costs, "seconds": report.seconds}
