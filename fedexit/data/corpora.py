"""Opening, fetching and converting speech corpora; whatever their home, they end as one folder with one manifest."""

import os
import shutil
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import pandas as pd
import torch

from fedexit.data.audio import SAMPLE_RATE, decode_audio, read_audio, to_16k_mono, write_audio
from fedexit.data.folder import (
    COLUMNS,
    MANIFEST,
    SPLITS,
    check_manifest,
    new_folder,
    read_table,
    save_manifest,
    split_groups,
)
from fedexit.data.packages import fetch_queen
from fedexit.data.places import QUEEN, TARS, UNLABELLED, folder_of, found, known, manifest_checksum, unpacked
from fedexit.data.queen import build_queen
from fedexit.data.unlabelled import build_unlabelled
from fedexit.support.errors import FedexitError
from fedexit.support.paths import data_dir
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress

AUDIO_ENDINGS = {".aif", ".aiff", ".au", ".flac", ".mp3", ".ogg", ".opus", ".wav"}


@dataclass(frozen=True)
class Corpus:
    """A checked corpus: `dataset` has the manifest's columns and `audio`, the clip's file, not decoded."""

    name: str
    folder: Path
    dataset: datasets.Dataset

    @property
    def manifest(self) -> pd.DataFrame:
        """The manifest as a new table: strings never NaN, `seconds` float."""
        return self.dataset.select_columns(COLUMNS).to_pandas()

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the content of manifest.csv: what a result says it was measured on."""
        return manifest_checksum(self.folder)

    @cached_property
    def _paths(self) -> dict[str, str]:
        return dict(zip(self.dataset["id"], self.dataset["path"], strict=True))

    def waveform(self, clip: str) -> torch.Tensor:
        """Waveform (T,) float32 in [-1, 1] at 16 kHz of the clip with id `clip`; FedexitError if there is none."""
        if clip not in self._paths:
            raise FedexitError(f"corpus {self.name} has no clip {clip!r}; ids are in its {MANIFEST}")
        return read_audio(self.folder / self._paths[clip])

    def select(self, split: str, having: str | None = None) -> pd.DataFrame:
        """Rows of the manifest in `split`, in its order; only those whose column `having` is not empty, if given."""
        if split not in SPLITS:
            raise FedexitError(f"unknown split {split!r}, expected {', '.join(SPLITS)}")
        rows = self.manifest[lambda table: table["split"] == split]
        return rows if having is None else rows[rows[having] != ""]


def open_corpus(name_or_folder: str | Path) -> Corpus:
    """Open a known corpus by name, or a folder or .tar that holds a `manifest.csv`, and check all of its manifest.

    Audio is not decoded here. Raises FedexitError with the mend if it is unknown, not fetched yet or at fault.
    """
    name = str(name_or_folder)
    folder = folder_of(name)
    table = check_manifest(_as_manifest(read_table(folder / MANIFEST)), folder)
    return Corpus(name if known(name) else Path(name).stem, folder, _dataset(table, folder))


def list_corpora() -> pd.DataFrame:
    """The known corpora, one per row: name, state (ready or not fetched), licence, how to get it."""
    homes = {QUEEN: ("free redistribution, game itself not for sale", f"fedexit data fetch {QUEEN}")}
    homes[UNLABELLED] = "CC BY-SA, GPL, BSD, by package", f"fedexit data fetch {UNLABELLED}  (for pre-training only)"
    for name, (stem, licence, home) in TARS.items():
        homes[name] = licence, f"fedexit data fetch {name} --from {stem}.tar  ({home})"
    rows = [(name, "ready" if found(name) else "not fetched", licence, how) for name, (licence, how) in homes.items()]
    return pd.DataFrame(rows, columns=["name", "state", "licence", "get it by"])


def fetch_corpus(name: str, source: str | Path | None = None) -> Corpus:
    """Get the known corpus `name` into the data folder and open it.

    `queen` comes from the Debian package of the game, or from `source` (a .deb or a queen.1c), and is decoded into the
    cache (about half a minute); `unlabelled` comes from 13 packages (600 MB, some minutes); the others come from
    `source`, their .tar.
    """
    source = Path(source) if source is not None else None
    if not known(name):
        raise FedexitError(f"unknown corpus {name!r}, expected {', '.join([QUEEN, UNLABELLED, *TARS])}")
    if name == QUEEN:
        folder = data_dir() / "cache" / QUEEN
        if source is not None or not (folder / MANIFEST).is_file():
            build_queen(fetch_queen(data_dir() / "downloads", source), folder)
    elif name == UNLABELLED:
        build_unlabelled(data_dir() / "cache" / UNLABELLED)
    elif source is not None:
        _keep_tar(source, data_dir() / "downloads" / f"{TARS[name][0]}.tar")
    return open_corpus(name)


def write_manifest(corpus: str | Path, out: str | Path) -> Path:
    """Write the manifest of `corpus` (as for `open_corpus`) to the CSV file `out`."""
    save_manifest(open_corpus(corpus).manifest, Path(out))
    return Path(out)


def convert_folder(folder: str | Path, out: str | Path) -> Corpus:
    """Make the corpus folder `out`, 16 kHz mono FLAC with a manifest, of a folder of audio files.

    With a `manifest.csv` in `folder` its rows are kept. Without one every audio file is a clip, the first-level
    subfolder its speaker, and speakers are split by `split_groups`. If anything fails there is no `out`.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise FedexitError(f"{out}: already exists; name a new folder, or remove it first")
    table = _source_table(folder)
    paths = [f"clips/{number:06d}.flac" for number in range(len(table))]  # numbers, as an id may hold any character
    with new_folder(out) as part, one_thread():
        (part / "clips").mkdir()
        seconds = []
        for source, path in zip(progress(table["path"], "converting"), paths, strict=True):
            waveform = to_16k_mono(*decode_audio(folder / source))
            write_audio(part / path, waveform)
            seconds.append(len(waveform) / SAMPLE_RATE)
        save_manifest(table.assign(path=paths, seconds=seconds), part / MANIFEST)
    return open_corpus(out)


def _keep_tar(source: Path, target: Path) -> None:
    if not source.is_file() or not tarfile.is_tarfile(source):
        raise FedexitError(f"{source}: not a .tar file; expected {target.name}")
    unpacked(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    os.replace(part, target)


def _as_manifest(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the columns path, speaker, label, transcript (perhaps split), as the tars have, as a manifest."""
    if "id" in table or not {"path", "speaker", "transcript"} <= set(table):
        return table
    split = table["speaker"].map(split_groups(table["speaker"])) if "split" not in table else table["split"]
    return table.assign(
        id=[str(Path(path).with_suffix("")) for path in table["path"]],
        group=table["speaker"],
        text=table["transcript"],
        split=split.replace("val", "dev"),
    )


def _source_table(folder: Path) -> pd.DataFrame:
    """Manifest of the folder to convert, read or made from its tree (`seconds` to be measured)."""
    if not folder.is_dir():
        raise FedexitError(f"{folder}: no such folder; name one that holds audio files")
    if (folder / MANIFEST).is_file():
        table = read_table(folder / MANIFEST)
        return check_manifest(_as_manifest(table if "seconds" in table else table.assign(seconds="1")), folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in AUDIO_ENDINGS)
    if not files:
        raise FedexitError(f"{folder}: no audio files in it, expected {' '.join(sorted(AUDIO_ENDINGS))}")
    speakers = [path.parts[0] if len(path.parts) > 1 else "" for path in files]
    split = split_groups(speakers)
    table = pd.DataFrame(
        {
            "id": [path.with_suffix("").as_posix() for path in files],
            "path": [path.as_posix() for path in files],
            "speaker": speakers,
            "group": speakers,
            "text": "",
            "label": "",
            "seconds": 1.0,
            "split": [split[speaker] for speaker in speakers],
        }
    )
    return check_manifest(table, folder)


def _dataset(table: pd.DataFrame, folder: Path) -> datasets.Dataset:
    """In-memory dataset of a manifest with `audio` as paths: decoding inside `datasets` would need FFmpeg."""
    columns = table.to_dict("list")
    columns["audio"] = [str(folder / path) for path in table["path"]]
    return datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))
