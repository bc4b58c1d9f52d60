"""Read VoxCeleb1 (Nagrani et al. 2017): `<speaker>/<video>/<number>.wav` and the official lists."""

from collections import Counter
from pathlib import Path

import pandas as pd

from fedexit.data.original.release import Clip, Note, bare, files_below, read_lines, refuse_missing
from fedexit.support.errors import FedexitError

SPLIT_LIST, TRIAL_LIST = "iden_split.txt", "veri_test.txt"
MARKS = (f"{SPLIT_LIST}|*/{SPLIT_LIST}",)
_SPLITS = {"1": "train", "2": "dev", "3": "test"}


def read(root: Path, note: Note) -> list[Clip]:
    """Return the clips of the official identification split, in which every speaker has clips of each part.

    `speaker` is the id of VoxCeleb. `group` is the video, or empty if the list divides a video among parts. Audio may
    lie anywhere below `root`, so the .zip files may be unpacked into one folder or into two; FFmpeg decodes .m4a files.

    Raises FedexitError if the list has another format, or names files that are missing.
    """
    paths = _audio(root)
    where = _list(root, SPLIT_LIST)
    rows = [tuple(line.split()) for line in read_lines(where)]
    for row in rows:
        if len(row) != 2 or row[0] not in _SPLITS or row[1].count("/") != 2:
            raise FedexitError(
                f"{where}: expected lines such as '1 id10006/nLEBBc9oIFs/00003.wav', found {' '.join(row)!r}; "
                "download the list again"
            )
    names = [bare(path) for _, path in rows]
    refuse_missing([name for name in names if name not in paths], len(rows), where)
    videos = [name.rpartition("/")[0] for name in names]
    sides = Counter(video for video, _ in set(zip(videos, (part for part, _ in rows), strict=True)))
    for video in (video for video, count in sides.items() if count > 1):
        note(f"kept without a group, {SPLIT_LIST} divides the video among parts", video)
    for name in sorted(paths.keys() - set(names)):
        note(f"left out, not in {SPLIT_LIST}", paths[name])
    return [
        Clip(name, paths[name], name.split("/")[0], video if sides[video] == 1 else "", split=_SPLITS[part])
        for name, video, (part, _) in zip(names, videos, rows, strict=True)
    ]


def trials(root: Path) -> pd.DataFrame | None:
    """Return the official verification trials, `first, second, same`; None if their list is not there.

    Raises FedexitError if the list has another format.
    """
    where = _list(root, TRIAL_LIST)
    if not where.is_file():
        return None
    rows = [line.split() for line in read_lines(where)]
    for row in rows:
        if len(row) != 3 or row[0] not in "01":
            raise FedexitError(f"{where}: expected lines '<1 or 0> <file> <file>', found {' '.join(row)!r}")
    return pd.DataFrame(
        {
            "first": [bare(row[1]) for row in rows],
            "second": [bare(row[2]) for row in rows],
            "same": [int(row[0]) for row in rows],
        }
    )


def _list(root: Path, name: str) -> Path:
    return next((file for file in (root / name, *sorted(root.glob(f"*/{name}"))) if file.is_file()), root / name)


def _audio(root: Path) -> dict[str, str]:
    """Return the path of each recording by `<speaker>/<video>/<number>`; a .wav goes before an .m4a."""
    found: dict[str, str] = {}
    for ending in (".wav", ".flac", ".m4a"):
        for path in files_below(root, [ending]):
            found.setdefault("/".join(Path(bare(path)).parts[-3:]), path)
    return found
