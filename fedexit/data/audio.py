"""Reading and writing waveforms: everything after this module is 16 kHz mono float32 in [-1, 1]."""

import io
import os
from pathlib import Path

import soundfile as sf
import torch
from torchaudio.functional import resample

from fedexit.support.errors import FedexitError

SAMPLE_RATE = 16_000
_UNKNOWN_SIZE = 0xFFFFFFFF  # what writers to a pipe put into a WAV header


def decode_audio(source: Path | bytes, name: str | None = None) -> tuple[torch.Tensor, int]:
    """Decode any audio libsndfile knows: samples (channels, T) float32 and their rate in Hz.

    `source` is a file or its content; `name` is what errors call it. Raises FedexitError if it is missing, empty,
    not audio, cut short (its header promises more than comes) or holds samples that are not finite.
    """
    name = name or str(source)
    content = source if isinstance(source, bytes) else _content(source)
    if not content:
        raise FedexitError(f"{name}: the file is empty, expected audio; copy or fetch it again")
    try:
        with sf.SoundFile(io.BytesIO(content)) as file:
            rate = file.samplerate
            promised = 0 if file.format == "MP3" else file.frames  # an MP3 without a header of its own has an estimate
            samples = torch.from_numpy(file.read(dtype="float32", always_2d=True)).T
    except sf.LibsndfileError as error:
        raise FedexitError(f"{name}: not readable as audio ({error.error_string}); copy or fetch it again") from error
    if samples.shape[1] < promised or _riff_is_short(content):
        raise FedexitError(f"{name}: cut short, its header promises more than the file holds; copy or fetch it again")
    if samples.shape[1] == 0:
        raise FedexitError(f"{name}: holds no samples; remove it or fetch it again")
    if not samples.isfinite().all():
        raise FedexitError(f"{name}: holds samples that are not finite; write it again from its source")
    return samples, rate


def read_audio(path: Path | str) -> torch.Tensor:
    """Waveform (T,) float32 in [-1, 1] of a 16 kHz mono file.

    Strict, so that no corpus is resampled without being told: another rate or channel count raises FedexitError, as
    does everything `decode_audio` refuses.
    """
    samples, rate = decode_audio(Path(path))
    channels = len(samples)
    if rate != SAMPLE_RATE or channels != 1:
        raise FedexitError(
            f"{path}: {rate} Hz with {channels} channel(s), expected {SAMPLE_RATE} Hz mono; "
            "make a copy with `fedexit data convert FOLDER OUT`"
        )
    return samples[0]


def to_16k_mono(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Mean of the channels of `samples` (channels, T) or (T,), resampled from `rate` Hz to 16 kHz: (T',) float32."""
    mono = samples.mean(dim=0) if samples.ndim == 2 else samples
    return resample(mono.contiguous(), rate, SAMPLE_RATE)


def write_audio(path: Path | str, waveform: torch.Tensor) -> None:
    """Write `waveform` (T,) in [-1, 1] as 16-bit FLAC at 16 kHz; louder samples are clipped, the file appears whole.

    Raises FedexitError if the waveform is empty, not one-dimensional or not finite.
    """
    path = Path(path)
    if waveform.ndim != 1 or len(waveform) == 0 or not waveform.isfinite().all():
        raise FedexitError(f"{path}: not written, a waveform must be (T,) with T > 0 and finite samples")
    pcm = (waveform * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
    flac = io.BytesIO()  # written by Python, so that a full disk is an ordinary OSError
    sf.write(flac, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    part = path.with_name(path.name + ".part")
    part.write_bytes(flac.getvalue())
    os.replace(part, path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FedexitError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _riff_is_short(content: bytes) -> bool:
    """Whether a WAV file ends before its header says: libsndfile shortens its frame count to fit and says nothing."""
    size = int.from_bytes(content[4:8], "little")
    return content[:4] == b"RIFF" and size != _UNKNOWN_SIZE and len(content) < size + 8
