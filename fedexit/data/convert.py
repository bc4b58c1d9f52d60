"""Convert a folder of audio files of any kind into a corpus."""

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd
import soundfile as sf
import torch

from fedexit.data.audio import read_clip, write_audio
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.folder import (
    COLUMNS,
    MANIFEST,
    SHORT_COLUMNS,
    SPLITS,
    as_manifest,
    check_groups,
    check_manifest,
    clip_ids,
    composed,
    identity,
    leads_out,
    located,
    read_manifest,
    read_table,
    save_manifest,
    with_new_split,
)
from fedexit.support.errors import FedexitError
from fedexit.support.files import new_folder
from fedexit.support.locks import owned
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress

_OTHER_ENDINGS = {
    "AIFF": (".aif", ".aifc"),
    "AU": (".snd",),
    "IRCAM": (".sf",),
    "MP3": (".mp1", ".mp2", ".mpga"),
    "NIST": (".sph",),
    "OGG": (".oga", ".opus"),
    "SVX": (".8svx", ".iff"),
    "WAV": (".bwf", ".wave"),
}
_NO_SPEECH = {"RAW", "MAT4", "MAT5", "MPC2K", "SD2", "XI"}  # raw bytes, tables, instruments
_FORMATS = set(sf.available_formats()) - _NO_SPEECH
AUDIO_ENDINGS = {f".{name.lower()}" for name in _FORMATS} | {
    e for name in _FORMATS for e in _OTHER_ENDINGS.get(name, ())
}

FULL_SCALE = 32767 / 32768
_QUIET = 2**-10  # a peak below 32 of the 32,768 steps of 16 bits
_SHOWN = 5


class Report:
    """The files and clips that a conversion left out or changed, by reason."""

    def __init__(self, skip_bad: bool):
        self.skip_bad = skip_bad
        self.reasons: dict[str, list[str]] = defaultdict(list)

    def note(self, reason: str, name: object) -> None:
        """Add the file or clip `name` under `reason`."""
        self.reasons[reason].append(printable(name))

    def bad(self, error: FedexitError) -> None:
        """Note an unusable file, or raise `error` if such files are not skipped."""
        if not self.skip_bad:
            raise FedexitError(f"{error} (--skip-bad leaves such files out)") from error
        self.reasons["left out, bad"].append(str(error))

    def lines(self) -> list[str]:
        """Return one line per reason: the reason, the count and the first names; all names of bad files."""
        lines = []
        for reason, names in self.reasons.items():
            shown = names if reason == "left out, bad" else names[:_SHOWN]
            more = ", ..." if len(names) > len(shown) else ""
            lines.append(f"{reason}: {len(names)} ({', '.join(shown)}{more})")
        return lines


