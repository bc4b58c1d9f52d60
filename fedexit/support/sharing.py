"""Share tensors with worker processes: in shared memory, or as bytes."""

import io
import pickle
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedexit.support.errors import FedexitError, first_line

_ALIGN = 64  # bytes: a tensor may begin at any multiple of this


class Shared(NamedTuple):
    """Shared memory in sections of equal size: one for the global weights, the others for updates."""

    memory: Tensor
    section: int
    places: dict[str, tuple[int, torch.Size, torch.dtype]]

    @classmethod
    def of(cls, weights: dict[str, Tensor], sections: int) -> "Shared":
        """Reserve `sections` for these weights. Raise FedexitError when there is too little shared memory."""
        places, end = {}, 0
        for name, tensor in weights.items():
            places[name] = end, tensor.shape, tensor.dtype
            end += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
        try:
            memory = torch.empty(sections * end, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise FedexitError(
                f"the workers need {sections * end / 1e6:.0f} MB of shared memory (/dev/shm); use workers=1 or "
                "enlarge it (in a container: --shm-size)"
            ) from error
        return cls(memory, end, places)

    def split(self) -> list[dict[str, Tensor]]:
        """Return the weights of each section by name, as views of its memory."""
        return [self._weights(start) for start in range(0, len(self.memory), self.section)]

    def _weights(self, start: int) -> dict[str, Tensor]:
        views = {}
        for name, (offset, shape, dtype) in self.places.items():
            size = shape.numel() * dtype.itemsize
            views[name] = self.memory[start + offset : start + offset + size].view(dtype).view(shape)
        return views


class _ByValue(pickle.Pickler):
    """A pickler that copies tensors. Torch would send each one by a file descriptor, and their number is limited."""

    def reducer_override(self, obj: object) -> Any:
        if type(obj) is Tensor and obj.dtype != torch.bfloat16:
            return torch.from_numpy, (obj.detach().cpu().numpy(),)
        name, main = getattr(obj, "__qualname__", ""), sys.modules["__main__"]
        if name and getattr(obj, "__module__", "") == "__main__" and not hasattr(main, "__file__"):
            raise FedexitError(
                f"workers cannot load {name}, which is defined in this notebook; move it to a module or use workers=1"
            )
        return NotImplemented


def pickled(value: object, name: str = "the clients' data") -> bytes:
    """Return `value` as bytes for another process. Raise FedexitError, with its `name`, if that could not load it."""
    buffer = io.BytesIO()
    try:
        _ByValue(buffer).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise FedexitError(
            f"{name} cannot be sent to workers ({first_line(error)}); use workers=1, or classes and functions that are "
            "defined in a module"
        ) from error
    return buffer.getvalue()
