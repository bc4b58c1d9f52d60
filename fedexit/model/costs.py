"""Compute the costs of a client's round by depth: parameters, bytes, multiply-accumulates, memory (paper, Table 3).

Everything here is arithmetic on a model's geometry. Tests compare it with `torch.utils.flop_counter`, the serialised
size, the tensors that autograd keeps and the peak memory of separate processes (`fedexit.devices.probe`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor
from transformers import PretrainedConfig

from fedexit.model.backbone import Backbone, frame_counts
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import AnyHead, macs_of
from fedexit.model.names import layer_of
from fedexit.support.checks import check_exit
from fedexit.support.errors import FedexitError

_FLOAT = 4  # bytes
_NORM_COPIES = 4  # copies of the first convolution's output, the largest one, in its normalisation
_OPTIMISER_STATES = {"adam": 2, "sgd": 0}  # tensors of its size that the optimiser keeps per parameter


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one clip's forward pass.

    Attributes:
        frozen: in the frozen convolutions.
        trained: in all other parts.
        spared: those that the backward pass saves because weights beside adapters are frozen; 0 without adapters.
    """

    frozen: int
    trained: int
    spared: int = 0

    @property
    def backward(self) -> int:
        """Return those of the backward pass: each trained product counts twice, for the gradients of its factors."""
        return 2 * self.trained - self.spared


