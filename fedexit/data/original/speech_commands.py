"""Read Speech Commands v0.02 (Warden 2018): one folder per word, and the official lists of dev and test clips."""

import re
from pathlib import Path

import soundfile as sf

from fedexit.data.original.release import Clip, Note, bare, files_below, read_lines, refuse_missing
from fedexit.support.errors import FedexitError

NOISE, SILENCE = "_background_noise_", "silence"
MARKS = ("validation_list.txt", "testing_list.txt", NOISE)
_WORDS = (
    "backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one "
    "right seven sheila six stop three tree two up visual wow yes zero"
)
WORDS = frozenset(_WORDS.split())
_LISTS = {"dev": "validation_list.txt", "test": "testing_list.txt"}
_NOISE_SPLITS = {"running_tap": "dev", "exercise_bike": "test"}  # the other recordings are for training


def read(root: Path, note: Note) -> list[Clip]:
    """Return the clips of all 35 words, and the recordings of noise cut into clips of one second.

    `label` and `text` of a word are the word; `speaker` and `group` are the hash in the file's name. The lists give the
    split and keep speakers apart. A clip of noise has the label `silence`, no speaker, and its recording as group. The
    release does not split the six recordings. Here `running_tap` is for dev, `exercise_bike` for test and the others
    for training, so that a recording is in one split only.

    Raises FedexitError if a word or a listed file is missing.
    """
    words = {inner.name for inner in root.iterdir() if inner.is_dir() and not inner.name.startswith((".", "_"))}
    if words != WORDS:
        wrong = sorted(WORDS - words) + sorted(words - WORDS)
        raise FedexitError(
            f"{root}: expected the 35 words of Speech Commands v0.02, found {len(words)} folders of words "
            f"(different: {', '.join(wrong[:5])}); give the release v0.02"
        )
    listed = {split: {bare(line) for line in read_lines(root / name)} for split, name in _LISTS.items()}
    clips = []
    for path in (path for word in sorted(words) for path in files_below(root, [".wav"], word)):
        match = re.fullmatch(r"([a-z]+)/([0-9a-f]+)_nohash_\d+", clip := bare(path))
        if match is None:
            note("left out, not named <speaker>_nohash_<number>", path)
            continue
        word, speaker = match.groups()
        split = next((split for split, own in listed.items() if clip in own), "train")
        clips.append(Clip(clip, path, speaker, speaker, word, word, split))
    there = {clip.id for clip in clips}
    for split, own in listed.items():
        refuse_missing(sorted(own - there), len(own), root / _LISTS[split])
    return clips + _silence(root)


def _silence(root: Path) -> list[Clip]:
    """Return every whole second of the recordings of noise as a clip."""
    clips = []
    for path in files_below(root, [".wav"], NOISE):
        info = sf.info(root / path)
        recording = bare(path)
        split = _NOISE_SPLITS.get(Path(recording).name, "train")
        for second in range(info.frames // info.samplerate):
            clips.append(
                Clip(f"{recording}-{second:03d}", path, "", recording, label=SILENCE, split=split, second=second)
            )
    return clips
