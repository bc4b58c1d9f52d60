"""Read and write waveforms. All other modules get 16 kHz mono float32 in [-1, 1]."""

import io
import math
import os
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from scipy.signal import firwin, resample_poly
from torchaudio.functional import resample

from fedexit.data.constants import MIN_SAMPLES, SAMPLE_RATE
from fedexit.data.containers import promised_frames, recordings
from fedexit.support.errors import FedexitError, first_line, reason
from fedexit.support.files import read_bytes, write_bytes

MAX_PEAK = 4.0  # MP3 decoders overshoot 1 a little; samples above this peak have another scale
RATES = (1_000, 1_000_000)  # Hz
_BLOCK = 1 << 20  # frames
_KERNEL = 1 << 20  # largest resampling kernel of torchaudio, in elements; a larger one costs seconds and gigabytes
_FRACTION = 1 << 16  # a ratio of rates with larger terms is approximated, with an error below 2e-5
_STEP = 1 / 32768  # between neighbouring 16-bit samples


def decode_audio(source: Path | str | bytes, name: str | None = None) -> tuple[torch.Tensor, int]:
    """Decode audio in any format that libsndfile reads.

    Sizes in headers are hints (see `fedexit.data.containers`). Recordings that follow one another in a file, such as
    chained Ogg streams, are joined. A cut MP3 without a length header, and an Ogg file that is cut between two pages,
    look complete and are accepted.

    Args:
        source: a file or its content.
        name: the name in error messages; by default the path.

    Returns:
        Samples (channels, T) float32 and their rate in Hz.

    Raises:
        FedexitError: the file is missing, empty, no audio, damaged or cut short, has a rate outside of `RATES` or
            several rates, or holds samples that are not finite.
    """
    if isinstance(source, bytes | bytearray):
        name, content = name or "audio", bytes(source)
    elif isinstance(source, str | os.PathLike):
        name, content = name or str(source), read_bytes(Path(source))
    else:
        kind = type(source).__name__
        raise FedexitError(f"no audio in an object of type {kind}; give a path, or the bytes of a file")
    if not content:
        raise FedexitError(f"{name}: the file is empty, expected audio; copy or fetch it again")
    parts = [_decoded(part, name) for part in recordings(content, name)]
    parts = [part for part in parts if len(part[0])] or parts[:1]
    kinds = {(rate, samples.shape[1]) for samples, rate in parts}
    if len(kinds) > 1:
        found = " and ".join(f"{rate} Hz with {channels} channel(s)" for rate, channels in sorted(kinds))
        raise FedexitError(f"{name}: the file holds several recordings, {found}; write one file per recording")
    samples = torch.from_numpy(np.concatenate([samples for samples, _ in parts])).T
    rate = parts[0][1]
    if not RATES[0] <= rate <= RATES[1]:
        raise FedexitError(f"{name}: its rate is {rate} Hz, expected {RATES[0]} to {RATES[1]}; correct its header")
    if samples.shape[1] == 0:
        raise FedexitError(f"{name}: holds no samples; remove it or fetch it again")
    if not samples.isfinite().all():
        raise FedexitError(f"{name}: holds samples that are not finite; write it again from its source")
    return samples, rate


def read_audio(path: Path | str) -> torch.Tensor:
    """Return the waveform (T,) float32 in [-1, 1] of a 16 kHz mono file.

    Nothing is resampled or mixed silently: another rate or number of channels raises FedexitError, and so does a file
    that `decode_audio` refuses.
    """
    samples, rate = decode_audio(path)
    channels = len(samples)
    if rate != SAMPLE_RATE or channels != 1:
        raise FedexitError(
            f"{path}: {rate} Hz with {channels} channel(s), expected {SAMPLE_RATE} Hz mono; "
            "make a copy with `fedexit data convert FOLDER OUT`"
        )
    return samples[0]


def read_clip(source: Path | bytes, name: str | None = None) -> torch.Tensor:
    """Decode a recording of any format, rate and channels into a waveform (T,) at 16 kHz for a corpus.

    Raises FedexitError, naming the file, for what `decode_audio` refuses, if the channels cancel out, and if fewer than
    `MIN_SAMPLES` samples remain.
    """
    name = name or ("audio" if isinstance(source, bytes) else str(source))
    samples, rate = decode_audio(source, name)
    return as_clip(samples, rate, name)


def as_clip(samples: torch.Tensor, rate: int, name: str) -> torch.Tensor:
    """Return samples (channels, T) at `rate` Hz as a waveform (T',) at 16 kHz.

    Raises FedexitError, with `name`, if the channels cancel out or fewer than `MIN_SAMPLES` samples remain.
    """
    if _cancel_out(samples):
        raise FedexitError(
            f"{name}: its {len(samples)} channels cancel out, their mean is nearly silent (one is inverted); "
            "keep one channel"
        )
    waveform = to_16k_mono(samples, rate)
    if len(waveform) < MIN_SAMPLES:
        raise FedexitError(
            f"{name}: {len(waveform)} samples at 16 kHz are too short, a clip needs {MIN_SAMPLES} (25 ms); leave it out"
        )
    return waveform


