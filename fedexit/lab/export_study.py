"""Compare the forms of an exported exit (notebook 19): sizes of files, answers, added errors, and processor time."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap
from torch import Tensor

from fedexit.data.batches import Example, by_length, collate
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.tasks.contract import Clips, Task
from fedexit.lab.wording import interval, points
from fedexit.model.exits import MultiExitModel
from fedexit.support.streams import numpy_stream

Form = tuple[int, str]  # exit, and `torch`, `onnx` or `onnx int8`
LogitsOf = Callable[[Tensor, Tensor], Tensor]  # waveforms (B, T) and lengths (B,) -> logits (B, C)


def drawn(task: Task, split: str, limit: int, seconds: float, seed: int) -> Clips:
    """Return at most `limit` clips of a split, drawn at random by `seed` and cut after `seconds`."""
    rows = task.rows.query("split == @split")
    places = sorted(numpy_stream(seed, "device", split).permutation(len(rows))[:limit])
    return Clips(task.corpus, rows.iloc[places], seconds)


def sizes_of(model: MultiExitModel, made: Mapping[Form, tuple[Path, float]]) -> pd.DataFrame:
    """Return the size of each file: `exit, form, parameters, megabytes, difference`.

    Args:
        model: the model whose exits were exported.
        made: the file of each form, and the largest difference of its logits from those of the model.
    """
    rows = []
    for (exit, form), (file, difference) in made.items():
        parameters = sum(parameter.numel() for parameter in model.client_model(exit).parameters())
        rows.append((exit, form, parameters, file.stat().st_size / 1e6, difference))
    return pd.DataFrame(rows, columns=["exit", "form", "parameters", "megabytes", "difference"])


def answered(logits_of: LogitsOf, examples: Sequence[Example]) -> np.ndarray:
    """Return the label (N,) of every clip, in batches of clips of similar length."""
    said = np.empty(len(examples), int)
    for group in by_length(examples, 8):
        waveforms, lengths, _ = collate([examples[place] for place in group])
        said[group] = logits_of(waveforms, lengths).argmax(1).numpy()
    return said


def errors_of(answers: Mapping[Form, np.ndarray], truth: np.ndarray, seed: int) -> pd.DataFrame:
    """Return the error of each form in percent, and how it differs from that of torch at the same exit.

    Args:
        answers: labels (N,) of each form.
        truth: right labels (N,).
        seed: draws the bootstrap over clips.

    Returns:
        Columns `exit, form, clips, error`; `extra`, the added error in points, with its 95 % interval `low, high`;
        `changed`, the number of clips with another answer than torch's.
    """
    rows = []
    for (exit, form), said in answers.items():
        torchs = answers[exit, "torch"]
        more = 100.0 * ((said != truth).astype(int) - (torchs != truth))
        rng = numpy_stream(seed, "bootstrap", exit)
        limits = bootstrap((more,), np.mean, n_resamples=5000, method="percentile", rng=rng).confidence_interval
        error = 100 * (said != truth).mean()
        rows.append((exit, form, len(truth), error, more.mean(), limits.low, limits.high, (said != torchs).sum()))
    columns = ["exit", "form", "clips", "error", "extra", "low", "high", "changed"]
    return pd.DataFrame(rows, columns=columns)


def latencies(runners: Mapping[Form, LogitsOf], clips: Sequence[Example], repetitions: int) -> pd.DataFrame:
    """Measure the processor's time of each form, one clip at a time.

    The forms take turns on each clip. The first turn only warms up.

    Args:
        runners: each form as a function.
        clips: the clips.
        repetitions: number of turns that count.

    Returns:
        Milliseconds per second of speech over clips and turns: `exit, form, median_ms, quarter_ms, three_quarters_ms`.
    """
    rows = [
        (*key, turn, _milliseconds(logits_of, clip))
        for clip in clips
        for turn in range(repetitions + 1)
        for key, logits_of in runners.items()
    ]
    timed = pd.DataFrame(rows, columns=["exit", "form", "turn", "ms"]).query("turn > 0")
    quartiles = timed.groupby(["exit", "form"], sort=False)["ms"].quantile([0.5, 0.25, 0.75]).unstack()
    return quartiles.set_axis(["median_ms", "quarter_ms", "three_quarters_ms"], axis=1).reset_index()


def _milliseconds(logits_of: LogitsOf, clip: Example) -> float:
    """Return the processor's time for one clip, per second of speech."""
    waveforms, lengths, _ = collate([clip])
    since = time.process_time()
    logits_of(waveforms, lengths)
    return 1000 * (time.process_time() - since) * SAMPLE_RATE / int(lengths[0])


def sentences(files: pd.DataFrame, errors: pd.DataFrame) -> list[str]:
    """Return sentences, in Markdown: what an early exit saves in torch, and what the other forms save and cost.

    Args:
        files: the rows of `sizes_of`.
        errors: the rows of `errors_of`.
    """
    wide = files.pivot(index="exit", columns="form", values="megabytes")
    first, last = wide.index.min(), wide.index.max()
    cut = wide.loc[first, "torch"] / wide.loc[last, "torch"]
    lines = [f"The file of exit {first} has {cut:.0%} of the size of that of exit {last} (torch)."]
    for form in files["form"].unique()[1:]:
        own = errors[errors["form"] == form]
        worst, share = own.loc[own["extra"].abs().idxmax()], (wide[form] / wide["torch"]).mean()
        lines.append(
            f"*{form}*: {share:.0%} of torch's size on average; {own['changed'].sum()} of "
            f"{own['clips'].sum()} answers change; the error changes by {points(worst['extra'])} at most "
            f"(exit {worst['exit']}, {interval(worst['low'], worst['high'])})."
        )
    return lines
