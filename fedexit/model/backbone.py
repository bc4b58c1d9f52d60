"""Define an elastic speech encoder of the wav2vec 2.0 kind, cut at depth k (paper, sec. 2.1 and 2.2).

A backbone of depth k holds the convolutional encoder, the projection, the positional convolution and Transformer layers
1..k. Layers above k do not exist in it: they are not run, trained, sent or kept in memory.

A stable-layer-norm (large) model normalises inside each layer before it adds, and the sum once, above its last layer.
The paper does not say what a shallow exit of it reads. Ours reads what the model cut at that layer returns: the layer's
output after this final norm. Each head owns and trains a copy of the norm, and the server averages it like the head.
"""

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import cached_file

from fedexit.data.batches import standardised
from fedexit.data.checks import checked_batch
from fedexit.model.pretrained import MASK_VECTOR, check_family, pretrained_model
from fedexit.support.errors import FedexitError
from fedexit.support.files import weights_hash
from fedexit.support.paths import backbone_folders, named_or_folder
from fedexit.support.placement import moved
from fedexit.support.reads import note_read
from fedexit.support.streams import seeded
from fedexit.support.tensors import tensors_hash

Samples = TypeVar("Samples", int, Tensor)
_NO_DROPOUT = dict(hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0)
# Geometries with random weights. All have 12 layers, so exits 3/6/9/12 mean the same in each.
# `tiny-random` is the control of `tiny`, which was pre-trained here (notebook 05) and ships with its weights; `base` is
# wav2vec2-base (94.4 M parameters; its trained weights are the hub id "facebook/wav2vec2-base").
PRESETS: dict[str, dict] = {
    "nano": dict(
        model_type="hubert", hidden_size=32, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, num_hidden_layers=12, **_NO_DROPOUT,
    ),
    "tiny-random": dict(
        model_type="hubert", hidden_size=144, num_attention_heads=4, intermediate_size=576, conv_dim=(64,) * 7,
        num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=4, num_hidden_layers=12, **_NO_DROPOUT,
    ),
    "base": dict(model_type="wav2vec2", num_hidden_layers=12),
}  # fmt: skip


def default_exits(layers: int) -> list[int]:
    """Return exits at the four quarter depths: 3, 6, 9, 12 for 12 layers (paper, sec. 2.1)."""
    return sorted({max(1, round(layers * quarter / 4)) for quarter in (1, 2, 3, 4)})


def frame_counts(config: PretrainedConfig, samples: Samples) -> list[Samples]:
    """Return the frames after each convolution, for `samples` (int, or (B,)); below 1 if the clip is too short."""
    counts = []
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
        counts.append(samples)
    return counts


