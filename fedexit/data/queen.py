"""Read the embedded corpus `queen`: speech and script of a freeware game, from its one data file, queen.1c.

All numbers in the file are big-endian. Its header lists entries (name, place, size): `.SB` entries are MP3 clips,
`.DOG` dialogues, `.CUT` cut scenes and `QUEEN2.JAS` single lines. A clip's name identifies the line that it speaks.
"""

import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedexit.data.audio import read_clip, write_audio
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.folder import MANIFEST, save_manifest, split_groups
from fedexit.support.errors import FedexitError
from fedexit.support.files import new_folder
from fedexit.support.locks import owned
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress

_HEADER, _ENTRY = 15, struct.Struct(">12sBII")
_MP3 = 1
_BODY = 20  # dialogues and cut scenes begin with 20 bytes that are unrelated to the text
_COMMAND = re.compile(r"\*XY.{11}|\*..", re.DOTALL)
_JAS, _JAS_FIRST = "QUEEN2.JAS", 41
_ENDINGS = (("...", "ellipsis"), (".", "statement"), ("!", "exclamation"), ("?", "question"))
MIN_HELD_OUT = 10


class Clip(NamedTuple):
    """One voice clip: the place of its MP3 in queen.1c and its entry in the script."""

    name: str
    source: str | None  # dialogue, cut scene or QUEEN2.JAS; None if the script does not contain the clip
    voice: str | None  # None in cut scenes, which do not name the speaker
    text: str | None
    offset: int  # bytes
    size: int  # bytes


class Line(NamedTuple):
    """One line of the script; its clips are named `stem` + segment number in hex + `.SB`."""

    stem: str
    text: str
    source: str | None
    voice: str | None


def read_clips(content: bytes) -> list[Clip]:
    """Return all voice clips of a queen.1c, sorted by name; raise FedexitError if `content` is not one or cut short."""
    try:
        entries = _entries(content)
        files = {name: content[offset : offset + size] for name, offset, size in entries}
        spoken = _segments(_script(files))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise FedexitError("queen.1c: the script inside cannot be read; fetch it again") from error
    unknown = Line("", "", None, None)
    clips = []
    for name, offset, size in entries:
        if name.endswith(".SB"):
            line = spoken.get(name, unknown)
            clips.append(Clip(name, line.source, line.voice, line.text or None, offset, size))
    return sorted(clips)


def sentence_type(text: str) -> str:
    """Return "statement", "exclamation", "question" or "ellipsis" by the last mark of `text` before quotes; else ""."""
    bare = text.rstrip("\"')")
    return next((label for ending, label in _ENDINGS if bare.endswith(ending)), "")


def build_queen(queen_1c: Path, folder: Path) -> None:
    """Decode every clip of `queen_1c` into the corpus folder `folder`: manifest.csv and clips/ID.flac.

    Samples above full scale, by which MP3 decoders overshoot, are clipped and not reported: the source is one fixed
    file, so the loss is the same for everyone. Levels that `write_audio` refuses raise FedexitError.
    """
    content = queen_1c.read_bytes()
    clips = read_clips(content)
    with owned(folder), new_folder(folder) as part, one_thread():
        (part / "clips").mkdir()
        seconds = []
        for clip in progress(clips, "decoding queen"):
            waveform = read_clip(content[clip.offset : clip.offset + clip.size], clip.name)
            write_audio(part / _path(clip), waveform)
            seconds.append(len(waveform) / SAMPLE_RATE)
        save_manifest(_table(clips, seconds), part / MANIFEST)


def split_queen(clips: list[Clip]) -> dict[str, str]:
    """Return the split of each source file, so that no dialogue or cut scene is on both sides of a split.

    The split serves closed-set voice identification. Of the dialogues of each voice other than JOE, the one with the
    most lines of that voice is for training. Among the others with at least MIN_HELD_OUT of its lines, the smallest is
    for testing and the next for development. A voice with a single dialogue is therefore in train only. Cut scenes,
    which have no voice label, are split by name. All else (QUEEN2.JAS) is for training.
    """
    lines: dict[str, int] = defaultdict(int)
    dialogues: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.source and clip.source.endswith(".DOG") and clip.voice is not None and clip.voice != "JOE":
            lines[clip.source] += 1
            dialogues[clip.voice].add(clip.source)
    split = split_groups(clip.source for clip in clips if clip.source and clip.source.endswith(".CUT"))
    for sources in dialogues.values():
        ranked = sorted(sources, key=lambda source: (lines[source], source))
        candidates = [source for source in ranked[:-1] if lines[source] >= MIN_HELD_OUT]
        split |= dict(zip(candidates, ("test", "dev"), strict=False))
    return split


