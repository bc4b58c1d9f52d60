"""Read speechocean762 (Zhang et al. 2021): `WAVE/SPEAKER<speaker>/<clip>.WAV`, and lists in the style of Kaldi."""

from pathlib import Path

from fedexit.data.original.release import Note, bare, files_below, read_lines, refuse_missing
from fedexit.support.errors import FedexitError

MARKS = ("WAVE", "train/wav.scp", "train/text", "test/wav.scp", "test/text")
_ADULT = 16  # years


def read(root: Path, parts: list[str], note: Note) -> list[dict[str, str]]:
    """Return the rows of the prepared manifest: every listed clip of the speakers in `parts`.

    The lists in `train` and `test` give split, text, gender and age. Recordings that no list names are left out.
    Compared with the release at GitHub: the manifest and all 1,200 audio files are byte-identical to those of the
    prepared `speechocean60.tar`.

    Raises FedexitError if a listed file is missing.
    """
    there = {bare(path): path for path in files_below(root, [".wav"], "WAVE")}
    rows, missing, listed = [], [], 0
    for split in ("train", "test"):
        text, gender, age = (_table(root / split / name) for name in ("text", "spk2gender", "spk2age"))
        speakers = _table(root / split / "utt2spk")
        for clip, path in _table(root / split / "wav.scp").items():
            if str(Path(path).parent) not in parts:
                continue
            listed += 1
            if bare(path) not in there:
                missing.append(path)
                continue
            who = speakers[clip]
            rows.append(
                {"source": there[bare(path)], "path": f"{bare(path)}.flac", "speaker": who}
                | {"label": "child" if int(age[who]) < _ADULT else "adult", "transcript": text[clip]}
                | {"split": split, "gender": gender[who], "age": age[who]}
            )
    refuse_missing(missing, listed, root / "train" / "wav.scp")
    return rows


def _table(file: Path) -> dict[str, str]:
    """Return the lines of a file as key and rest, which a tab or a blank separates."""
    return dict(_pair(line, file) for line in read_lines(file))


def _pair(line: str, file: Path) -> tuple[str, str]:
    key, *value = line.split(maxsplit=1)
    if not value:
        raise FedexitError(f"{file}: the line {line!r} has no second field; fetch the release again")
    return key, value[0]