def printable(name: object) -> str:
    """Return a file's name with bytes that are not UTF-8 and line ends escaped."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace").replace("\n", "\\n").replace("\r", "\\r")


def convert(folder: Path, out: Path, report: Report) -> None:
    """Convert the audio files in `folder` to the corpus folder `out`: 16 kHz mono FLAC and a manifest.

    Args:
        folder: folder of audio files. If it has a `manifest.csv`, the rows are the clips. Otherwise every audio file is
            a clip, the first-level subfolder is its speaker, and `split_groups` splits the speakers.
        out: the new folder; it is not created if anything fails.
        report: receives the clips that are left out or changed.

    Raises:
        FedexitError: `out` exists, `folder` holds no audio, its manifest is invalid, or a file cannot be used and
            `report.skip_bad` is false.
    """
    _check_new(out)
    if not os.path.isdir(folder):
        found = "is a file, not a folder; unpack it first, or" if os.path.isfile(folder) else "no such folder;"
        raise FedexitError(f"{folder}: {found} name a folder that holds audio files")
    listed = (folder / MANIFEST).is_file()
    source = read_table(folder / MANIFEST) if listed else _table_of_tree(folder, report)
    if listed:
        known = COLUMNS if "text" in source else [*COLUMNS, *SHORT_COLUMNS]
        for column in source.columns.difference(known):
            report.note(f"left out, columns of {MANIFEST} that no corpus has", column)
        source = _checked_rows(source, folder, report)
    table = check_manifest(as_manifest(source.assign(seconds="1"), folder / MANIFEST), folder)
    check_groups(table, folder)
    with owned(out), new_folder(out) as part, one_thread():
        _check_new(out)  # another process may have made it meanwhile
        (part / "clips").mkdir()
        rows = list(_converted(table, folder, part, report))
        if not rows:
            raise FedexitError(
                f"{folder}: none of its {len(table)} audio files can be used; " + "; ".join(report.lines())
            )
        made = pd.DataFrame(rows, columns=COLUMNS)
        made = made if "split" in source else with_new_split(made)  # a speaker may have lost all clips
        save_manifest(made, part / MANIFEST)
        check_manifest(read_table(part / MANIFEST), part)
    for row in made[made["label"] == ""].itertuples() if (made["label"] != "").any() else ():
        report.note("kept without a label, so tasks with labels leave it out", row.id)


def gaps(folder: Path) -> list[str]:
    """Return one line for each thing that tasks may need and the corpus in `folder` lacks, with what to do."""
    made, lines = read_manifest(folder), []
    if ((made["label"] == "") & (made["text"] == "")).all():
        lines.append(f"no clip has a label or a text; to give them, add a {MANIFEST} with {','.join(SHORT_COLUMNS)}")
    if nameless := int((made["speaker"] == "").sum()):
        clips = f"{nameless} clip{'s' * (nameless > 1)}"
        lines.append(f"{clips} without a speaker; give each speaker a folder, or name speakers in {MANIFEST}")
    labels = pd.Series(sorted(set(made["label"]) - {""}), dtype=str)
    for _, same in labels.groupby(labels.str.lower()):  # casefold would make one of ß and ss
        if len(same) > 1:
            lines.append(f"the labels {', '.join(map(repr, same))} differ only in capitals and are different classes")
    if empty := [split for split in SPLITS if not (made["split"] == split).any()]:
        few = made["group"].nunique() < 3 and (made["group"] == made["speaker"]).all()
        by_speaker = "clips are split by speaker, so use three speakers, better ten"
        fix = by_speaker if few else f"see the columns group and split of {MANIFEST}"
        lines.append(f"no clip in {' and '.join(empty)}; {fix}")
    return lines


def _check_new(out: Path) -> None:
    if os.path.lexists(out):
        raise FedexitError(f"{out}: already exists; name a new folder, or remove it first")


def _converted(table: pd.DataFrame, folder: Path, part: Path, report: Report) -> Iterator[dict]:
    """Write every clip that can be used into `part` and yield its row."""
    number = 0
    for row in progress(table.to_dict("records"), "converting"):
        try:
            waveform = _usable(folder / row["path"], row["path"], report)
        except FedexitError as error:
            report.bad(error)
            continue
        path = f"clips/{number:06d}.flac"  # a number, because an id may hold any character
        write_audio(part / path, waveform)
        number += 1
        yield {**row, "path": path, "seconds": len(waveform) / SAMPLE_RATE}


def _usable(file: Path, name: str, report: Report) -> torch.Tensor:
    """Return the waveform (T,) of `file` at 16 kHz, at a level that 16 bits hold."""
    waveform = read_clip(file, printable(file))
    peak = float(waveform.abs().max())
    if peak == 0:
        report.note("kept, but silent", name)
    elif peak > 1 or peak < _QUIET:
        loud = "scaled down, because it was louder than full scale"
        report.note(loud if peak > 1 else "scaled up, because it was too quiet for 16 bits", name)
        waveform = (waveform.double() * (FULL_SCALE / peak)).float()  # the factor may exceed what float32 holds
    return waveform


def _checked_rows(table: pd.DataFrame, folder: Path, report: Report) -> pd.DataFrame:
    """Return the rows of a manifest whose file is there, and note audio files that no row names."""
    if not {"path", "speaker"} <= {*table}:  # `as_manifest` names the column
        return table
    listings: dict = {}
    there = [located(folder, path, listings) for path in table["path"]]
    for path in (path for path, found in zip(table["path"], there, strict=True) if found is None):
        if report.skip_bad:
            report.bad(FedexitError(f"{path}: the audio file is missing"))
        elif path.strip() and not leads_out(path):
            report.bad(FedexitError(f"{folder / MANIFEST}: the audio file {path!r} is missing; correct its path"))
    if report.skip_bad:
        table = table[[found is not None for found in there]].reset_index(drop=True)
        if table.empty:
            raise FedexitError(f"{folder / MANIFEST}: none of its audio files exists; check the paths")
    listed = {os.path.normpath(path) for path in there if path}
    for path in _recordings(folder, Report(skip_bad=True)):
        if str(path) not in listed:
            report.note(f"left out, not in {MANIFEST}", path)
    return table


def _table_of_tree(folder: Path, report: Report) -> pd.DataFrame:
    """Return the short manifest of a tree of audio files."""
    files = _recordings(folder, report)
    if not files:
        found = "".join(f"; {line}" for line in report.lines())
        raise FedexitError(
            f"{printable(folder)}: no audio files in it, expected .wav, .flac, .mp3, .ogg and the like{found}"
        )
    paths = [path.as_posix() for path in files]
    ids = clip_ids(paths)
    for clip in {clip for clip in ids if ids.count(clip) > 1} if len(set(ids)) < len(ids) else ():
        first, second = (path for path, its in zip(paths, ids, strict=True) if its == clip)
        raise FedexitError(
            f"{folder}: the files {first!a} and {second!a} have one name in two Unicode forms; rename one of them"
        )
    return pd.DataFrame(
        {
            "id": ids,
            "path": paths,
            "speaker": [composed(path.parts[0]) if len(path.parts) > 1 else "" for path in files],
            "label": "",
            "transcript": "",
        }
    )


def _recordings(folder: Path, report: Report) -> list[Path]:
    """Return the audio files below `folder` as paths relative to it, each file once, and note all other files.

    Links are followed. If a file or folder is found both with and without a link, the path without the link is used.
    """
    files: dict[tuple, Path] = {}
    linked_files = []
    for file in _ordinary_files(folder, report):
        name = printable(file)
        if file.name.startswith("."):
            report.note("left out, hidden", name)
        elif file.suffix.lower() not in AUDIO_ENDINGS:
            ending = printable(file.suffix.lower()) or "none"
            report.note(f"left out, libsndfile does not read files with this ending: {ending}", name)
        elif not _is_utf8(file):
            report.bad(FedexitError(f"{printable(folder / file)}: the name is not UTF-8; rename it"))
        elif (folder / file).is_symlink():
            linked_files.append(file)
        else:
            _add(files, file, folder, report)
    for file in sorted(linked_files):
        _add(files, file, folder, report)
    return sorted(files.values())


def _add(files: dict[tuple, Path], file: Path, folder: Path, report: Report) -> None:
    """Add `file` unless `files` has the same file under another name."""
    try:
        is_file, own = stat.S_ISREG((folder / file).stat().st_mode), identity(folder / file)
    except OSError as error:
        report.bad(
            FedexitError(
                f"{printable(folder / file)}: cannot be read, or is a broken link ({error.strerror}); remove it"
            )
        )
        return
    if not is_file:
        report.note("left out, not a regular file", file)
    elif files.setdefault(own, file) != file:
        report.note("left out, the same file as another", f"{file} = {files[own]}")


def _ordinary_files(folder: Path, report: Report) -> Iterator[Path]:
    """Yield every file below `folder` and its linked folders; hidden folders and earlier corpora are left out."""
    waiting, seen = [folder], set()

    def refuse(error: OSError) -> None:
        report.bad(
            FedexitError(f"{printable(error.filename)}: cannot be read ({error.strerror}); check its permissions")
        )

    while waiting:
        for here, folders, files in os.walk(waiting.pop(0), onerror=refuse):
            place = Path(here)
            own = identity(place)
            if own in seen:
                report.note("left out, a link to a folder that is read already", place.relative_to(folder))
                folders.clear()
                continue
            seen.add(own)
            for name in sorted(folders):
                inner = place / name
                reason = _reason_to_skip(inner, folder)
                if reason:
                    report.note(reason, inner.relative_to(folder))
                elif inner.is_symlink():
                    waiting.append(inner)
                if reason or inner.is_symlink():
                    folders.remove(name)
            folders.sort()
            yield from ((place / name).relative_to(folder) for name in sorted(files))


def _reason_to_skip(inner: Path, folder: Path) -> str:
    if inner.name.startswith(".") or inner.name == "__MACOSX":
        return "left out, hidden"
    if inner.is_symlink() and folder.resolve().is_relative_to(inner.resolve()):
        return "left out, a link to a folder that is read already"
    if _is_corpus(inner):
        return "left out, a corpus made earlier"
    return ""


def _is_corpus(folder: Path) -> bool:
    """Return whether `folder` holds a manifest as `save_manifest` writes it."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return file.readline().strip() == ",".join(COLUMNS).encode()
    except OSError:
        return False


def _is_utf8(path: PurePosixPath | Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