def sizes_by_layer(weights: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return the size of the named `weights`: columns `part, parameters, bytes`.

    There is a row per layer, such as `layer 3`, and one for all `outside` the layers. For `trainable_weights()` these
    are the sizes that a client receives and sends back.
    """
    parts = {name: f"layer {layer_of(name)}" if layer_of(name) else "outside" for name in weights}
    rows = [(parts[name], tensor.numel(), tensor.numel() * tensor.element_size()) for name, tensor in weights.items()]
    table = pd.DataFrame(rows, columns=["part", "parameters", "bytes"])
    return table.groupby("part", sort=False, as_index=False).sum()


def clip_macs(backbone: Backbone, samples: int, depth: int, *heads: AnyHead) -> Macs:
    """Return the multiply-accumulates of one clip; only matrix products and convolutions count.

    The clip has `samples` at 16 kHz and runs through layers 1..depth and the `heads`, if any. Raises FedexitError for
    less than one frame.
    """
    config = backbone.model.config
    lengths = _lengths(config, samples)
    into = [1, *config.conv_dim[:-1]]
    sides = zip(lengths, into, config.conv_dim, config.conv_kernel, strict=True)
    frozen = sum(length * channels * out * kernel for length, channels, out, kernel in sides)
    width, frames, (stack, kernel) = config.hidden_size, lengths[-1], _positions(config)
    projection = frames * config.conv_dim[-1] * width
    position = stack * (frames + (kernel % 2 == 0)) * kernel * width * width // config.num_conv_pos_embedding_groups
    layer = 4 * frames * width**2 + 2 * frames**2 * width + 2 * frames * width * config.intermediate_size
    if config.model_type == "wavlm":  # gate of the relative positions: eight outputs per head and frame
        layer += 8 * frames * width
    added, spared = 0, 0
    if backbone.lora:
        added, spared = _lora_macs(config, frames, depth, backbone.lora[0])
        spared += 2 * (projection + position)
    trained = projection + position + depth * layer + added + sum(macs_of(head, width, frames) for head in heads)
    return Macs(frozen, trained, spared)


def _lora_macs(config: PretrainedConfig, frames: int, depth: int, rank: int) -> tuple[int, int]:
    """Return the products that adapters add to the layers' forward pass, and those that frozen weights spare.

    Each layer spares the gradients of its weights. Layer 1, whose input needs no gradient, also spares all gradients
    before its adapters.
    """
    square, inner = frames * config.hidden_size**2, frames * config.hidden_size * config.intermediate_size
    attention, reads = frames**2 * config.hidden_size, frames * config.hidden_size * rank
    weights = 4 * square + 2 * inner
    if config.model_type != "wavlm":
        return depth * 4 * reads, depth * weights + 3 * square + attention + 2 * reads
    gate = 8 * frames * config.hidden_size
    below = 4 * square + gate + 4 * attention + inner + reads  # WavLM's adapters are in the feed-forward part
    return depth * 2 * (reads + frames * config.intermediate_size * rank), depth * (weights + gate) + below


@dataclass(frozen=True)
class Memory:
    """Bytes that a client's process needs beyond the libraries, by purpose.

    Attributes:
        weights: weights that the client holds.
        gradients: gradients of the trained weights.
        optimiser: state of the optimiser.
        activations: tensors that a training step keeps for its backward pass.
        convolving: peak of the frozen convolutions.
        passing: peak of a forward pass without gradients, after the convolutions.
        updating: peak of the optimiser's step.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    convolving: int
    passing: int
    updating: int

    @property
    def forward(self) -> int:
        """Return the peak of a forward pass without gradients, which Table 3 of the paper seems to show."""
        return self.weights + max(self.convolving, self.passing)

    @property
    def training(self) -> int:
        """Return the peak of training: gradients and optimiser state of a step exist while the next one runs forward.

        The backward pass needs no more: the old gradients are freed before it, and its temporary tensors are smaller.
        """
        return self.weights + self.gradients + self.optimiser + max(self.convolving, self.activations, self.updating)


def memory(
    model: MultiExitModel,
    samples: int,
    batch: int,
    depth: int,
    optimiser: str = "adam",
    cached: bool = False,
    exits: Sequence[int] = (),
    recompute: bool = False,
) -> Memory:
    """Return the memory of a client that trains to `depth` in single precision.

    It counts the tensors that autograd keeps in the layers of `transformers`, with the dropouts of the model's config
    and torch's own attention, for clips of one length. A server in the same process and the clips need memory beyond
    that.

    Args:
        model: a model with the exit `depth`.
        samples: length of each clip at 16 kHz.
        batch: clips per training step.
        depth: layers of the client.
        optimiser: `adam` or `sgd`.
        cached: whether the clips are features, so that nothing is convolved.
        exits: exits whose heads are trained; default `depth` alone.
        recompute: whether layers are computed again in the backward pass (`LocalTraining.recompute`).

    Raises:
        FedexitError: if `depth` is no exit, and for clips shorter than one frame.
    """
    check_exit(depth, model.exits, model.backbone.name)
    exits = exits or [depth]
    config, lengths = model.backbone.model.config, _lengths(model.backbone.model.config, samples)
    trained = [tensor.numel() for tensor in held_weights(model.trainable_weights(), exits).values()]
    convolved = [batch * length * channels for length, channels in zip(lengths, config.conv_dim, strict=True)]
    states, inner = (batch * lengths[-1] * width for width in (config.hidden_size, config.intermediate_size))
    return Memory(
        weights=_FLOAT * sum(tensor.numel() for tensor in held_weights(model.state_dict(), exits).values()),
        gradients=_FLOAT * sum(trained),
        optimiser=_FLOAT * sum(trained) * _OPTIMISER_STATES[optimiser],
        activations=_FLOAT * _kept(model.backbone, batch, lengths[-1], depth, len(exits), recompute),
        convolving=0 if cached else _FLOAT * _NORM_COPIES * convolved[0],
        passing=_FLOAT * (convolved[-1] + max(_position_kernel(config) + 4 * states, (depth + 2) * states + 2 * inner)),
        updating=_FLOAT * 2 * max(trained),
    )


def _kept(backbone: Backbone, batch: int, frames: int, depth: int, heads: int, recompute: bool = False) -> int:
    """Return how many numbers autograd keeps for a backward pass, without the weights and a few numbers per frame.

    The count follows the layers of `transformers`: each product, normalisation and GELU keeps its input, each dropout
    its mask, each head its frames. A product with frozen weights keeps nothing. With `recompute` each layer keeps its
    input, and one layer at a time the rest.
    """
    config = backbone.model.config
    states, inner = batch * frames * config.hidden_size, batch * frames * config.intermediate_size
    scores = batch * frames**2 * config.num_attention_heads
    masked = {
        name: getattr(config, f"{name}_dropout") > 0 for name in ("feat_proj", "hidden", "attention", "activation")
    }
    wavlm = config.model_type == "wavlm"  # copies the input of attention, and keeps its scores even without dropout
    attention = (3 if masked["attention"] else 1 if wavlm else 0) * scores
    if backbone.lora:
        copies = 6 if wavlm else 7 - masked["attention"]
        layer = (copies + 2 * masked["hidden"]) * states + (1 + wavlm + masked["activation"]) * inner + attention
        layer += 2 * batch * frames * backbone.lora[0]
        below = masked["attention"] * states  # the first layer's keys and all before them need no gradient
        if wavlm:  # nor does its attention
            below = (4 + masked["hidden"]) * states + attention - (depth > 1) * scores
        layers = layer + depth * states if recompute else depth * layer - below
        return layers + heads * states
    layer = (8 + wavlm * (3 if batch > 1 else 1) + 2 * masked["hidden"]) * states + (2 + masked["activation"]) * inner
    layer += attention
    outside = 2 * batch * frames * config.conv_dim[-1] + (3 + heads + masked["feat_proj"] + masked["hidden"]) * states
    outside += wavlm * (scores + 2 * frames**2)  # the relative positions, which all layers share
    if config.model_type == "data2vec-audio":  # each positional convolution, its normalisation and its GELU
        outside += (3 * _positions(config)[0] - 2) * states
    layers = layer + depth * states if recompute else depth * layer
    return layers + outside + _position_kernel(config)


def _positions(config: PretrainedConfig) -> tuple[int, int]:
    """Return the number of positional convolutions (several in data2vec) and the size of their kernel in frames."""
    if config.model_type == "data2vec-audio":
        return config.num_conv_pos_embeddings, config.conv_pos_kernel_size
    return 1, config.num_conv_pos_embeddings


def _position_kernel(config: PretrainedConfig) -> int:
    """Return the weights of a positional convolution whose weight normalisation computes them in each pass."""
    if config.model_type == "data2vec-audio":
        return 0
    return config.num_conv_pos_embeddings * config.hidden_size**2 // config.num_conv_pos_embedding_groups


def held_weights(weights: Mapping[str, Tensor], exits: Collection[int]) -> dict[str, Tensor]:
    """Return the named `weights` that a client with these `exits` holds (`MultiExitModel.client_model`)."""
    depth, own = max(exits), tuple(f"heads.{exit}." for exit in [*exits, "shared"])
    foreign = {name for name in weights if name.startswith("heads.") and not name.startswith(own)}
    return {n: tensor for n, tensor in weights.items() if (layer_of(n) or 0) <= depth and n not in foreign}


def _lengths(config: PretrainedConfig, samples: int) -> list[int]:
    """Return the frames after each convolution of the encoder. Raises FedexitError if no frame is left."""
    lengths = frame_counts(config, samples)
    if lengths[-1] < 1:
        raise FedexitError(f"a clip of {samples} samples is shorter than one frame; drop it")
    return lengths


def fewest_samples(config: PretrainedConfig, frames: int) -> int:
    """Return the smallest number of samples that gives the number `frames` of frames."""
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames
