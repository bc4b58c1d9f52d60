"""Prepare what the notebooks of experiments report: test rows, the admission of arms, and sentences on verdicts."""

from collections.abc import Iterable, Sequence

import pandas as pd

from fedexit.lab.admission import CONVERGED as CONVERGED
from fedexit.lab.admission import admission
from fedexit.lab.cells import Measured
from fedexit.lab.inference import EXPLORATORY, REFUSED, UNRESOLVED
from fedexit.lab.layouts import ROWS
from fedexit.lab.setting import GUESSING, LOG_MEL
from fedexit.lab.wording import counted, interval


def test_rows(measured: Measured) -> pd.DataFrame:
    """Return the test clips of all arms as `task, exit` and the columns `ROWS`; of texts, characters are counted."""
    items = measured.items.query("split == 'test' and metric != 'WER'")
    return items.drop(columns="item").rename(columns={"clip": "item"})[["task", "exit", *ROWS]]


def placed(rows: pd.DataFrame, arm: str, exit: int, at: int) -> pd.DataFrame:
    """Return the rows of `arm` at `exit` as if they were of exit `at`, to compare them with other arms there.

    The arm is then named `<arm>, exit <exit>`.
    """
    own = rows[(rows["arm"] == arm) & (rows["exit"] == exit)]
    return own.assign(arm=_placed_name(arm, exit), exit=at)


def on_shared_seeds(rows: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """Return the rows of the arms `one` and `other` on the seeds that both have."""
    pair = rows[rows["arm"].isin([one, other])]
    return pair[pair.groupby(["task", "seed"])["arm"].transform("nunique") == len({one, other})]


def _placed_name(arm: str, exit: int) -> str:
    return f"{arm}, exit {exit}"


def reasons_against(measured: Measured, tasks: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return for each task and arm the reasons against a verdict (`fedexit.lab.admission`); an empty list admits it.

    The names that `placed` gives an arm have its reasons as well. The curve of an arm is the mean over its exits. Arms
    without training have no curve. The yardsticks `guessing` and `log-mel` must be among the methods. For texts the
    empty text, whose CER is 1, takes the place of both.
    """
    dev = measured.errors.query("split == 'dev' and metric in ('error', 'CER')")
    found = {}
    for task in tasks:
        own = dev[dev["task"] == task]
        bars = {GUESSING: 1.0, LOG_MEL: 1.0}
        if "CER" not in own["metric"].to_list():
            bars = {method: own.loc[own["method"] == method, "value"].mean() for method in bars}
        curves = own.groupby(["arm", "seed", "round"], as_index=False, sort=False)["value"].mean()
        trained = curves.groupby("arm")["round"].transform("max") > 0
        found[task] = admission(curves[trained], bars[LOG_MEL], bars[GUESSING])
        exits = own[["arm", "exit"]].drop_duplicates()
        found[task] |= {
            _placed_name(arm, exit): found[task][arm]
            for arm, exit in exits.itertuples(index=False)
            if arm in found[task]
        }
    return found


def admitted(against: dict[str, dict[str, list[str]]]) -> pd.DataFrame:
    """Return the reasons as a table `task, arm, finding`, where the finding may be `admitted`."""
    rows = [
        (task, arm, reason)
        for task, own in against.items()
        for arm, reasons in own.items()
        if ", exit " not in arm
        for reason in reasons or ["admitted"]
    ]
    return pd.DataFrame(rows, columns=["task", "arm", "finding"])


def sentences(judged: pd.DataFrame, place: str = "at exit {exit}", family: Sequence[tuple] = ()) -> list[str]:
    """Return one sentence per primary comparison of `fedexit.lab.inference.judge`, in Markdown.

    A sentence names the task, the exit, both arms, the number of seeds, the interval and the verdict. The interval is
    not corrected for multiple comparisons. Where it excludes 0 and the comparison is not resolved, the sentence gives
    the corrected p-value. Where an arm is not admitted, the sentence names it.

    Args:
        judged: the table with columns `task, exit, one, other`.
        place: how a sentence names the exit.
        family: comparisons `(task, exit, one, other)` in the order of the sentences; without it, that of the table.
    """
    rows = judged[judged["verdict"] != EXPLORATORY].to_dict("records")
    if family:
        rows.sort(key=lambda row: family.index((row["task"], row["exit"], row["one"], row["other"])))
    return [_sentence(row, place) for row in rows]


def _sentence(row: dict, place: str) -> str:
    compared = f"{abs(row['difference']):.1f} points {'fewer' if row['difference'] < 0 else 'more'}"
    measured = counted(row["seeds"], "seed")
    if row["seeds"] > 1:
        measured += f", {interval(row['low'], row['high'])}"
    text = f"*{row['task']}*, {place.format(**row)}: **{row['one']}** makes {compared} errors than "
    text += f"**{row['other']}** ({measured}): **{row['verdict']}**"
    if row["verdict"] == REFUSED:
        return f"{text}, because of **{row['refused']}**."
    if row["verdict"] != UNRESOLVED:
        return f"{text}."
    if row["low"] > 0 or row["high"] < 0:
        text += f" after correction for several comparisons (p = {row['p_holm']:.2f})"
    never = row["seeds_needed"] == float("inf")
    return text + (
        ", and more seeds would not resolve it." if never else f"; {row['seeds_needed']:.0f} seeds would do."
    )


def as_grid(main: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `error_rates` as texts: one row per task and arm, one column per exit."""
    spread = ["" if pd.isna(row.low) else f" [{row.low:.1f}, {row.high:.1f}]" for row in main.itertuples()]
    shown = main["error"].map("{:.1f}".format) + spread
    exits = main["exit"].map(lambda exit: f"exit {exit}" if exit else "no exit")
    order = list(dict.fromkeys(exits.iloc[main["exit"].argsort(kind="stable")]))
    wide = main.assign(shown=shown, exit=exits).pivot_table(
        index=["task", "arm"], columns="exit", values="shown", aggfunc="first", sort=False
    )
    return wide[order].fillna("")


def curves(measured: Measured) -> pd.DataFrame:
    """Return the error on dev in percent by round, the mean over seeds and exits: `task, arm, round, error`."""
    dev = measured.errors.query("split == 'dev' and metric in ('error', 'CER') and exit > 0")
    means = dev.groupby(["task", "arm", "round"], as_index=False, sort=False)["value"].mean()
    return means.assign(error=100 * means.pop("value"))


def cost(measured: Measured) -> pd.DataFrame:
    """Return what a federation costs its clients together, from the ledger: `task, arm, bytes, macs`.

    `bytes` are sent, `macs` are multiply-accumulates forward and backward. Both are sums over all clients and rounds,
    those of heads included, as the mean over seeds.
    """
    ledger = measured.ledger.assign(macs=measured.ledger["macs_forward"] + measured.ledger["macs_backward"])
    sums = ledger.groupby(["task", "arm", "seed"], sort=False)[["bytes", "macs"]].sum()
    return sums.groupby(["task", "arm"], sort=False).mean().reset_index()
