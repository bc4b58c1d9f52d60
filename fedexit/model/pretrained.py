"""Read speech encoders of `transformers` from a folder or the hub, and check every weight against its file."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from fedexit.data.constants import SAMPLE_RATE
from fedexit.support.checks import few, misfits
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import check_downloaded, read_json_object, weight_files
from fedexit.support.streams import seeded

FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
MASK_VECTOR = "masked_spec_embed"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # OWNER/NAME
# Tensors that a file may hold beyond the encoder: the heads for CTC, classification, speaker verification and
# pre-training, the adapter above the last layer, and a mask vector that the config does not use.
_EXTRA = re.compile(
    r"(lm_head|quantizer|project_hid|project_q|projector|classifier|layer_weights|tdnn\.\d+|objective|final_proj"
    rf"|adapter)\b|label_embs_concat$|{MASK_VECTOR}$|feature_extractor\.(weight|bias)$"
)


def check_family(config: PretrainedConfig, name: str) -> None:
    """Raise FedexitError unless a model of this `config`, called `name`, can be cut at every layer."""
    if config.model_type not in FAMILIES:
        raise FedexitError(f"{name} is a {config.model_type} model; expected one of {', '.join(FAMILIES)}")


def pretrained_model(name_or_path: str | Path, **options: object) -> PreTrainedModel:
    """Load an encoder by folder or hub id, in single precision and without its adapter; its file must hold all weights.

    A mask vector that the file lacks is drawn from the random stream "mask vector", with a warning. `options` are those
    of `AutoModel.from_pretrained`, and entries of the config to replace. Raises FedexitError for unreadable files,
    another kind of model, missing, unexpected or misshapen tensors, NaN, and another sampling rate.
    """
    if Path(name_or_path).is_dir():
        _check_files(Path(name_or_path))
    elif not _HUB_ID.fullmatch(str(name_or_path)):
        raise FedexitError(f"{name_or_path} is no folder, and no hub id, which is OWNER/NAME; check the name")
    try:
        with quiet_transformers():
            config, _ = PretrainedConfig.get_config_dict(name_or_path)
            if config.get("add_adapter"):  # above the last layer, which no exit reads
                options["add_adapter"] = False
            model, report = AutoModel.from_pretrained(
                name_or_path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except UnpicklingError as error:
        raise FedexitError(
            f"{name_or_path}: the .bin file is damaged or holds more than tensors, and reading it could run foreign "
            "code; convert the model to model.safetensors"
        ) from error
    except Exception as error:  # transformers raises many kinds of error for a user's files
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise FedexitError(f"{name_or_path} cannot be read ({reason}); check config.json and weights") from error
    check_family(model.config, str(name_or_path))
    if "add_adapter" in options:
        model.adapter = torch.nn.Identity()
    _check_weights(model, report, str(name_or_path))
    _check_input(name_or_path)
    return model


def model_folder(name_or_path: str | Path) -> Path:
    """Return the folder, or the one in the hub's cache with the model OWNER/NAME, unless OWNER is a folder here."""
    if isinstance(name_or_path, Path) or not _HUB_ID.fullmatch(name_or_path) or Path(name_or_path).parent.exists():
        return Path(name_or_path)
    try:
        weights = [cached_file(name_or_path, file) for file in ("config.json", "model.safetensors")][-1]
    except OSError as error:
        raise FedexitError(f"there is no such folder, and as a hub id: {first_line(error)}") from error
    return Path(weights).parent  # type: ignore[arg-type]  # `cached_file` raises rather than give None


def saved_config(folder: Path) -> dict:
    """Return the `config.json` of a multi-exit model. Raises FedexitError if there is none in `folder`."""
    if not (folder / "config.json").is_file():
        fault = "it is a file" if folder.is_file() else f"No such file or directory: {str(folder / 'config.json')!r}"
        raise FedexitError(f"{fault}; give the folder of a trained model, as model.save_pretrained(FOLDER) writes it")
    config = read_json_object(folder / "config.json")
    if missing := {"backbone", "labels", "exits"} - config.keys():
        raise FedexitError(f"its config.json lacks {few(missing)}; train a MultiExitModel of it first")
    return config


def _check_files(folder: Path) -> None:
    """Raise FedexitError for a folder without a readable config of our families, and for weights not downloaded."""
    settings = folder / "config.json"
    if not settings.is_file():
        raise FedexitError(f"{folder} holds no config.json; expected a model folder in the Hugging Face format")
    kind = read_json_object(settings).get("model_type", "no model_type")
    if kind not in FAMILIES:
        raise FedexitError(f"{settings} names {kind}; expected one of {', '.join(FAMILIES)}")
    for file in weight_files(folder):
        check_downloaded(file)


def _check_weights(model: PreTrainedModel, report: dict, name: str) -> None:
    """Raise FedexitError unless `report` says that the file filled the model; draw a missing mask vector."""
    missing = set(report["missing_keys"])
    unexpected = {key for key in report["unexpected_keys"] if not _EXTRA.match(key)}
    wrong = misfits(missing - {MASK_VECTOR}, unexpected, {key for key, *_ in report["mismatched_keys"]})
    if wrong:
        raise FedexitError(f"the weights of {name} do not fit its config.json: {wrong}; use a matching pair")
    if MASK_VECTOR in missing:
        _draw_mask_vector(model, name)
    if bad := [key for key, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise FedexitError(f"the weights of {name} hold NaN or infinity in {few(bad)}; take another checkpoint")


def _draw_mask_vector(model: PreTrainedModel, name: str) -> None:
    vector: Any = model.masked_spec_embed
    with torch.no_grad(), seeded("mask vector", len(vector)):
        vector.copy_(torch.rand(len(vector)))
    warnings.warn(
        f"{name} holds no mask vector ({MASK_VECTOR}); it is drawn from a fixed random stream, and only pre-training "
        "uses it",
        stacklevel=4,
    )


def _check_input(name_or_path: str | Path) -> None:
    """Raise FedexitError for a model of another sampling rate; warn about one that reads raw waveforms."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            file = cached_file(str(name_or_path), name)
        except OSError:  # there is none
            continue
        settings = read_json_object(Path(file))  # type: ignore[arg-type]  # it raises rather than give None
        _check_preprocessing(settings.get("feature_extractor", settings), f"{file}")


def _check_preprocessing(settings: Any, file: str) -> None:
    if not isinstance(settings, dict):
        raise FedexitError(f"{file}: feature_extractor is {settings!r}, not an object; download it again")
    if (rate := settings.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        raise FedexitError(f"{file}: sampling_rate is {rate!r}, but all audio here has {SAMPLE_RATE} Hz; take another")
    if settings.get("do_normalize", True) is not True:
        warnings.warn(
            f"{file}: the model was trained on waveforms that are not normalised (do_normalize); here every clip gets "
            "mean 0 and variance 1",
            stacklevel=5,
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bars and reports of `transformers`: our own messages name what is wrong with a model."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(max(level, transformers_logging.ERROR))
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
