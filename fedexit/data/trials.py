"""Draw and read trial lists for speaker verification, which are pairs of test clips."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedexit.data.corpora import Corpus, open_corpus
from fedexit.data.original.build import TRIALS
from fedexit.data.original.catalogue import ORIGINALS
from fedexit.support.errors import FedexitError, reason
from fedexit.support.files import write_text
from fedexit.support.streams import numpy_stream


def trials_of(corpus: Corpus) -> pd.DataFrame | None:
    """Return the trial list of a corpus, `first, second, same`; None if no list fits its clips.

    It is the official list of a release, which lies beside the manifest, or else that of this project.
    """
    official = corpus.name in ORIGINALS and ORIGINALS[corpus.name].trials
    folder = corpus.folder if official else Path(__file__).parent / "trial_lists"
    file = folder / (TRIALS if official else f"{corpus.name}.csv")
    if not file.is_file():
        return None
    trials = pd.read_csv(file, dtype={"first": str, "second": str}, keep_default_na=False)
    return trials if {*trials["first"], *trials["second"]} <= set(corpus.table["id"]) else None


def write_trials(corpus: str | Path, pairs: int, out: str | Path) -> Path:
    """Write `make_trials` of the test clips of `corpus` (as for `open_corpus`) to the CSV file `out`.

    Raises FedexitError as `make_trials` and `open_corpus` do, and if `out` cannot be written.
    """
    trials = make_trials(open_corpus(corpus).select("test", having="speaker"), pairs)
    if not Path(out).parent.is_dir():
        raise FedexitError(f"{out}: cannot be written (no folder {Path(out).parent}); make it, or choose another place")
    try:
        write_text(out, trials.to_csv(index=False, lineterminator="\n"))
    except (OSError, ValueError) as error:
        raise FedexitError(f"{out}: cannot be written ({reason(error)}); choose another place") from error
    return Path(out)


def make_trials(rows: pd.DataFrame, pairs: int, seed: int = 0) -> pd.DataFrame:
    """Draw pairs of clips from the rows of a manifest; no pair comes twice.

    Every speaker, or pair of speakers, gets about as many pairs as any other, if it has enough clips. Memory grows with
    the number of clips, not with the number of their pairs.

    Args:
        rows: clips with the columns `id` and `speaker`; clips without a speaker are left out.
        pairs: number of same-speaker pairs, and of different-speaker pairs.
        seed: seed of the draw.

    Returns:
        Columns `first, second` (ids) and `same` (1 or 0).

    Raises:
        FedexitError: there are fewer than `pairs` of a kind.
    """
    for column in ("id", "speaker"):
        if not isinstance(rows, pd.DataFrame) or column not in rows:
            raise FedexitError(f"the rows have no column {column!r}; give rows of a manifest, such as corpus.manifest")
    if isinstance(pairs, bool) or not hasattr(pairs, "__index__"):
        raise FedexitError(f"the number of pairs must be a whole number above 0, not {pairs!r}")
    rows = rows[rows["speaker"].notna() & (rows["speaker"] != "")]
    rng, ids = numpy_stream(seed, "trials"), rows["id"].to_numpy()
    speakers = pd.factorize(rows["speaker"], sort=True)[0]
    sizes = np.bincount(speakers)
    of_one = int((sizes * (sizes - 1) // 2).sum())
    there = {True: of_one, False: len(ids) * (len(ids) - 1) // 2 - of_one}
    chosen = []
    for same, count in there.items():
        kind = "one speaker" if same else "two speakers"
        if count == 0:
            raise FedexitError(
                f"there is no pair of {kind} among {len(ids)} clips of {len(sizes)} speaker(s); trials need two "
                "speakers, one of them with two clips"
            )
        if not 1 <= pairs <= count:
            raise FedexitError(f"there are {count} pairs of {kind}, not {pairs}; ask for 1 to {count}")
        chosen += [(ids[first], ids[second], int(same)) for first, second in _draw(speakers, sizes, same, pairs, rng)]
    return pd.DataFrame(chosen, columns=["first", "second", "same"])


def _draw(
    speakers: np.ndarray, sizes: np.ndarray, same: bool, pairs: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw sorted positions (i, j), i < j, of same-speaker or different-speaker pairs.

    Each speaker, or pair of speakers, has the same chance, whatever its number of clips. The draw inverts the
    cumulative chances of all pairs, listed row by row, and repeats for pairs that came twice, as `Generator.choice`
    without replacement does.
    """
    taken: dict[int, list[int]] = {}

    def chances(i: int) -> np.ndarray:
        """Return the chance of each j > i, up to a common factor."""
        later = speakers[i + 1 :]
        if same:
            row = (later == speakers[i]) * (2 / max(sizes[speakers[i]] * (sizes[speakers[i]] - 1), 1))
        else:
            row = (later != speakers[i]) / (sizes[speakers[i]] * sizes[later])
        row[taken.get(i, [])] = 0
        return row

    of_rows = np.array([chances(i).sum() for i in range(len(speakers))])
    found: list[tuple[int, int]] = []
    while len(found) < pairs:
        ends = np.cumsum(of_rows)
        drawn = rng.random(pairs - len(found)) * ends[-1]
        first = np.searchsorted(ends, drawn, side="right").clip(max=np.flatnonzero(of_rows)[-1])
        fresh: dict[tuple[int, int], None] = {}  # in the order of the draw
        for value, i in zip(drawn, first, strict=True):
            row = chances(i)
            inside = np.searchsorted(np.cumsum(row), value - (ends[i] - of_rows[i]), side="right")
            fresh[int(i), int(min(inside, np.flatnonzero(row)[-1]))] = None
        for i, j in fresh:
            taken.setdefault(i, []).append(j)
        for i in {i for i, _ in fresh}:
            of_rows[i] = chances(i).sum()
        found += fresh
    return sorted((i, i + 1 + j) for i, j in found)


def check_trials(trials: pd.DataFrame, ids: Sequence[str], clips: int) -> None:
    """Raise FedexitError unless there is one id per clip, and `trials` of both kinds compare only these."""
    if not len(ids) == len(set(ids)) == clips:
        raise FedexitError(f"{clips} clips have {len(ids)} ids, {len(set(ids))} of them different; give one id each")
    if missing := {"first", "second", "same"} - set(trials):
        raise FedexitError(f"the trials lack the column {min(missing)!r}; they need first, second and same")
    if other := set(trials["first"]).union(trials["second"]) - set(ids):
        raise FedexitError(f"a trial names the clip {min(other, key=str)!r}, which is not among the ids")
    if (found := set(trials["same"])) != {True, False}:
        raise FedexitError(f"the column same must hold True and False, both, not {sorted(map(str, found))[:4]}")
