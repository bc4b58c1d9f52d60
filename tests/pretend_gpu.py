"""Pretend to have a GPU: tensors with values, computed by the CPU, that say they lie on another device.

The other device is named `meta`, the only one that every build of torch knows. As on a real GPU, an operation that
mixes the devices fails, except with single numbers and with indices from the CPU, and a value is read by a copy or by
`item`, for which a GPU makes the program wait. `Pretended.waits` counts these.
"""

from collections import Counter
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "meta"
_LENGTHS_ON_CPU = ("_pack_padded_sequence", "_pad_packed_sequence", "_pack_padded_sequence_backward")
_READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")


class Remote(torch.Tensor):
    """A tensor on the pretended GPU; `values` is its CPU tensor."""

    @staticmethod
    def __new__(cls, values):
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=NAME, **layout)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})

    def tolist(self):  # torch has none for subclasses
        return self.cpu().tolist()

    def __repr__(self):
        return f"Remote({tuple(self.shape)})"


class Pretended(TorchDispatchMode):
    """Inside the block there is a GPU."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __enter__(self):
        real = self.autocast = torch.autocast
        torch.autocast = lambda kind, *options, **more: nullcontext() if kind == NAME else real(kind, *options, **more)
        return super().__enter__()

    def __exit__(self, *error):
        torch.autocast = self.autocast
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {}, self.waits)


def computed(func, args, kwargs, waits=None):
    """Compute an operation on the CPU, and return its tensors on the device where torch would put them."""
    name, tensors = func.overloadpacket.__name__, []

    def opened(tensor):
        tensors.append(tensor)
        return tensor.values if isinstance(tensor, Remote) else tensor

    plain = mapped(list(args), opened), mapped(kwargs, opened)
    remote = any(isinstance(x, Remote) for x in tensors)
    target = kwargs.get("device")
    to = None if target is None else torch.device(target).type
    local = [x for x in tensors if not isinstance(x, Remote) and x.dim() > 0]
    indices = name.startswith(("index", "_index", "_unsafe_index"))
    if indices:  # torch accepts indices from the CPU
        local = [x for x in local if x is args[0]]
    if remote and local and name not in ("copy_", "_to_copy", "set_", *_LENGTHS_ON_CPU):
        raise RuntimeError(f"{name} mixes devices: {[(type(x).__name__, tuple(x.shape)) for x in tensors]}")
    if waits is not None and remote and (name in _READS or to == "cpu" or (name == "copy_" and local)):
        waits[name] += 1
    found = func(*plain[0], **(plain[1] | ({"device": "cpu"} if to == NAME else {})))
    if func._schema.name.endswith("_") and tensors and found is not None and isinstance(args[0], torch.Tensor):
        return args[0]
    if remote and name in ("_pack_padded_sequence", "_pad_packed_sequence"):
        return Remote(found[0]), found[1]
    if to == NAME or (remote and to != "cpu" and name != "_local_scalar_dense"):
        return mapped(found, lambda x: x if isinstance(x, Remote) else Remote(x))
    return found


def mapped(part, function):
    """Return `part`, a tensor or a list, tuple or dict with tensors, with `function` applied to each tensor."""
    if isinstance(part, torch.Tensor):
        return function(part)
    if isinstance(part, dict):
        return {key: mapped(value, function) for key, value in part.items()}
    return type(part)(mapped(value, function) for value in part) if type(part) in (list, tuple) else part
