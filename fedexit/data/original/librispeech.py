"""Read LibriSpeech (Panayotov et al. 2015): `<part>/<speaker>/<chapter>/`, with one `.trans.txt` per chapter."""

from pathlib import Path

from fedexit.data.original.release import Clip, Note, bare, files_below, read_lines

PARTS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)
MARKS = ("|".join(PARTS),)


def read(root: Path, note: Note) -> list[Clip]:
    """Return the clips of every official part in `root`; the first word of a part's name is the split.

    `text` is the transcript in capitals, `speaker` and `group` are the reader. An id begins with the part, so
    `id.str.startswith("test-clean/")` selects one of the two test sets. A clip that its `.trans.txt` lacks has no text.
    """
    return [clip for part in PARTS if (root / part).is_dir() for clip in _clips_of(part, root, note)]


def _clips_of(part: str, root: Path, note: Note) -> list[Clip]:
    texts: dict[str, str] = {}
    for file in files_below(root, [".trans.txt"], part):
        for line in read_lines(root / file):
            name, _, text = line.partition(" ")
            texts[name] = text.strip()
    clips = []
    for path in files_below(root, [".flac", ".wav"], part):
        name, speaker = Path(bare(path)).name, Path(path).parts[1]
        if name not in texts:
            note("kept without a text, no line in its .trans.txt", path)
        clips.append(Clip(bare(path), path, speaker, speaker, texts.pop(name, ""), split=part.split("-")[0]))
    for name in texts:
        note("left out, a transcript without a recording", f"{part}: {name}")
    return clips
