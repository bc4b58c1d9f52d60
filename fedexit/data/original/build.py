"""Write the corpus folder of a release. Audio that is 16 kHz mono is linked and not copied."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import soundfile as sf

from fedexit.data.audio import read_clip, write_audio
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.folder import COLUMNS, MANIFEST, check_groups, check_manifest, read_table, save_manifest
from fedexit.data.original.release import Clip
from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress

RELEASE, TRIALS = "release", "trials.csv"


def write_corpus(clips: Sequence[Clip], root: Path, folder: Path, trials: pd.DataFrame | None = None) -> None:
    """Write the manifest of `clips`, and its trials, into `folder`.

    `folder/release` becomes `root`: a folder inside `folder` is moved there, any other is linked (or copied, if the
    system cannot link), so it must stay where it is. Files at another rate, in stereo or in .m4a, and single seconds of
    a file, are written to `folder/clips` as 16 kHz mono FLAC.

    Raises:
        FedexitError: a file cannot be decoded, two clips have one id, a group is in two splits, or a trial names a clip
            that is not there.
    """
    if root.is_relative_to(folder):
        root.rename(folder / RELEASE)
    else:
        _link(root.resolve(), folder / RELEASE)
    with one_thread():
        rows = [_row(clip, folder) for clip in progress(sorted(clips, key=lambda clip: clip.id), "reading the release")]
    save_manifest(pd.DataFrame(rows, columns=COLUMNS), folder / MANIFEST)
    check_groups(check_manifest(read_table(folder / MANIFEST), folder), folder)
    if trials is not None:
        named, ids = {*trials["first"], *trials["second"]}, {clip.id for clip in clips}
        if other := sorted(named - ids):
            raise FedexitError(f"{root}: its trials name {len(other):,} clips that are not there ({other[0]})")
        write_text(folder / TRIALS, trials.to_csv(index=False, lineterminator="\n"))


def _row(clip: Clip, folder: Path) -> dict:
    """Return the row of a clip in the manifest, and write its audio if the file cannot be used as it is."""
    path = f"{RELEASE}/{clip.path}"
    facts = clip._asdict() | {"path": path}
    if clip.second is None and not clip.path.lower().endswith(".m4a"):
        try:
            info = sf.info(folder / path)
        except sf.LibsndfileError as error:
            raise FedexitError(
                f"{folder / path}: cannot be decoded ({error.error_string}); fetch the release again"
            ) from error
        if (info.samplerate, info.channels) == (SAMPLE_RATE, 1):
            return facts | {"seconds": info.frames / SAMPLE_RATE}
    waveform = read_clip(_content(folder / path), clip.path)
    if clip.second is not None:
        waveform = waveform[clip.second * SAMPLE_RATE : (clip.second + 1) * SAMPLE_RATE]
    facts["path"] = f"clips/{clip.id}.flac"
    write_audio(folder / facts["path"], waveform)
    return facts | {"seconds": len(waveform) / SAMPLE_RATE}


def _content(file: Path) -> bytes:
    """Return the content of an audio file; FFmpeg turns .m4a, which libsndfile cannot read, into WAV."""
    if file.suffix.lower() != ".m4a":
        return file.read_bytes()
    if shutil.which("ffmpeg") is None:
        raise FedexitError(f"{file}: no ffmpeg here to decode .m4a; install FFmpeg, or get the release in WAV")
    command = ["ffmpeg", "-v", "error", "-i", str(file), "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "wav", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise FedexitError(f"{file}: ffmpeg cannot decode it ({said[-1]}); fetch the release again")
    return done.stdout


def _link(root: Path, target: Path) -> None:
    try:
        os.symlink(root, target, target_is_directory=True)
    except OSError:  # Windows without the right to link
        shutil.copytree(root, target)
