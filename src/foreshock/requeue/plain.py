"""Batches that are held: copied so that nobody changes them, and written down as tensors and plain values."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreshock.errors import UsageError

_VALUES = (type(None), bool, int, float, str, bytes)


def outline(batch: Any, leaf: Callable[[Any], Any] = lambda each: each) -> Any:
    """Returns the batch with its containers copied, and its tensors and arrays as `leaf` returns them.

    Containers are tuples, lists, mappings and dataclasses, nested as they like; what else there is stays itself.

    >>> batch = {"x": torch.zeros(1)}
    >>> held = outline(batch)
    >>> batch.pop("x") is held["x"]
    True
    """
    kind = type(batch)
    if isinstance(batch, (Tensor, np.ndarray)):
        return leaf(batch)
    if kind is tuple or kind is list:
        return kind([outline(each, leaf) for each in batch])
    if kind is dict:
        return {key: outline(value, leaf) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return kind(*(outline(each, leaf) for each in batch))
    if isinstance(batch, Mapping):
        return _mapping(kind, [(key, outline(value, leaf)) for key, value in batch.items()], batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        other: Any = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(other, field.name, outline(getattr(batch, field.name), leaf))
        return other
    return batch


def copied(batch: Any) -> Any:
    """Returns the batch with memory of its own."""
    return outline(batch, lambda each: each.detach().clone() if isinstance(each, Tensor) else each.copy())


def outlined(batch: Any) -> tuple[Any, tuple[int, ...]]:
    """Returns the outline of the batch, and how often each of its tensors was changed in place so far."""
    versions: list[int] = []

    def note(each: Any) -> Any:
        if isinstance(each, Tensor) and not each.is_inference():
            versions.append(each._version)
        return each

    return outline(batch, note), tuple(versions)


def written(batch: Any) -> Any:
    """Returns the batch as tensors and plain values, which `torch.load(weights_only=True)` reads; `read` reverses it.

    Raises:
        UsageError: there is something in it that is neither tensor nor array, nor a number, a text or a container.

    >>> read(written((torch.ones(2), {"names": ["a", None]})))
    (tensor([1., 1.]), {'names': ['a', None]})
    """
    kind = type(batch)
    if kind in _VALUES:
        return batch
    if isinstance(batch, Tensor):
        return _tensor(batch.detach())
    if kind is tuple or kind is list:
        return {"is": kind.__name__, "of": [written(each) for each in batch]}
    if isinstance(batch, (np.ndarray, np.generic)) and batch.dtype.kind in "biufc":
        whole = torch.from_numpy(np.array(batch, order="C"))
        return {"is": "array" if isinstance(batch, np.ndarray) else "number", "of": whole}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return {"is": "fields", "class": _name(kind), "of": [written(each) for each in batch]}
    if isinstance(batch, Mapping):
        keys = [written(key) for key in batch]
        return {"is": "mapping", "class": _name(kind), "keys": keys, "of": [written(batch[key]) for key in batch]}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        keys = [field.name for field in dataclasses.fields(batch)]
        return {"is": "dataclass", "class": _name(kind), "keys": keys, "of": [written(getattr(batch, k)) for k in keys]}
    raise UsageError(f"a {kind.__module__}.{kind.__qualname__} in a batch cannot be written down without pickle")


def read(state: Any) -> Any:
    """Returns the batch that `written` has written down.

    Raises:
        UsageError: a class of it is not among the modules that are imported, or no container.
    """
    if not isinstance(state, dict):
        return state
    what, of = state["is"], state["of"]
    if what == "on":
        return of.to(state["device"])
    if what == "array":
        return of.cpu().numpy()
    if what == "number":
        return of.cpu().numpy()[()]
    parts = [read(each) for each in of]
    if what == "list":
        return parts
    if what == "tuple":
        return tuple(parts)
    kind = _class(state["class"])
    if what == "fields" and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind(*parts)
    if what == "mapping" and issubclass(kind, Mapping):
        return _mapping(kind, list(zip((read(key) for key in state["keys"]), parts, strict=True)), None)
    if what == "dataclass" and dataclasses.is_dataclass(kind):
        batch: Any = object.__new__(kind)
        for key, part in zip(state["keys"], parts, strict=True):
            object.__setattr__(batch, key, part)
        return batch
    raise UsageError(f"the state says that {state['class']} is a {what} of a batch, which it is not")


def _tensor(tensor: Tensor) -> Any:
    if tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > tensor.nbytes:
        tensor = tensor.clone()  # a slice would bring all of its memory along
    return tensor if tensor.device.type == "cpu" else {"is": "on", "device": str(tensor.device), "of": tensor}


def _mapping(kind: type, items: list[tuple[Any, Any]], like: Any) -> Any:
    if kind is dict:
        return dict(items)
    try:
        other = kind() if like is None else copy.copy(like)  # keeps what it has beside its entries
        for key, value in items:
            other[key] = value
        return other
    except TypeError:  # one that cannot be changed, or is made from its entries
        return kind(dict(items))


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str) -> type:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise UsageError(f"a waiting batch holds a {name}, not known here: import {module} before loading the state")
    return found