def _entries(content: bytes) -> list[tuple[str, int, int]]:
    """Return name, offset and size of every file in queen.1c."""
    if content[:4] != b"QTBL" or content[12:13] != bytes([_MP3]):
        raise FedexitError("queen.1c: not the talkie's MP3 data file, which begins with QTBL; fetch it")
    (count,) = struct.unpack_from(">H", content, 13)
    table = [_ENTRY.unpack_from(content, _HEADER + _ENTRY.size * index) for index in range(count)]
    end = max((offset + size for _, _, offset, size in table), default=0)
    if not count or end > len(content):
        raise FedexitError(f"queen.1c: cut short at {len(content)} bytes, expected {end}; fetch it again")
    return [(name.split(b"\0")[0].decode("ascii"), offset, size) for name, _, offset, size in table]


def _script(files: dict[str, bytes]) -> Iterator[Line]:
    for name, content in files.items():
        if name.endswith(".DOG"):
            yield from _dialogue(name, content[_BODY:])
        elif name.endswith(".CUT"):
            yield from _cut_scene(name, content[_BODY:])
        elif name == _JAS:
            for number, text in enumerate(content.decode("cp437").split("\r\n"), _JAS_FIRST):
                yield Line(f"JOE{number:04d}", text, name, "JOE")


def _dialogue(name: str, body: bytes) -> Iterator[Line]:
    """Yield Joe's lines, the partner's lines, and the line of each for when they have met before (XXXX)."""
    partner = re.sub(r"\d", "", name.removesuffix(".DOG"))
    levels, _, key, n_joe, n_partner = struct.unpack_from(">5h", body)
    partner_lines, met_lines = struct.unpack_from(">H2xH", body, 22)
    for voice, side, start, count in (
        ("JOE", "J", 32 + 96 * abs(levels), n_joe),
        (partner, "P", partner_lines, n_partner),
    ):
        for number, text in _numbered_lines(body, start, count):
            greeting = side == "J" and number == 0
            line = "SSSS" if greeting else f"{number:4x}"
            yield Line(f"{key:2d}{line}{side}", text, name, voice)
    text, position = _string(body, met_lines, 2)
    yield Line(f"{key:2d}XXXXP", text, name, partner)
    yield Line(f"{key:2d}XXXXJ", _string(body, position, 2)[0], name, "JOE")


def _numbered_lines(body: bytes, position: int, count: int) -> Iterator[tuple[int, str]]:
    for _ in range(count):
        (number,) = struct.unpack_from(">H", body, position + 2)
        text, position = _string(body, position + 4, 4)
        yield number, text


def _cut_scene(name: str, body: bytes) -> Iterator[Line]:
    """Yield the lines of a cut scene; its actions are numbered from 1 and are silent (empty, `*`, `#...`) or spoken.

    One string before them gives the direction in which Joe faces on entering. It is mostly empty. Where it is not,
    counting it as an action would give every clip of the scene its neighbour's text.
    """
    (count,) = struct.unpack_from(">h", body, 2)
    (position,) = struct.unpack_from(">H", body, 8)
    entering = body[position]
    position = _string(body, position, 2)[1] if entering else position + 1
    for index in range(1, abs(count) + 1):
        text, position = _string(body, position, 2)
        if text.strip("*") and not text.startswith("#"):
            yield Line(f"{name.removesuffix('.CUT'):_<5}{index:02d}", text, name, None)


def _string(body: bytes, position: int, align: int) -> tuple[str, int]:
    """Return the text at `position` (its length, then its characters) and the next multiple of `align` after it."""
    start, end = position + 1, position + 1 + body[position]
    return body[start:end].decode("cp437"), end + -end % align


def _segments(script: Iterator[Line]) -> dict[str, Line]:
    """Return the line of each clip name: stage commands cut a line into numbered segments, each with its own clip."""
    spoken: dict[str, Line] = {}
    for line in script:
        for number, text in enumerate(_COMMAND.split(line.text), 1):
            name = f"{line.stem}{number:x}.SB".replace(" ", "0").upper()
            if text.strip():
                spoken.setdefault(name, line._replace(text=text.strip()))  # the first of equal names, as in the game
    return spoken


def _path(clip: Clip) -> str:
    return f"clips/{clip.name}.flac"


def _table(clips: list[Clip], seconds: list[float]) -> pd.DataFrame:
    split = split_queen(clips)
    return pd.DataFrame(
        {
            "id": [clip.name for clip in clips],
            "path": [_path(clip) for clip in clips],
            "speaker": [clip.voice or "" for clip in clips],
            "group": [clip.source or "" for clip in clips],
            "text": [clip.text or "" for clip in clips],
            "label": [sentence_type(clip.text or "") for clip in clips],
            "seconds": seconds,
            "split": [split.get(clip.source or "", "train") for clip in clips],
        }
    )
