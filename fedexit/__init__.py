"""fedexit: federated fine-tuning of self-supervised speech models with early exits (Guo et al., Interspeech 2026).

The public names are imported from here. Each is loaded on first use, so that the command line starts without torch.
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
    "Policy": "fedexit.devices.policy",
    "with_lora": "fedexit.model.lora",
}

__all__ = ["FedexitError", "__version__", *_EXPORTS]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'fedexit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
