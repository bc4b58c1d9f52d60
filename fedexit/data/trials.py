"""Trial lists for speaker verification: pairs of test clips."""

from pathlib import Path

import numpy as np
import pandas as pd

from fedexit.data.corpora import Corpus, open_corpus
from fedexit.support.errors import FedexitError
from fedexit.support.streams import numpy_stream


def trials_of(corpus: Corpus) -> pd.DataFrame | None:
    """The project's trial list for a corpus, `first, second, same`; None if it has none, or not these clips."""
    file = Path(__file__).parent / "trial_lists" / f"{corpus.name}.csv"
    if not file.is_file():
        return None
    trials = pd.read_csv(file, dtype={"first": str, "second": str})
    return trials if {*trials["first"], *trials["second"]} <= set(corpus.dataset["id"]) else None


def write_trials(corpus: str | Path, pairs: int, out: str | Path) -> Path:
    """Write `make_trials` of the clips for testing of `corpus` (as for `open_corpus`) to the CSV file `out`.

    Raises FedexitError as these two, and where `out` cannot be written.
    """
    trials = make_trials(open_corpus(corpus).select("test", having="speaker"), pairs)
    try:
        trials.to_csv(out, index=False, lineterminator="\n")
    except OSError as error:
        raise FedexitError(f"{out}: cannot be written ({error}); choose another place") from error
    return Path(out)


def make_trials(rows: pd.DataFrame, pairs: int, seed: int = 0) -> pd.DataFrame:
    """`pairs` pairs of clips of the same speaker and as many of two speakers, drawn from the manifest's `rows`.

    A speaker, or two, with many clips has no more pairs than one with few, as long as the few have them. Columns
    `first, second` (ids) and `same` (1 or 0); no pair twice. Raises FedexitError when there are not so many.
    """
    rng, ids = numpy_stream(seed, "trials"), rows["id"].to_numpy()
    speakers = pd.factorize(rows["speaker"], sort=True)[0]
    first, second = np.triu_indices(len(ids), k=1)
    same = speakers[first] == speakers[second]
    who = np.minimum(speakers[first], speakers[second]) * len(ids) + np.maximum(speakers[first], speakers[second])
    chosen = []
    for wanted in (True, False):
        there = np.flatnonzero(same == wanted)
        if not 1 <= pairs <= len(there):
            kind = "one speaker" if wanted else "two speakers"
            raise FedexitError(f"there are {len(there)} pairs of {kind}, not {pairs}; ask for 1 to {len(there)}")
        _, whose, count = np.unique(who[there], return_inverse=True, return_counts=True)
        chance = 1 / count[whose]
        chosen.append(np.sort(rng.choice(there, pairs, replace=False, p=chance / chance.sum())))
    index = np.concatenate(chosen)
    return pd.DataFrame({"first": ids[first[index]], "second": ids[second[index]], "same": same[index].astype(int)})
