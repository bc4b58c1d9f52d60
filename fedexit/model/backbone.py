"""Elastic SSL backbone: wav2vec 2.0, HuBERT or WavLM, cut for real at depth k (paper, sec. 2.1 and 2.2).

A backbone of depth k holds the convolutional encoder, the projection, the positional convolution and Transformer layers
1..k. Layers above k do not exist in it: they are not run, trained, sent or kept in memory.
"""

import copy
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import logging as transformers_logging

from fedexit.support.errors import FedexitError, first_line
from fedexit.support.paths import backbones_dir
from fedexit.support.streams import seeded

FAMILIES = ("wav2vec2", "hubert", "wavlm")
_NO_DROPOUT = dict(hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0)
# Geometries with random weights, side by side. All have 12 layers, so exits 3/6/9/12 mean the same in each.
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
    """Exits at the four quarter depths: 3, 6, 9, 12 for 12 layers (paper, sec. 2.1)."""
    return sorted({max(1, round(layers * quarter / 4)) for quarter in (1, 2, 3, 4)})


class Backbone(nn.Module):
    """A `transformers` speech encoder of any depth: per call (run fewer layers) or for good (`truncated`)."""

    def __init__(self, model: PreTrainedModel, name: str, pretrained: bool):
        super().__init__()
        config = model.config
        if config.model_type not in FAMILIES:
            raise FedexitError(f"{name} is a {config.model_type} model; expected one of {', '.join(FAMILIES)}")
        if config.do_stable_layer_norm:
            raise FedexitError(
                f"{name} is a stable-layer-norm ('large') model: its layers are normalised only at the very top, so a "
                "shallow exit would read states that the full model never shows; take a post-norm ('base') model"
            )
        self.model, self.name, self.pretrained = model, name, pretrained
        self.lora: tuple[int, float] | None = (
            None  # rank and alpha of its adapters (`fedexit.model.lora`), if it has them
        )
        # The paper's open choice, our default: the convolutional encoder stays as it is, on every client.
        self.model.feature_extractor.requires_grad_(False)
        if hasattr(self.model, "masked_spec_embed"):
            self.model.masked_spec_embed.requires_grad_(False)  # input masking is part of pre-training only

    @property
    def layers(self) -> int:
        """Number of Transformer layers held."""
        return len(self.model.encoder.layers)

    @property
    def width(self) -> int:
        """Size D of a hidden state."""
        return self.model.config.hidden_size

    @property
    def channels(self) -> int:
        """Channels C of the convolutional encoder's output."""
        return self.model.config.conv_dim[-1]

    def truncated(self, depth: int) -> "Backbone":
        """A copy of its own that holds layers 1..depth only. Raises FedexitError when depth is not in 1..layers."""
        self._check_depth(depth)
        encoder, layers = self.model.encoder, self.model.encoder.layers
        encoder.layers = layers[:depth]  # so that the layers above are never copied
        try:
            shallow = copy.deepcopy(self)
        finally:
            encoder.layers = layers
        shallow.model.config.num_hidden_layers = depth
        return shallow

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Number of frames (B,) that the convolutional encoder makes of `lengths` samples (B,)."""
        return self.model._get_feat_extract_output_lengths(lengths)

    def hidden_states(
        self, waveforms: Tensor, lengths: Tensor | None = None, depth: int | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Hidden states up to layer `depth`.

        waveforms: (B, T) float32 at 16 kHz, zero-padded; lengths: (B,) samples, default T for all; depth: default all.
        Instead of waveforms, what `convolve` made of them (B, C, F) will do; then lengths are frames.
        Returns depth + 1 tensors (B, F, D) and the frame lengths (B,): index 0 is the input of layer 1, index l the
        output of layer l. Frames beyond a clip's length are padding and hold nothing of meaning; the others do not
        depend on what else is in the batch. Equals `hidden_states[l]` of the full `transformers` model on that clip.
        Raises FedexitError for a depth that the backbone has not, and for clips shorter than one frame.
        """
        depth = self.layers if depth is None else depth
        self._check_depth(depth)
        states, frames = self.layer_by_layer(waveforms, lengths)
        return list(itertools.islice(states, depth + 1)), frames

    def layer_by_layer(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Iterator[Tensor], Tensor]:
        """The same hidden states one at a time, and the frame lengths (B,): a layer runs when its state is asked for.

        So whoever stops asking has not run the layers above. Arguments and errors as for `hidden_states`.
        """
        full = waveforms.new_full((len(waveforms),), waveforms.shape[-1], dtype=torch.long)
        lengths = full if lengths is None else lengths.to(full)
        if waveforms.dim() == 3:
            features, frames = waveforms, lengths
        else:
            features, frames = self.convolve(waveforms, lengths), self.frame_lengths(lengths)
        return self._states(*self._layer_input(features, frames)), frames

    def _states(self, hidden: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        """The input of layer 1 (B, F, D), then each layer's output."""
        yield hidden
        position_bias = None
        for index, layer in enumerate(self.model.encoder.layers):
            if self.model.config.model_type == "wavlm":  # its first layer makes the position bias that the others reuse
                hidden, position_bias = layer(hidden, attention_mask=mask, position_bias=position_bias, index=index)
            else:
                hidden = layer(hidden, attention_mask=mask)
            yield hidden

    def _layer_input(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """What layer 1 reads (B, F, D), and the attention mask its family wants (None when nothing is padded)."""
        hidden = self.model.feature_projection(features.transpose(1, 2))  # (B, C, F) -> (B, F, D)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        mask = None
        if (frames < hidden.shape[1]).any():
            valid = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]  # (B, F)
            hidden = hidden * valid[..., None]  # the positional convolution must see silence beyond the end
            mask = valid
            if self.model.config.model_type != "wavlm":
                mask = create_bidirectional_mask(self.model.config, inputs_embeds=hidden, attention_mask=valid)
        encoder = self.model.encoder
        return encoder.dropout(encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))), mask

    @torch.no_grad()  # frozen: no graph, no activations kept
    def convolve(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Output (B, C, F) of the frozen convolutional encoder for waveforms (B, T) of `lengths` (B,) samples.

        Raises FedexitError for clips shorter than one frame.
        """
        if (self.frame_lengths(lengths) < 1).any():
            raise FedexitError(
                f"a clip of {int(lengths.min())} samples is shorter than one frame of {self.name}; drop it"
            )
        features = waveforms[:, None]
        for layer in self.model.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                features = layer.conv(features)
                valid = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
                features = layer.activation(_normalise_over_time(features, norm, valid))
            else:
                features = layer(features)
        return features

    def _check_depth(self, depth: int) -> None:
        if not 1 <= depth <= self.layers:
            raise FedexitError(f"depth {depth} does not exist: {self.name} holds layers 1 to {self.layers}")


def _normalise_over_time(features: Tensor, norm: nn.GroupNorm, valid: Tensor) -> Tensor:
    """`norm` with its statistics taken over each clip's own `valid` frames (B,); features: (B, C, F).

    "Base" models normalise each channel over the whole time axis, so plain GroupNorm would let the zeros that pad a
    clip change what the clip means. The models were pre-trained without padding: this is what they know.
    """
    inside = torch.arange(features.shape[-1], device=features.device) < valid[:, None, None]  # (B, 1, F)
    count = valid[:, None, None].to(features.dtype)
    mean = (features * inside).sum(-1, keepdim=True) / count
    centred = features - mean
    variance = (centred.square() * inside).sum(-1, keepdim=True) / count
    return centred * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]


def load_backbone(name_or_path: str | Path, seed: int = 0) -> Backbone:
    """A backbone by preset (random weights drawn from `seed`), name in data/backbones/, local folder or hub id.

    Presets are `nano`, `tiny-random` and `base`; `tiny`, pre-trained, ships in data/backbones/.
    Raises FedexitError when there is no such model, it is of another family or it is a stable-layer-norm model.
    """
    name = str(name_or_path)
    if name in PRESETS:
        with seeded(seed, "backbone", name):
            model = AutoModel.from_config(AutoConfig.for_model(**PRESETS[name]))
        return Backbone(model.eval(), name, pretrained=False)
    folder = Path(name)
    if name in shipped_backbones():
        folder = backbones_dir() / name
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FedexitError(f"{name} holds no config.json; expected a model folder in the Hugging Face format")
    try:
        model = pretrained_model(folder if folder.is_dir() else name)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FedexitError(
            f"cannot load backbone {name!r}: not one of {', '.join([*PRESETS, *shipped_backbones()])}, and as a folder "
            f"or hub id: {first_line(error)}"
        ) from error
    return Backbone(model.eval(), name, pretrained=True)


def pretrained_model(name_or_path: str | Path, **options: object) -> PreTrainedModel:
    """`AutoModel.from_pretrained` in single precision, however it is stored."""
    with quiet_transformers():
        return AutoModel.from_pretrained(name_or_path, dtype=torch.float32, **options)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars for the milliseconds in which `transformers` reads and writes a small model."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def shipped_backbones() -> list[str]:
    """Names in data/backbones/ that `load_backbone` takes; none outside the project's folder."""
    try:
        return sorted(file.parent.name for file in backbones_dir().glob("*/config.json"))
    except FedexitError:
        return []


def backbone_from_config(config: dict, name: str, pretrained: bool) -> Backbone:
    """A backbone of the geometry `config` (a `transformers` config as a dict), to be filled from a state dict."""
    return Backbone(AutoModel.from_config(AutoConfig.for_model(**config)).eval(), name, pretrained)


def config_of(backbone: Backbone) -> dict:
    """The `transformers` config as a plain dict, ready for JSON."""
    return json.loads(backbone.model.config.to_json_string(use_diff=False))