def to_16k_mono(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Average the channels of `samples` (channels, T) or (T,) and resample from `rate` Hz: (T',) float32 at 16 kHz.

    torchaudio resamples unless its kernel, which grows with the product of the rates, would exceed `_KERNEL` elements.
    Then SciPy's polyphase filter resamples in milliseconds; it is exact for rates up to `_FRACTION` Hz.
    """
    mono = samples.mean(dim=0) if samples.ndim == 2 else samples
    common = math.gcd(rate, SAMPLE_RATE)
    if rate // common * (SAMPLE_RATE // common) <= _KERNEL:
        return resample(mono.contiguous(), rate, SAMPLE_RATE)
    low, high = sorted((rate, SAMPLE_RATE))
    ratio = Fraction(low, high).limit_denominator(_FRACTION)
    up, down = (ratio.numerator, ratio.denominator) if rate > SAMPLE_RATE else (ratio.denominator, ratio.numerator)
    return torch.from_numpy(resample_poly(mono.numpy(), up, down, window=_lowpass(max(up, down))))


def write_audio(path: Path | str, waveform: torch.Tensor) -> str:
    """Write `waveform` (T,) in [-1, 1] as 16-bit FLAC at 16 kHz, completely or not at all.

    Returns:
        "" if 16 bits hold the waveform, else the loss in words: samples above full scale that were clipped, or a level
        so low that rounding to 16 bits is audible.

    Raises:
        FedexitError: the waveform is no tensor of floats, empty, not one-dimensional or not finite, its peak is above
            `MAX_PEAK`, or it is so quiet that 16 bits hold only silence; or the file cannot be written.
    """
    if not isinstance(waveform, torch.Tensor) or not waveform.is_floating_point():
        kind = str(waveform.dtype) if hasattr(waveform, "dtype") else type(waveform).__name__
        raise FedexitError(
            f"{path}: not written, the waveform is {kind}; give a tensor of floats in [-1, 1], e.g. integers / 32768"
        )
    waveform = waveform.detach().cpu()
    if waveform.ndim != 1 or len(waveform) == 0 or not waveform.isfinite().all():
        raise FedexitError(f"{path}: not written, a waveform must be (T,) with T > 0 and finite samples")
    peak = waveform.abs().max().item()
    if peak > MAX_PEAK:
        raise FedexitError(
            f"{path}: not written, its peak is {peak:.4g} and must not exceed 1; "
            "divide the samples by their full scale (32768 for 16-bit values)"
        )
    rounded = (waveform * 32768).round()
    pcm = rounded.clamp(-32768, 32767)
    if peak > 0 and not pcm.any():
        raise FedexitError(f"{path}: not written, its peak of {peak:.2g} is silence in 16 bits; make it louder")
    flac = io.BytesIO()  # written by Python, so that a full disk is an ordinary OSError
    sf.write(flac, pcm.to(torch.int16).numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    try:
        write_bytes(path, flac.getvalue(), flush=False)
    except (IsADirectoryError, NotADirectoryError, FileExistsError, ValueError) as error:
        raise FedexitError(f"{path}: cannot be written ({reason(error)}); choose another place") from error
    return _loss(waveform, pcm, peak)


def _loss(waveform: torch.Tensor, pcm: torch.Tensor, peak: float) -> str:
    """Return in words the loss of the 16-bit samples `pcm` against `waveform`; "" if it is negligible."""
    if peak > 1:
        return f"{int((waveform.abs() > 1).sum())} of {len(waveform)} samples clipped, peak {peak:.2f}"
    noise = (pcm * _STEP - waveform).square().mean()
    if noise > 0.01 * waveform.square().mean():
        return f"very quiet, peak {peak:.2g}: rounding to 16 bits distorts it"
    return ""


class _Bytes(io.BytesIO):
    """Bytes in which a seek to before the start, as damaged sizes cause, ends at the start and prints no traceback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_CUR: self.tell(), io.SEEK_END: self.getbuffer().nbytes}.get(whence, 0)
        return super().seek(max(0, base + offset))


class _Stream(sf.SoundFile):
    """A file that can only be read from start to end, so that soundfile neither seeks nor needs its length."""

    def seekable(self) -> bool:
        return False


def _decoded(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """Return the samples (T, channels) of one recording and its rate; in blocks, since its length may be unknown.

    What follows the promised samples, such as a tag, may be no audio.
    """
    opened = content[:4] in (b"fLaC", b"OggS")  # libsndfile does not recognise the first words of these
    blocks: list[np.ndarray] = []
    try:
        with _Stream(_Bytes(content)) as file:
            opened, rate, promised = True, file.samplerate, promised_frames(content, file.format, file.frames)
            while not blocks or len(blocks[-1]):
                left = promised - sum(len(block) for block in blocks)
                try:
                    blocks.append(file.read(min(left, _BLOCK) if left > 0 else _BLOCK, "float32", always_2d=True))
                except sf.LibsndfileError:
                    if not blocks or left > 0:
                        raise
                    break
            samples = np.concatenate(blocks)
    except MemoryError as error:
        raise FedexitError(f"{name}: too long for this machine's memory; split it into shorter files") from error
    except Exception as error:  # libsndfile and its wrapper raise many kinds of error
        fault = "cut short or damaged" if opened else "not readable as audio"
        said = (getattr(error, "error_string", None) or first_line(error)).removeprefix("Error : ").strip(" .")
        raise FedexitError(f"{name}: {fault} ({said}); fetch it again, or convert it to WAV or FLAC") from error
    if len(samples) < promised:
        raise FedexitError(
            f"{name}: cut short, its header promises {promised} samples and {len(samples)} can be read; "
            "copy or fetch it again"
        )
    return samples, rate


def _cancel_out(samples: torch.Tensor) -> bool:
    """Return whether the mean of the channels (channels, T) has less than 2 % of the power of unrelated channels."""
    mean_power = samples.mean(dim=0).square().mean() * len(samples)
    return len(samples) > 1 and bool(mean_power < 0.02 * samples.square().mean())


@lru_cache(maxsize=4)
def _lowpass(factor: int) -> np.ndarray:
    """Return SciPy's default low-pass filter of `resample_poly`, cached because its design costs more than its use."""
    return firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0)).astype(np.float32)
