"""Speech recognition (ASR in the paper): predict the characters of a line by CTC."""

import warnings

import pandas as pd

from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus
from fedexit.data.folder import split_groups
from fedexit.data.tasks.contract import FRAME, Clips, Task, can_spell, check_spelling
from fedexit.data.text import CHARACTERS, characters, unspelled
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

PUBLIC = {"queen": "JOE"}  # a voice that no client holds; a server may train on it before the federation


def asr_task(
    corpus: Corpus, max_seconds: float = 10.0, min_clips: int = 8, known: float = 0.1, frame: int = FRAME
) -> Task:
    """Predict the characters of every clip of a known voice; voices are clients, each in one of train, dev and test.

    Clips whose text has no characters are left out, then voices with fewer than `min_clips` clips. The clips of the
    corpus's public voice, if it has one, have the split `public`. Letters that cannot be spelled are named in a
    warning.

    Args:
        corpus: a corpus with transcripts and speakers.
        max_seconds: clips are cut to this length.
        min_clips: fewest clips of a voice.
        known: share of each training voice's clips that is held out as the split `known`. It measures the gain on a
            client's own voice.
        frame: samples per frame of the backbone (640 for one with 25 frames a second).

    Raises:
        FedexitError: the corpus has no transcripts in letters a-z, or a clip is too short for its text; the message
            names the clip.
    """
    rows = corpus.manifest.query("text != '' and speaker != ''")
    rows = rows.assign(target=[characters(text) for text in rows["text"]], group=rows["speaker"])
    _name_other_letters(corpus.name, rows)
    rows = rows[rows["target"].map(len) > 0]
    rows = rows[rows.groupby("speaker")["id"].transform("size") >= min_clips]
    if rows.empty:
        raise FedexitError(
            f"corpus {corpus.name} has no transcribed clips of known voices for task asr; "
            f"it needs speakers with {min_clips} transcripts each"
        )
    check_spelling(rows, max_seconds, frame=frame)
    public = PUBLIC.get(corpus.name)
    split = split_groups(rows.loc[rows["speaker"] != public, "speaker"]) | {public: "public"}
    rows = rows.assign(split=rows["speaker"].map(split)).reset_index(drop=True)
    for speaker, own in rows.query("split == 'train'").groupby("speaker", sort=True):
        held_out = numpy_stream("known voices", speaker).permutation(own.index)[: round(known * len(own))]
        rows.loc[held_out, "split"] = "known"
    return Task("asr", corpus, list(CHARACTERS), rows, head="ctc", max_seconds=max_seconds)


def played(clips: Clips, speed: float) -> Clips:
    """Return `clips` at `speed`, without those that would be too short for their text; other targets always fit.

    Speed perturbation (Ko et al. 2015) also changes the pitch, so one voice becomes several.
    """
    rows = clips.corpus.manifest.set_index("id").loc[clips.ids].reset_index().assign(target=clips.targets)
    seconds = rows["seconds"].clip(upper=clips.max_samples / SAMPLE_RATE) / speed
    pairs = zip(seconds, clips.targets, strict=True)
    fits = [isinstance(target, int) or can_spell(length, target) for length, target in pairs]
    return Clips(clips.corpus, rows[fits], clips.max_samples / SAMPLE_RATE, speed)


def _name_other_letters(name: str, rows: pd.DataFrame) -> None:
    """Warn of transcripts with letters that cannot be spelled; raise FedexitError if no other letters are left."""
    other = rows["text"].map(unspelled)
    if not other.any():
        return
    letters, empty = "".join(dict.fromkeys("".join(other))), int((rows["target"].map(len) == 0).sum())
    shown = " ".join(letters[:10]) + (" ..." if len(letters) > 10 else "")
    found = f"corpus {name}: task asr spells a-z only, and {(other != '').sum()} of {len(rows)} transcripts hold"
    if empty == len(rows):
        raise FedexitError(f"{found} other letters only ({shown}); write them in Latin letters")
    warnings.warn(
        f"{found} other letters ({shown}), which become blanks; {empty} clips without a-z are left out; "
        "write the transcripts in Latin letters",
        stacklevel=3,
    )
