"""Read IEMOCAP (Busso et al. 2008): five sessions, each a dialogue of two speakers that no other session has."""

import re
from collections.abc import Iterator
from pathlib import Path

from fedexit.data.original.release import Clip, Note, bare, files_below, read_lines

SESSIONS = tuple(f"Session{number}" for number in range(1, 6))
MARKS = tuple(f"{session}/dialog/EmoEvaluation" for session in SESSIONS)
EMOTIONS = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
_SPLITS = {"Session1": "test", "Session2": "dev"}
_RATED = re.compile(r"\[[^\]]*\]\s+(Ses\S+)\s+(\w+)\s")  # [6.2901 - 8.2357] Ses01F_impro01_F000 neu [...]
_SAID = re.compile(r"(Ses\S+)\s+\[[^\]]*\]:\s*(.*)")  # Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
_NAME = re.compile(r"(Ses\d\d)[FM]_.+_([FM])\w*")  # the first letter is the actor with markers, the last who speaks


def read(root: Path, note: Note) -> list[Clip]:
    """Return the clips of all sessions; the label is one of four emotions, with `excited` counted as happy.

    Other emotions, `xxx` (no agreement) and `oth` have no label, so tasks on labels leave these clips out. `speaker` is
    the session and the letter of who speaks, such as `Ses01M`; one name is never in two sessions. `group` is the
    session: clips of one dialogue stay together, and the folds of the task `emotion` are the sessions. The split is the
    first fold of five: Session1 is for test, Session2 for dev.
    """
    return [clip for session in SESSIONS for clip in _clips_of(session, root, note)]


def _clips_of(session: str, root: Path, note: Note) -> Iterator[Clip]:
    emotions = _matches(_RATED, root, f"{session}/dialog/EmoEvaluation")
    texts = _matches(_SAID, root, f"{session}/dialog/transcriptions")
    for path in files_below(root, [".wav"], f"{session}/sentences/wav"):
        name = Path(bare(path)).name
        match = _NAME.fullmatch(name)
        if match is None:
            note("left out, not named Ses<number><F|M>_<dialogue>_<F|M><number>", path)
            continue
        emotion = emotions.pop(name, "")
        if not emotion:
            note("kept without a label, not in EmoEvaluation", path)
        elif emotion not in EMOTIONS:
            note(f"kept without a label, the emotion is {emotion}", path)
        label = EMOTIONS.get(emotion, "")
        split = _SPLITS.get(session, "train")
        yield Clip(bare(path), path, "".join(match.groups()), session, texts.get(name, ""), label, split)
    for name in emotions:
        note("left out, rated without a recording", f"{session}: {name}")


def _matches(pattern: re.Pattern, root: Path, folder: str) -> dict[str, str]:
    """Return the name and the value of every line that matches, in the .txt files directly in `folder`."""
    found = {}
    for file in files_below(root, [".txt"], folder):
        if Path(file).parent == Path(folder):  # folders below it hold the ratings of single persons
            matches = (pattern.match(f"{line} ") for line in read_lines(root / file))
            found.update({match[1]: match[2].strip() for match in matches if match})
    return found
