"""Choose the device that computes, move batches there, and compare the memory of a step with what is free there.

A *device* is one of torch: the CPU, a GPU of NVIDIA (`cuda`) or of Apple (`mps`). A model lies on one device, and the
batches that it reads follow it. Equal runs on a CPU are bit-identical; on a GPU their last digits can differ.
"""

import math
from collections.abc import Sequence

import psutil
import torch
from torch import Tensor, nn

from fedexit.support.errors import FedexitError, first_line

Device = str | torch.device


def find_device(name: Device) -> torch.device:
    """Return the device `name`: auto, cpu, cuda (or cuda:1, ...) or mps.

    "auto" is the first of cuda, mps and cpu that this machine has. Raises FedexitError for a device that torch cannot
    use here.
    """
    chosen = _best() if name == "auto" else name
    try:
        device = torch.device(chosen)
        torch.zeros(1, device=device).item()  # `meta` holds no values
    except (RuntimeError, AssertionError, TypeError) as error:
        raise FedexitError(
            f"device {str(name)!r} cannot be used ({first_line(error).rstrip('.')}); use auto, cpu, cuda or mps"
        ) from error
    return device


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_for(model: nn.Module, device: Device | None = None) -> torch.device:
    """Return the device where `model` lies, or the given one. Errors are those of `find_device`."""
    return next(model.parameters()).device if device is None else find_device(device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; the copy from the CPU to a GPU runs beside the computation there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def finite_losses(losses: Sequence[Tensor], owner: str) -> list[float]:
    """Return scalar losses as numbers; a GPU waits once. Raises FedexitError for one that is not finite."""
    numbers = torch.stack(list(losses)).tolist()
    for number in numbers:
        if not math.isfinite(number):
            raise FedexitError(f"{owner} is {number}; lower the learning rate")
    return numbers


def check_memory(need: float, device: torch.device, owner: str, batch: str, exit: int) -> None:
    """Raise FedexitError when a training step needs more bytes than are free on `device`.

    Args:
        need: Bytes of the step by the memory model (`fedexit.model.costs.memory`).
        device: The device that computes the step.
        owner: The owner of the clips, for the message.
        batch: The batch in words, such as "8 clips of 10 s".
        exit: The deepest exit that is trained.
    """
    if need > (free := _free_bytes(device)):
        raise FedexitError(
            f"{owner}: a batch of {batch} needs {need / 1e9:.1f} GB of memory to train exit {exit}, and "
            f"{free / 1e9:.1f} GB are free; cut the clips, lower batch_size or set recompute=True"
        )


def in_words(size: int, length: int, cached: bool) -> str:
    """Return a batch of `size` clips in words; `length` is in frames if they are `cached` features, else in samples."""
    return f"{size} clips of " + (f"{length} frames" if cached else f"{length / 16_000:.0f} s")


def _free_bytes(device: torch.device) -> float:
    """Return the free memory of `device`, and that which torch keeps there for later; infinity where it is unknown."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return math.inf


def check_half(precision: object) -> None:
    """Raise FedexitError for training in float16.

    Its small gradients become zero unless a scaler enlarges them. A scaler skips the first steps until it has found a
    scale that does not overflow, and a local round has few steps. bfloat16 needs none.
    """
    if str(precision).removeprefix("torch.") == "float16":
        raise FedexitError(
            "float16 loses small gradients, and the steps of a local round are too few to find a scale for them; train "
            "in bfloat16 (bfloat16=True, or precision=bfloat16), or convert the model: model.float()"
        )


def lacks_bfloat16() -> bool:
    """Return whether the processor lacks bfloat16.

    Matrix products in bfloat16 then take about fifty times as long as in single precision (AMD Zen 3, torch 2.14), and
    an LSTM does not run at all.
    """
    return torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")
