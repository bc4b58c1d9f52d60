"""Open, fetch and convert speech corpora. Every corpus is one folder with one manifest."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from fedexit.data.archives import holds_corpus
from fedexit.data.audio import read_audio
from fedexit.data.checksums import ClipHashes
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.convert import Report, convert, printable
from fedexit.data.folder import (
    COLUMNS,
    MANIFEST,
    SPLITS,
    check_groups,
    check_manifest,
    composed,
    read_manifest,
    save_manifest,
)
from fedexit.data.original.catalogue import ORIGINALS
from fedexit.data.original.fetch import fetch_release, say_checksum
from fedexit.data.original.subset import parts_of
from fedexit.data.packages import fetch_queen
from fedexit.data.places import (
    NAMES,
    QUEEN,
    TARS,
    UNLABELLED,
    content_checksum,
    folder_of,
    found,
    named_or_own,
    place_of,
    place_of_known,
)
from fedexit.data.queen import build_queen
from fedexit.data.unlabelled import build_unlabelled
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.files import replacing
from fedexit.support.paths import data_dir
from fedexit.support.reads import note_read, recording

if TYPE_CHECKING:
    from datasets import Dataset

_TRIED = 16  # clips of a user's corpus that are decoded when it is opened, evenly spaced
_SECONDS_OFF = 0.05  # largest error of a clip's length in a manifest, in seconds


@dataclass(frozen=True)
class Corpus:
    """A checked corpus.

    name: name of a known corpus, or of the folder or .tar.
    folder: the folder that holds the manifest.
    table: the checked manifest, which is not to be changed; `manifest` returns a copy.
    """

    name: str
    folder: Path
    table: pd.DataFrame

    @property
    def manifest(self) -> pd.DataFrame:
        """Return the manifest as a new table: strings are never NaN, `seconds` is float."""
        return self.table.copy()

    @cached_property
    def dataset(self) -> "Dataset":
        """Return the manifest as a `datasets.Dataset` with `audio`, the path of the clip's file.

        The files are not decoded, because decoding in `datasets` needs FFmpeg. Raises FedexitError without `datasets`.
        """
        with extra("notebooks"):
            from datasets import Audio, Dataset
        columns = self.table.to_dict("list")
        columns["audio"] = [str(self.folder / path) for path in self.table["path"]]
        return Dataset.from_dict(columns).cast_column("audio", Audio(decode=False))

    @property
    def labels(self) -> list[str]:
        """Return the sorted labels of the manifest, without the empty label of clips that have none.

        Raises FedexitError for fewer than two labels, because there is nothing to classify.
        """
        labels = sorted(set(self.table["label"]) - {""})
        if len(labels) < 2:
            raise FedexitError(
                f"corpus {self.name} has {len(labels)} label(s), a classifier needs at least two; "
                f"fill the column label of its {MANIFEST}"
            )
        return labels

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of the manifest and the audio, as the files are now."""
        return content_checksum(self.folder, list(self._paths.values()), self._hashes)

    def clip_hash(self, clip: str) -> str:
        """Return the SHA-256 of the file of the clip with id `clip`, as it is now; FedexitError if there is none."""
        path = self._path(clip)
        return self._hashes.of(path)

    def waveform(self, clip: str) -> torch.Tensor:
        """Return the waveform (T,) float32 in [-1, 1] at 16 kHz of the clip with id `clip`.

        Raises FedexitError if there is no such clip, or its length is not what the manifest states.
        """
        path = self._path(clip)
        waveform = read_audio(self.folder / path)
        true, stated = len(waveform) / SAMPLE_RATE, self._seconds[composed(clip)]
        if abs(true - stated) > _SECONDS_OFF:
            raise FedexitError(
                f"{self.folder / MANIFEST}: clip {clip!r} lasts {true:.3f} s, not {stated:.3f} s as the manifest "
                "states; correct its seconds, or run `fedexit data convert FOLDER OUT`"
            )
        return waveform

    def select(self, split: str, having: str | None = None) -> pd.DataFrame:
        """Return the manifest's rows in `split`, in its order; with `having`, only where that column is not empty."""
        if split not in SPLITS:
            raise FedexitError(f"unknown split {split!r}, expected {', '.join(SPLITS)}")
        if having not in (None, *COLUMNS):
            raise FedexitError(f"unknown column {having!r}, expected {', '.join(COLUMNS)}")
        rows = self.manifest[lambda table: table["split"] == split]
        return rows if having is None else rows[rows[having] != ""]

    def _path(self, clip: str) -> str:
        if not isinstance(clip, str) or composed(clip) not in self._paths:
            raise FedexitError(f"corpus {self.name} has no clip {clip!r}; ids are in its {MANIFEST}")
        return self._paths[composed(clip)]

    @cached_property
    def _paths(self) -> dict[str, str]:
        return dict(zip(self.table["id"], self.table["path"], strict=True))

    @cached_property
    def _seconds(self) -> dict[str, float]:
        return dict(zip(self.table["id"], self.table["seconds"], strict=True))

    @cached_property
    def _hashes(self) -> ClipHashes:
        """Return the hashes of all clips, looked up once; later only files that changed are read again."""
        hashes = ClipHashes(self.folder)
        hashes.of_all(self._paths.values())
        return hashes


def open_corpus(name_or_folder: str | Path) -> Corpus:
    """Open a known corpus by name, or a folder or .tar with a `manifest.csv`, and check the whole manifest.

    A `Path`, or a text such as `./queen`, is always a folder or .tar of your own. A few clips are decoded, so that a
    wrong sample rate, wrong seconds or files that are not audio are found now and not during training.

    Raises:
        FedexitError: the corpus is unknown, not fetched or invalid, or the name means a known corpus and a folder here.
    """
    place = named_or_own(name_or_folder)
    if isinstance(place, str):
        return _opened(place_of(name_or_folder), place, place)
    corpus = _opened(place_of(name_or_folder), _own_name(place), str(name_or_folder))
    for clip in corpus.table["id"][:: -(-len(corpus.table) // _TRIED)]:
        corpus.waveform(clip)
    return corpus


def list_corpora() -> pd.DataFrame:
    """Return the known corpora, one per row: name, state (ready or not fetched), licence, how to get it."""
    homes = {QUEEN: ("free redistribution, game itself not for sale", f"fedexit data fetch {QUEEN}")}
    homes[UNLABELLED] = "CC BY-SA, GPL, BSD, by package", f"fedexit data fetch {UNLABELLED}  (for pre-training only)"
    homes |= {name: (one.licence, one.how_to_fetch(name)) for name, one in ORIGINALS.items()}
    rows = [(name, "ready" if found(name) else "not fetched", licence, how) for name, (licence, how) in homes.items()]
    return pd.DataFrame(rows, columns=["name", "state", "licence", "get it by"])


def fetch_corpus(
    name: str,
    source: str | Path | None = None,
    url: str = "",
    parts: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> Corpus:
    """Get the known corpus `name` into the data folder and open it.

    Args:
        name: a known corpus. `queen` is decoded into the cache in about half a minute. `unlabelled` comes from 13
            packages (600 MB, some minutes). The others come from public releases (`fedexit.data.original`).
        source: for `queen` a .deb or a queen.1c in place of the Debian package; for a release its folder or archive, or
            the prepared .tar.
        url: address of a folder with copies of the official archives of a release.
        parts: names of archives of a release (default: the usual ones), such as `dev-clean` of `librispeech`.
        say: receives a line for each reason why files of a release were left out or are without a label.

    Raises:
        FedexitError: the name is unknown, or the corpus cannot be downloaded or read, or needs a licence.

    Example:
        >>> fetch_corpus("librispeech", parts=["dev-clean", "test-clean"])
    """
    source = Path(source) if source is not None else None
    if name not in NAMES:
        raise FedexitError(f"unknown corpus {name!r}, expected {', '.join(NAMES)}")
    if name not in ORIGINALS and (url or parts):
        raise FedexitError(
            f"corpus {name} comes from Debian packages, so --url and --part have no effect; leave them out"
        )
    if name == QUEEN:
        folder = data_dir() / "cache" / QUEEN
        if source is not None or not (folder / MANIFEST).is_file():
            build_queen(fetch_queen(data_dir() / "downloads", source), folder)
    elif name == UNLABELLED and source is not None:
        raise FedexitError(f"corpus {UNLABELLED} is made of 13 packages, so {source} cannot be used; leave out --from")
    elif name == UNLABELLED:
        build_unlabelled(data_dir() / "cache" / UNLABELLED)
    elif name in TARS and source is not None and holds_corpus(source, MANIFEST):
        _keep_tar(name, source, data_dir() / "downloads" / f"{TARS[name][0]}.tar")
        say_checksum(ORIGINALS[name], folder_of(name), say)
    elif source is not None or url or parts or found(name) is None:
        fetch_release(name, source, url, parts, say)
    return _opened(place_of_known(name), name, name)


def write_manifest(corpus: str | Path, out: str | Path) -> Path:
    """Write the manifest of `corpus` (as for `open_corpus`) to the CSV file `out`."""
    save_manifest(open_corpus(corpus).manifest, Path(out))
    return Path(out)


def convert_folder(
    folder: str | Path, out: str | Path, skip_bad: bool = False, say: Callable[[str], object] = print
) -> Corpus:
    """Convert a folder of audio files to the corpus folder `out` (16 kHz mono FLAC and a manifest), and open it.

    Args:
        folder: folder of audio files. If it has a `manifest.csv`, the rows are the clips. Otherwise every audio file is
            a clip, the first-level subfolder is its speaker, and `split_groups` splits the speakers.
        out: the new folder; it is not created if anything fails.
        skip_bad: leave out unusable files and list them; otherwise the first one raises an error.
        say: receives a line with the number of clips, then a line for each reason why files were left out or changed.

    Raises:
        FedexitError: `out` exists or is a reserved name, or the folder, its manifest or a file is invalid.
    """
    report = Report(skip_bad)
    for path in (folder, out):
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise FedexitError(f"{path!r} names no folder; give the folder of recordings and a new folder")
    if str(out) in NAMES and not isinstance(out, Path):
        raise FedexitError(f"{out!r} is the name of a corpus of fedexit; write ./{out} for a folder of your own")
    convert(Path(folder), Path(out), report)
    corpus = open_corpus(Path(out))
    for line in (f"{printable(folder)}: {len(corpus.table)} clips in {printable(corpus.folder)}", *report.lines()):
        say(line)
    return corpus


def _opened(place: Path, name: str, named: str) -> Corpus:
    """Open and check the folder or .tar `place` as the corpus `name`, which the user calls `named`."""
    folder = folder_of(place)
    table = check_manifest(read_manifest(folder), folder)
    check_groups(table, folder)
    corpus = Corpus(name, folder, table)
    if recording():
        note_read("corpus", named, corpus.checksum)
    return corpus


def _own_name(place: Path) -> str:
    """Return the name of a folder, or of a .tar without its endings."""
    name = place.resolve().name
    return re.sub(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$", "", name, flags=re.IGNORECASE) if place.is_file() else name


def _keep_tar(name: str, source: Path, target: Path) -> None:
    """Copy the .tar `source` to `target` if it holds a corpus without faults, so that a wrong one replaces nothing.

    Raises FedexitError for such faults, and for the clips of another known corpus than `name`.
    """
    folder = folder_of(source)
    table = check_manifest(read_manifest(folder), folder)
    check_groups(table, folder)
    for other in TARS:
        if other != name and table["id"].iloc[0].startswith(tuple(parts_of(other))):
            raise FedexitError(
                f"{source}: holds the corpus {other}, not {name}; run: fedexit data fetch {other} --from {source}"
            )
    with replacing(target) as part:
        shutil.copyfile(source, part)
    shutil.rmtree(data_dir() / "cache" / TARS[name][0], ignore_errors=True)  # made of a release, it would be preferred
