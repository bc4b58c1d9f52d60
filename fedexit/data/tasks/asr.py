"""Define speech recognition (ASR in the paper): predict the characters of a line by CTC."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import import_module

import pandas as pd

from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.corpora import Corpus
from fedexit.data.folder import split_groups
from fedexit.data.tasks.contract import FRAME, Clips, Task, can_spell, check_spelling
from fedexit.data.text import CHARACTERS, alphabet_of, characters, checked_alphabet, unspelled
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.streams import numpy_stream

PUBLIC = {"queen": "JOE"}  # a voice that no client holds; a server may train on it before the federation
LEARNED = "learned"  # not an alphabet itself: it holds an e twice


def asr_task(
    corpus: Corpus,
    max_seconds: float = 10.0,
    min_clips: int = 8,
    known: float = 0.1,
    frame: int = FRAME,
    alphabet: Iterable[str] | None = None,
) -> Task:
    """Predict the characters of every clip of a known voice; voices are clients, each in one of train, dev and test.

    Clips whose text has no characters are left out, then voices with fewer than `min_clips` clips. The clips of the
    corpus's public voice, if it has one, have the split `public`. Characters that cannot be spelled are counted and
    named in a warning.

    Args:
        corpus: a corpus with transcripts and speakers.
        max_seconds: clips are cut to this length.
        min_clips: fewest clips of a voice.
        known: share of each training voice's clips that is held out as the split `known`. It measures the gain on a
            client's own voice.
        frame: samples per frame of the backbone (640 for one with 25 frames a second).
        alphabet: the characters, in the order of the model's outputs, with the blank between words; or `learned`:
            those of the training texts (`fedexit.data.text.alphabet_of`). Default a-z, apostrophe and blank.
            `fedexit.data.text.characters` states how texts are spelled.

    Raises:
        FedexitError: jiwer is not installed, the alphabet is unusable, the corpus has no transcripts that it can
            spell, or a clip is too short for its text; the message names the clip.
    """
    with extra("asr"):
        import_module("jiwer")  # counts the errors after the training
    rows = corpus.manifest.query("text != '' and speaker != ''")
    rows = rows.assign(group=rows["speaker"])
    if isinstance(alphabet, str) and alphabet == LEARNED:
        whole = _divided(corpus, rows, alphabet_of(rows["text"]), min_clips)
        letters = alphabet_of(whole.query("split in ('train', 'public')")["text"])
    else:
        letters = checked_alphabet(CHARACTERS if alphabet is None else alphabet)
    _name_other_characters(corpus.name, rows["text"], letters)
    rows = _divided(corpus, rows, letters, min_clips)
    check_spelling(rows, max_seconds, frame=frame)
    for speaker, own in rows.query("split == 'train'").groupby("speaker", sort=True):
        held_out = numpy_stream("known voices", speaker).permutation(own.index)[: round(known * len(own))]
        rows.loc[held_out, "split"] = "known"
    return Task("asr", corpus, letters, rows, head="ctc", max_seconds=max_seconds)


def _divided(corpus: Corpus, rows: pd.DataFrame, letters: Sequence[str], min_clips: int) -> pd.DataFrame:
    """Return the rows that take part, with their targets in the characters `letters` and the split of their voice."""
    rows = rows.assign(target=[characters(text, letters) for text in rows["text"]])
    rows = rows[rows["target"].map(len) > 0]
    rows = rows[rows.groupby("speaker")["id"].transform("size") >= min_clips]
    if rows.empty:
        raise FedexitError(
            f"corpus {corpus.name} has no transcribed clips of known voices for task asr; "
            f"it needs speakers with {min_clips} transcripts each"
        )
    public = PUBLIC.get(corpus.name)
    split = split_groups(rows.loc[rows["speaker"] != public, "speaker"]) | {public: "public"}
    return rows.assign(split=rows["speaker"].map(split)).reset_index(drop=True)


def played(clips: Clips, speed: float) -> Clips:
    """Return `clips` at `speed`, without those that would be too short for their text; other targets always fit.

    Speed perturbation (Ko et al. 2015) also changes the pitch, so one voice becomes several.
    """
    rows = clips.corpus.manifest.set_index("id").loc[clips.ids].reset_index().assign(target=clips.targets)
    seconds = rows["seconds"].clip(upper=clips.max_samples / SAMPLE_RATE) / speed
    pairs = zip(seconds, clips.targets, strict=True)
    fits = [isinstance(target, int) or can_spell(length, target) for length, target in pairs]
    return Clips(clips.corpus, rows[fits], clips.max_samples / SAMPLE_RATE, speed)


def _name_other_characters(name: str, texts: pd.Series, letters: Sequence[str]) -> None:
    """Warn of transcripts with characters that cannot be spelled; raise FedexitError if they hold nothing else."""
    other = texts.map(lambda text: unspelled(text, letters))
    if not other.any():
        return
    counts = Counter("".join(other)).most_common()
    shown = ", ".join(f"{one} in {count}" for one, count in counts[:10]) + (" ..." if len(counts) > 10 else "")
    empty = sum(not characters(text, letters) for text in texts)
    found = f"corpus {name}: the alphabet of task asr ({len(letters)} characters) lacks"
    if empty == len(texts):
        raise FedexitError(f"{found} all characters of all {empty} transcripts ({shown}); give alphabet='learned'")
    left_out = f"; {empty} clips without any other character are left out" if empty else ""
    warnings.warn(
        f"{found} characters of {(other != '').sum()} of {len(texts)} transcripts ({shown}), which become blanks"
        f"{left_out}; give alphabet='learned', or write them in the alphabet",
        stacklevel=3,
    )
