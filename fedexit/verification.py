"""ASV in the paper: are two clips of one voice? Told by the embeddings of a model trained for identification."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_curve

from fedexit.clients import Example, collate
from fedexit.corpora import Corpus, open_corpus
from fedexit.errors import FedexitError
from fedexit.exits import MultiExitModel
from fedexit.streams import numpy_stream


def trials_of(corpus: Corpus) -> pd.DataFrame | None:
    """The project's trial list for a corpus, `first, second, same`; None if it has none, or not these clips."""
    file = Path(__file__).parent / "trials" / f"{corpus.name}.csv"
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


def verify(model: MultiExitModel, data: Sequence[Example], ids: Sequence[str], trials: pd.DataFrame) -> pd.DataFrame:
    """EER and minDCF of every exit on `trials`: columns `exit, metric, value, n` (trials).

    data: the clips called `ids`, targets unused. A trial's score is the cosine of its clips' embeddings.
    """
    embedded: dict[int, list[torch.Tensor]] = {depth: [] for depth in model.exits}
    model.eval()
    device = next(model.parameters()).device
    for clip, _ in data:  # one by one: trial lists are short
        waveforms, lengths, _ = collate([(clip, 0)])
        for depth, embedding in model.embeddings(waveforms.to(device), lengths).items():
            embedded[depth].append(torch.nn.functional.normalize(embedding[0].cpu(), dim=0))
    place = {clip: position for position, clip in enumerate(ids)}
    first, second = (trials[side].map(place).to_numpy() for side in ("first", "second"))
    same, rows = trials["same"].to_numpy(), []
    for depth, vectors in embedded.items():
        matrix = torch.stack(vectors).numpy()
        scores = (matrix[first] * matrix[second]).sum(1)
        rows += [(depth, "EER", equal_error_rate(scores, same)), (depth, "minDCF", min_dcf(scores, same))]
    return pd.DataFrame(rows, columns=["exit", "metric", "value"]).assign(n=len(trials))


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Where misses and false alarms are equally frequent, by a straight line between the two nearest thresholds."""
    alarms, hits, _ = roc_curve(same, scores, drop_intermediate=False)
    gap = (1 - hits) - alarms  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(alarms[after - 1] + share * (alarms[after] - alarms[after - 1]))


def min_dcf(scores: np.ndarray, same: np.ndarray, prior: float = 0.05) -> float:
    """Least detection cost over thresholds (NIST SRE; misses and false alarms cost 1 each), over that of no system.

    prior: of a trial being of one speaker.
    """
    alarms, hits, _ = roc_curve(same, scores, drop_intermediate=False)
    return float((prior * (1 - hits) + (1 - prior) * alarms).min() / min(prior, 1 - prior))
