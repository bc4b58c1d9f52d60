"""fedexit: federated fine-tuning of self-supervised speech models with early exits (Guo et al., Interspeech 2026).

Import the public names from here. Each is loaded on first use, so that the command line starts without torch.

Each folder is a level: its modules import only from their own level and from the levels below it, in this order:

    cli        the command `fedexit`
    teach      exercises for a class, and the grader
    bench      speed and memory, compared with other engines
    lab        experiments: settings, cells, grids, statistics, figures
    flower     the same federation on Flower, on real devices (`flower.server`)
    devices    device profiles and the policy that chooses the depth L_i (`devices.policy`)
    federated  the paper's method: the round loop (`federated.rounds`), Eq. (1) (`federated.aggregation`)
    central    training in one place: pre-training, fine-tuning, probes
    model      the speech encoder (`model.backbone`) and its exit heads (`model.exits`, `model.heads`)
    runner     runs the notebooks and records how each result was made
    data       audio, corpora, tasks, batches
    support    errors, paths, files, random streams, checkpoints, processes
"""

from importlib import import_module

from fedexit.support.errors import FedexitError

__version__ = "0.1.0"

_EXPORTS = {
    "load_backbone": "fedexit.model.backbone",
    "MultiExitModel": "fedexit.model.exits",
    "Update": "fedexit.federated.aggregation",
    "aggregate": "fedexit.federated.aggregation",
    "layer_of": "fedexit.model.names",
    "open_corpus": "fedexit.data.corpora",
    "Client": "fedexit.federated.clients",
    "LocalTraining": "fedexit.federated.clients",
    "local_round": "fedexit.federated.clients",
    "federate": "fedexit.federated.rounds",
    "METHODS": "fedexit.federated.methods",
    "Method": "fedexit.federated.methods",
    "Objective": "fedexit.federated.objectives",
    "Policy": "fedexit.devices.policy",
    "with_lora": "fedexit.model.lora",
    "export": "fedexit.devices.export",
}

__all__ = ["FedexitError", "__version__", *_EXPORTS]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'fedexit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