class Backbone(nn.Module):
    """A `transformers` speech encoder of any depth: per call (run fewer layers) or permanently (`truncated`).

    Every client keeps these frozen: the convolutional encoder (the paper leaves this open), the mask vector, the
    statistics of a batch norm before the positional convolution, which some HuBERT models have, and the final norm of a
    stable-layer-norm model, of which each exit's head trains a copy.

    Attributes:
        model: the encoder of `transformers`.
        name: preset, folder or hub id, for messages.
        pretrained: whether the weights were trained, not drawn at random.
        lora: rank and alpha of its adapters (`fedexit.model.lora`), None without adapters.
        recompute: whether a backward pass recomputes each layer, whose activations are then not kept.
    """

    def __init__(self, model: PreTrainedModel, name: str, pretrained: bool):
        super().__init__()
        check_family(model.config, name)
        self.model: Any = model  # `transformers` gives its parts no types
        self.name, self.pretrained = name, pretrained
        self.lora: tuple[int, float] | None = None
        self.recompute = False
        self.model.feature_extractor.requires_grad_(False)
        self.final_norm.requires_grad_(False)
        if hasattr(self.model, MASK_VECTOR):
            self.model.masked_spec_embed.requires_grad_(False)

    @property
    def layers(self) -> int:
        """Return the number of Transformer layers held."""
        return len(self.model.encoder.layers)

    @property
    def width(self) -> int:
        """Return the size D of a hidden state."""
        return self.model.config.hidden_size

    @property
    def channels(self) -> int:
        """Return the number of channels C of the convolutional encoder's output."""
        return self.model.config.conv_dim[-1]

    @property
    def final_norm(self) -> nn.Module:
        """Return the norm above the last layer of a stable-layer-norm model; the identity for others."""
        return self.model.encoder.layer_norm if self._is_stable else nn.Identity()

    @property
    def _is_stable(self) -> bool:
        return getattr(self.model.config, "do_stable_layer_norm", False)

    def truncated(self, depth: int) -> "Backbone":
        """Return an independent copy with layers 1..depth only. Raises FedexitError unless depth is in 1..layers."""
        depth = self._checked_depth(depth)
        encoder, layers = self.model.encoder, self.model.encoder.layers
        encoder.layers = layers[:depth]  # so that the layers above are never copied
        try:
            shallow = copy.deepcopy(self)
        finally:
            encoder.layers = layers
        shallow.model.config.num_hidden_layers = depth
        return shallow

    def frame_lengths(self, lengths: Samples) -> Samples:
        """Return the frames of clips of `lengths` samples (int, or (B,)), in every layer; below 1 if too short."""
        return frame_counts(self.model.config, lengths)[-1]

    def hidden_states(
        self, waveforms: Tensor, lengths: Tensor | None = None, depth: int | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the hidden states up to layer `depth`, and the frame lengths (B,).

        The states are depth + 1 tensors (B, F, D): index 0 is the input of layer 1, index l the output of layer l after
        `final_norm`. Frames beyond a clip's length are padding without meaning. The others do not depend on the rest of
        the batch. They equal `final_norm(hidden_states[l])` of the full `transformers` model on that normalised clip
        alone, which is the `last_hidden_state` of that model cut at layer l.

        Args:
            waveforms: (B, T) at 16 kHz, zero-padded, of any loudness: each clip is normalised as by `collate`, unless
                it is already; or features of `convolve`.
            lengths: (B,) samples of each clip, or frames of features; default all of T or F.
            depth: 1..layers, default all.

        Raises:
            FedexitError: for a depth beyond the layers and for what `checked_batch` refuses.
        """
        depth = self._checked_depth(self.layers if depth is None else depth)
        states, frames = self.layer_by_layer(waveforms, lengths)
        first, *others = itertools.islice(states, depth + 1)
        return [first, *map(self.final_norm, others)], frames

    def layer_by_layer(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Iterator[Tensor], Tensor]:
        """Return the hidden states one at a time, before `final_norm`, and the frame lengths (B,).

        A layer runs when its state is requested, so a caller that stops early does not run the layers above. The heads
        of `MultiExitModel` read these states and normalise them. Arguments and errors are those of `hidden_states`.
        """
        if torch.compiler.is_exporting():  # checks depend on values, which `torch.export` refuses
            if waveforms.dim() != 2:
                raise FedexitError("torch.export takes waveforms (B, T), not features; give those of `collate`")
            whole = torch.full(waveforms.shape[:1], waveforms.shape[1], device=waveforms.device)
            return self.traced_states(waveforms, whole if lengths is None else lengths)
        clips, lengths, padded = self._read(waveforms, lengths)
        if clips.dim() == 3:
            features, frames = clips.to(self.model.dtype), lengths
        else:
            features, frames = self._convolved(clips, lengths), self.frame_lengths(lengths)
        return self._states(*self._layer_input(features, frames, padded)), frames

    def traced_states(self, waveforms: Tensor, lengths: Tensor) -> tuple[Iterator[Tensor], Tensor]:
        """Return `layer_by_layer` of waveforms as a tracer needs it: without checks, every batch treated as padded."""
        features, frames = self._convolved(waveforms, lengths), self.frame_lengths(lengths)
        return self._states(*self._layer_input(features, frames, padded=True)), frames

    def _states(self, hidden: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        """Yield the input of layer 1 (B, F, D), then each layer's output."""
        yield hidden
        position_bias = None
        for index, layer in enumerate(self.model.encoder.layers):
            if self.model.config.model_type == "wavlm":  # its first layer makes the position bias that the others reuse
                hidden, position_bias = self._run(layer, hidden, mask, position_bias=position_bias, index=index)
            else:
                hidden = self._run(layer, hidden, mask)
            yield hidden

    def _run(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None, **more: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, hidden, attention_mask=mask, use_reentrant=False, **more)
        return layer(hidden, attention_mask=mask, **more)

    def _layer_input(self, features: Tensor, frames: Tensor, padded: bool) -> tuple[Tensor, Tensor | None]:
        """Return the input of layer 1 (B, F, D) and the attention mask of its family (None if nothing is padded)."""
        hidden = self.model.feature_projection(features.transpose(1, 2))  # (B, C, F) -> (B, F, D)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        valid = mask = None
        if padded:
            valid = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]  # (B, F)
            hidden = hidden * valid[..., None]  # the positional convolution must read zeros beyond the end
            mask = self._attention_mask(hidden, valid)
        encoder = self.model.encoder
        hidden = hidden + self._positions(hidden, valid)
        return encoder.dropout(hidden if self._is_stable else encoder.layer_norm(hidden)), mask

    def _attention_mask(self, hidden: Tensor, valid: Tensor) -> Any:
        """Return the mask that the layers expect, from the `valid` frames (B, F)."""
        if self.model.config.model_type == "wavlm":
            return valid
        return create_bidirectional_mask(self.model.config, inputs_embeds=hidden, attention_mask=valid)

    def _positions(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """Return the positional convolution's output (B, F, D).

        A batch norm before it would change the zeros of the padding, and so do the convolutions of data2vec, a stack of
        several: the padding is set to zero again after each. A batch norm always applies the stored statistics: a
        client's few clips must not move them.
        """
        embed = self.model.encoder.pos_conv_embed
        if self.model.config.model_type == "data2vec-audio":
            hidden = hidden.transpose(1, 2)
            for layer in embed.layers:
                hidden = layer(hidden) if valid is None else layer(hidden) * valid[:, None]
            return hidden.transpose(1, 2)
        norm = getattr(embed, "batch_norm", None)
        if norm is None:
            return embed(hidden)
        hidden = nn.functional.batch_norm(
            hidden.transpose(1, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
        hidden = hidden if valid is None else hidden * valid[:, None]
        return embed.activation(embed.padding(embed.conv(hidden))).transpose(1, 2)

    def convolve(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return the frozen encoder's features (B, C, F). Arguments and errors are those of `hidden_states`."""
        return self._convolved(*self._read(waveforms, lengths)[:2])

    def _read(self, clips: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, bool]:
        """Return clips and lengths on the model's device, and whether a clip is padded (seen before a GPU has them)."""
        lengths = checked_batch(clips, lengths, self.channels, self.frame_lengths, self.name)
        frames, longest = lengths, clips.shape[-1]
        if clips.dim() == 2:
            frames, longest = self.frame_lengths(lengths), self.frame_lengths(longest)
        device = self.model.device
        return moved(clips, device), moved(lengths, device), bool((frames < longest).any())

    @torch.no_grad()  # frozen: no graph, no activations kept
    def _convolved(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        features = standardised(waveforms, lengths)[:, None].to(self.model.dtype)
        for layer in self.model.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                features = layer.conv(features)
                valid = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
                features = layer.activation(_normalise_over_time(features, norm, valid))
            else:
                features = layer(features)
        return features

    def _checked_depth(self, depth: int) -> int:
        if depth not in range(1, self.layers + 1):
            raise FedexitError(f"depth {depth} does not exist: {self.name} holds layers 1 to {self.layers}")
        return int(depth)


def _normalise_over_time(features: Tensor, norm: nn.GroupNorm, valid: Tensor) -> Tensor:
    """Apply `norm` to features (B, C, F) with statistics over each clip's own `valid` frames (B,).

    Plain GroupNorm takes its statistics over the whole time axis, so the zeros that pad a clip would change them. The
    models were pre-trained without padding.
    """
    inside = torch.arange(features.shape[-1], device=features.device) < valid[:, None, None]  # (B, 1, F)
    count = valid[:, None, None].to(features.dtype)
    mean = (features * inside).sum(-1, keepdim=True) / count
    centred = features - mean
    variance = (centred.square() * inside).sum(-1, keepdim=True) / count
    return centred * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]


def load_backbone(name_or_path: str | Path, seed: int = 0) -> Backbone:
    """Load a backbone by preset, name, local folder or hub id.

    Args:
        name_or_path: preset with random weights (`nano`, `tiny-random`, `base`), model that comes with the package
            (`tiny`) or lies in the project's data/backbones, folder in the Hugging Face format, or hub id. A `Path` and
            `./NAME` always mean a folder.
        seed: draws the weights of a preset; ignored otherwise.

    Returns:
        The backbone in evaluation mode and single precision. Two loads of the same files give the same weights.

    Raises:
        FedexitError: if there is no such model, its family is another one, its files are damaged, its weights do not
        fit its config, or it expects another sampling rate.
    """
    name = str(name_or_path)
    source = _source(name_or_path)
    if source in PRESETS:
        with seeded(seed, "backbone", name):
            model = AutoModel.from_config(AutoConfig.for_model(**PRESETS[name]))
        return Backbone(model.eval(), name, pretrained=False)
    try:
        backbone = Backbone(pretrained_model(source).eval(), name, pretrained=True)
    except FedexitError as error:
        if isinstance(source, Path):
            raise FedexitError(f"cannot load backbone: {error}") from error
        known = ", ".join([*PRESETS, *backbone_folders()])
        raise FedexitError(
            f"cannot load backbone {name!r}: it is not one of {known} and not a folder; as a hub id: {error}"
        ) from error
    config = Path(cached_file(str(source), "config.json"))  # type: ignore[arg-type]  # it raises rather than give None
    note_read("backbone", name, weights_hash(config.parent))
    return backbone


def _source(name_or_path: str | Path) -> Path | str:
    """Return the folder to read, a preset's name or a hub id. Raises FedexitError for a name with two meanings."""
    if not isinstance(name_or_path, str | Path):
        raise FedexitError(f"a backbone is named by a text or a Path, not by a {type(name_or_path).__name__}")
    name, named = str(name_or_path), backbone_folders()
    own = named.get(name)
    found = named_or_folder(name_or_path, [*PRESETS, *named], "backbone", own)
    if isinstance(found, Path) and found.is_file():
        raise FedexitError(f"{name} is a file; name the folder that holds it and config.json")
    if isinstance(found, Path):
        return found if found.is_dir() else name
    return own or name


def backbone_from_config(config: dict, name: str, pretrained: bool) -> Backbone:
    """Return a backbone of the geometry `config` (of `config_of`), whose weights are still to be loaded."""
    return Backbone(AutoModel.from_config(AutoConfig.for_model(**config)).eval(), name, pretrained)


def config_of(backbone: Backbone) -> dict:
    """Return the `transformers` config as a plain dict, ready for JSON."""
    return json.loads(backbone.model.config.to_json_string(use_diff=False))


def state_hash(module: nn.Module) -> str:
    """Return the SHA-256 of all weights of `module` and their names."""
    return tensors_hash(module.state_dict())
