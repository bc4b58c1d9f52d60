"""ASR in the paper: what is said, in characters, by CTC."""

from collections.abc import Sequence

from fedexit.data.audio import SAMPLE_RATE
from fedexit.data.corpora import Corpus
from fedexit.data.folder import split_groups
from fedexit.data.tasks.contract import Clips, Task
from fedexit.data.text import CHARACTERS, characters, frames_needed
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream

PUBLIC = {"queen": "JOE"}  # a voice whose clips are nobody's: what a server may train on before the federation
_FRAME = 320  # samples of wav2vec 2.0 and its kin


def asr_task(corpus: Corpus, max_seconds: float = 10.0, min_clips: int = 8, known: float = 0.1) -> Task:
    """The characters of every clip of a known voice; voices are clients, and each is in one of train, dev and test.

    Clips whose text has no characters are left out, then voices with fewer than `min_clips` clips. The clips of the
    corpus's public voice, if it has one, have the split `public`. A share `known` of each training voice's clips is
    held out as the split `known`: what a client gains for itself. Raises FedexitError for a corpus without transcripts
    and, naming it, for a clip of which `max_seconds` have too few frames to spell its text.
    """
    rows = corpus.manifest.query("text != '' and speaker != ''")
    rows = rows.assign(target=[characters(text) for text in rows["text"]], group=rows["speaker"])
    rows = rows[rows["target"].map(len) > 0]
    rows = rows[rows.groupby("speaker")["id"].transform("size") >= min_clips]
    if rows.empty:
        raise FedexitError(f"corpus {corpus.name} has no transcribed clips of known voices for task asr")
    for row in rows.itertuples():
        seconds = min(row.seconds, max_seconds)
        if not can_spell(seconds, row.target):
            raise FedexitError(
                f"clip {row.id}: {seconds:.1f} s cannot spell its {len(row.target)} characters; drop it from the "
                "manifest, or mend its text"
            )
    public = PUBLIC.get(corpus.name)
    split = split_groups(rows.loc[rows["speaker"] != public, "speaker"]) | {public: "public"}
    rows = rows.assign(split=rows["speaker"].map(split)).reset_index(drop=True)
    for speaker, own in rows.query("split == 'train'").groupby("speaker", sort=True):
        held_out = numpy_stream("known voices", speaker).permutation(own.index)[: round(known * len(own))]
        rows.loc[held_out, "split"] = "known"
    return Task("asr", corpus, list(CHARACTERS), rows, head="ctc")


def can_spell(seconds: float, target: Sequence[int]) -> bool:
    """Whether a clip of so many seconds has the frames that CTC needs to spell the characters `target`."""
    return round(seconds * SAMPLE_RATE) // _FRAME - 1 >= frames_needed(target)


def played(clips: Clips, speed: float) -> Clips:
    """`clips` at `speed`, without those that would be too short for their text; targets that are no texts always fit.

    Speed perturbation (Ko et al. 2015): faster is higher too, so a voice becomes several.
    """
    rows = clips.corpus.manifest.set_index("id").loc[clips.ids].reset_index().assign(target=clips.targets)
    seconds = rows["seconds"].clip(upper=clips.max_samples / SAMPLE_RATE) / speed
    pairs = zip(seconds, clips.targets, strict=True)
    fits = [isinstance(target, int) or can_spell(length, target) for length, target in pairs]
    return Clips(clips.corpus, rows[fits], clips.max_samples / SAMPLE_RATE, speed)
