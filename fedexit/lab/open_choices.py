"""List the choices that a federation needs: those of the paper, the package's defaults, and those of the experiments.

The values of the paper's tables come from `paper_profile.ROWS`, the defaults from the signatures of the package, and
those of the experiments from `experiments.SCHEDULES`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from fedexit.federated.clients import LocalTraining
from fedexit.federated.methods import find_method
from fedexit.federated.partition import make_clients
from fedexit.federated.regime import Regime
from fedexit.federated.rounds import federate
from fedexit.lab.experiments import ARMS, SCHEDULES, TIERS, measure, setting_of_arm
from fedexit.lab.paper_profile import ROWS, SHALLOW
from fedexit.lab.setting import Setting
from fedexit.lab.wording import listed

OPEN, SAME, YOURS = "open", "the default", "yours to give"
COLUMNS = ["choice", "the paper", "default of fedexit", "experiments (10 to 18)", "notebook"]
_WAYS = {"group": "clips stay with their speaker or dialogue", "iid": "clips shuffled among clients"}


def choices_table() -> pd.DataFrame:
    """Return a row per choice, with the columns `COLUMNS`."""
    return pd.DataFrame([*_with_numbers(), *_in_words()], columns=COLUMNS)


def _with_numbers() -> list[tuple[str, str, str, str, str]]:
    """Return the choices whose values differ between the three, read from the code."""
    backbone = _default(measure, "backbone")
    settings = {task: setting_of_arm(task, ARMS["Eq. (1)"], backbone, own) for task, own in SCHEDULES.items()}
    some, training, regime = next(iter(settings.values())), LocalTraining(), Regime()
    used = some.federation.regime
    rounds = [row.rounds for row in ROWS.values()]
    corpora = dict.fromkeys(setting.data.corpus for setting in settings.values())
    return [
        ("backbone", "wav2vec 2.0, HuBERT or WavLM", YOURS, f"`{backbone}`", "05"),
        ("corpora", listed(dict.fromkeys(row.corpus for row in ROWS.values())), YOURS, listed(corpora), "03"),
        ("who holds which clips", _by({name: _WAYS[row.partition] for name, row in ROWS.items()}),
         _WAYS[_default(make_clients, "partition")], _by_task(settings, lambda s: _WAYS[s.federation.partition]), "03"),
        ("depths of the tiers", _by({name: f"{SHALLOW} and {row.best}" for name, row in ROWS.items()}), YOURS,
         listed(TIERS), "11"),
        ("who is in which tier", OPEN, "drawn by seed (`assign_depths`)",
         f"every device in every tier once over {len(TIERS)} seeds" if some.model.rotated else SAME, "11"),
        ("rounds", f"{min(rounds)} to {max(rounds)}, by task", str(_default(federate, "rounds")),
         _by_task(settings, lambda s: s.federation.rounds), "11"),
        ("share of the clients per round", OPEN, f"{_default(federate, 'fraction'):g}",
         _by_task(settings, lambda s: f"{s.federation.fraction:g}"), "11"),
        ("rounds in which only heads learn, before the others", OPEN, str(regime.heads_rounds),
         _by_task(settings, lambda s: s.federation.regime.heads_rounds), "11"),
        ("learning rate of the layers", OPEN, f"{training.learning_rate:g}",
         _by_task(settings, lambda s: f"{s.federation.training.learning_rate:g}"), "11"),
        ("learning rate over the rounds", OPEN, _rates(regime), _rates(used), "11"),
        ("model that is evaluated", OPEN, _evaluated(regime), _evaluated(used), "11"),
        ("optimiser and clips per update", OPEN, _optimiser(training), _optimiser(some.federation.training), "11"),
    ]  # fmt: skip


def _in_words() -> list[tuple[str, str, str, str, str]]:
    """Return the choices that the experiments leave at the default, except where a notebook compares others."""
    rows = [
        ("what FedAvg does with layers that a client did not train", OPEN, "both are run: `stale` and `masked`", "11"),
        ("heads", OPEN, "one per exit, averaged over the clients that trained it", "01, 02"),
        ("local loss", "at the exit L_i only", "at the exit L_i only", "04"),
        ("what a head reads", OPEN, "mean and std over time, standardised once on the server's unlabelled clips", "11"),
        ("depth exponent g in n_i L_i^g", "1", f"{find_method(_default(federate, 'method')).depth_exponent:g}", "02"),
        ("parts outside the layers", OPEN, "convolutional encoder frozen, the rest averaged over everybody", "01"),
        ("what an exit of a model that normalises first reads", OPEN, "the cut model's output; its head has that norm",
         "01"),
        ("a layer that no sampled client trained", OPEN, "stays bit-identical", "02"),
        ("exits evaluated", "one", "every exit", "11"),
    ]  # fmt: skip
    compared = {"local loss": "14", "depth exponent g in n_i L_i^g": "13"}
    ours = [f"{SAME}; {compared[row[0]]} compares others" if row[0] in compared else SAME for row in rows]
    return [(*row[:-1], own, row[-1]) for row, own in zip(rows, ours, strict=True)]


def _default(function: Callable, argument: str) -> Any:
    return inspect.signature(function).parameters[argument].default


def _by(values: Mapping[str, object]) -> str:
    """Return `a` if all have this value, else each value with its names: `a (x, y); b (z)`."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(str(value), []).append(name)
    return next(iter(names)) if len(names) == 1 else "; ".join(f"{v} ({', '.join(own)})" for v, own in names.items())


def _by_task(settings: Mapping[str, Setting], value: Callable[[Setting], object]) -> str:
    return _by({task: value(setting) for task, setting in settings.items()})


def _rates(regime: Regime) -> str:
    return "falls to zero along a cosine" if regime.falling_rates else "constant"


def _evaluated(regime: Regime) -> str:
    return f"running average of the models (decay {regime.average:g})" if regime.average else "the last"


def _optimiser(training: LocalTraining) -> str:
    return f"{training.optimiser.capitalize()}, {training.batch_size} clips"
