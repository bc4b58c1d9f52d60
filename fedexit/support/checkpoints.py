"""The state of a run in one file, replaced in one step: a kill leaves the old state or the new one."""

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedexit.support.errors import FedexitError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps for a parameter


def save_checkpoint(file: str | Path, identity: object, state: object, tensors: Mapping[str, Tensor]) -> None:
    """Write what says whose run it is, how far it is (both ready for JSON), and its tensors."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    save_file(dict(tensors), part, metadata={"identity": json.dumps(identity), "state": json.dumps(state)})
    os.replace(part, file)


def load_checkpoint(file: str | Path | None, identity: object) -> tuple[object, dict[str, Tensor]] | None:
    """State and tensors as they were saved, or None without a file.

    Raises FedexitError for a damaged file and for one of another run.
    """
    if file is None or not Path(file).exists():
        return None
    name = Path(file).name
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise FedexitError(f"checkpoint {name} is damaged ({error}); delete it and run again") from error
    if json.loads(metadata.get("identity", "null")) != json.loads(json.dumps(identity)):
        raise FedexitError(f"checkpoint {name} belongs to another run; delete it or name another file")
    return json.loads(metadata["state"]), tensors


def options_set(options: object) -> dict:
    """What is not as it comes of `options`, a dataclass: so one that is added later leaves finished work what it is."""
    given = [(option.name, getattr(options, option.name), option.default) for option in fields(options)]
    return {
        name: options_set(value) if is_dataclass(value) else value
        for name, value, default in given
        if default is MISSING or value != default
    }
