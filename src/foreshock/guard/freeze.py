"""Turns live training state into a tree of plain JSON values that refers to tensors by number.

What JSON holds exactly stands for itself: None, booleans, integers, finite floats, strings, and lists. All else is a
dictionary whose first key says what it is::

    {"tensor": 3}                      the tensor of number 3; "whole" says of what DTensor it is this rank's part
    {"map": {"lr": 0.1}}               a dict with strings for keys; "dict" is a list of pairs, "as" another class
    {"tuple": [...]}, {"deque": [...], "maxlen": 5}, {"set": [...]}, ...
    {"float": "000000000000f07f"}      a float by its bits: infinities and NaN
    {"id": 3}                          a key of a dict: what id() gives for the parameter of number 3
    {"kept": 0, "name": "..."}         a function, class or module: stays what it is in the live object
    {"opaque": 0, "name": "..."}       an object nobody knows: copied, and never written to disk
"""

from __future__ import annotations

import copy
import enum
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from foreshock.distributed import sharded
from foreshock.errors import UsageError
from foreshock.guard.memory import PLAIN, dense, place, strides

Spec = tuple[str, tuple[int, ...], tuple[int, ...], str]
"""Type, shape, strides and device of the memory of one tensor."""

FACTORIES = {"dict": dict, "list": list, "set": set, "int": int, "float": float, "str": str, "tuple": tuple}
_PLAIN = frozenset({type(None), bool, str})
_CONSTANTS = (type, ModuleType, enum.Enum, nn.Module, torch.memory_format)
# set by torch for the moment of one call, or for its own warnings: no state
_TRANSIENT = frozenset({"grad_scale", "found_inf", "_opt_called", "_per_optimizer_states"})


class Freezer:
    """Collects the tensors of what it freezes, each piece of memory once.

    Attributes:
        tensors: dense views of live memory, to be copied.
        specs, names: of each of them.
        kept: objects that trees refer to and that cannot be written down.
        opaque: where they are and what they are, of those that are no constants.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.specs: list[Spec] = []
        self.names: list[str] = []
        self.kept: list[Any] = []
        self.opaque: list[str] = []
        self._numbers: dict[Any, int] = {}
        self._ids: dict[int, int] = {}
        self._inside: set[int] = set()

    def value(self, value: Any, name: str) -> Any:
        """Returns the tree of any value.

        Args:
            value: what is to be frozen; it is only read.
            name: where it is, for messages and files: dotted.

        Raises:
            UsageError: a value that cannot be copied, or one that holds itself; by name.
        """
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is int:
            return value if -(1 << 63) <= value < 1 << 63 else {"int": hex(value)}
        if kind is float:
            return value if value - value == 0.0 else {"float": struct.pack("<d", value).hex()}
        if kind is Tensor or isinstance(value, Tensor):
            return self.tensor(value, name)
        if id(value) in self._inside:
            raise UsageError(f"snapshots: {name} holds itself and cannot be copied; detach what it refers to")
        self._inside.add(id(value))
        try:
            return self._container(value, name)
        finally:
            self._inside.discard(id(value))

    def tensor(self, tensor: Tensor, name: str) -> dict[str, Any]:
        """Returns the tree of a tensor: its number, which all tensors in the same memory have in common."""
        if type(tensor) in PLAIN and tensor.layout is torch.strided and tensor.is_contiguous():
            address = tensor.data_ptr()
            if address and not tensor.is_quantized:  # the most of them by far
                return {"tensor": self._number(tensor, (address, tensor.dtype, tensor.shape), name)}
        elif not sharded(tensor) and is_traceable_wrapper_subclass(tensor):
            inner, context = tensor.__tensor_flatten__()
            return {
                "wrapped": {key: self.value(getattr(tensor, key), f"{name}.{key}") for key in inner},
                "kept": self._keep((type(tensor), context, tensor.size(), tensor.stride())),
                "name": type(tensor).__qualname__,
            }
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            what = "has no memory (meta)" if tensor.is_meta else f"is {tensor.layout}"
            raise UsageError(f"snapshots: {name} {what}; only dense tensors with memory can be copied")
        view = dense(tensor)
        number = self._number(view, place(view), name)
        if sharded(tensor):
            return {"tensor": number, "whole": [list(tensor.shape), list(tensor.stride())]}
        if view.shape != tensor.shape:
            return {"tensor": number, "expanded": list(tensor.shape)}
        return {"tensor": number}

    def optimizer(self, optimizer: Optimizer, name: str) -> dict[str, Any]:
        """Returns the tree of an optimizer: parameters, options of its groups, state, and attributes of its own."""
        places: dict[Any, tuple[int, int]] = {}
        params, groups = [], []
        for g, group in enumerate(optimizer.param_groups):
            places.update({param: (g, i) for i, param in reversed(list(enumerate(group["params"])))})
            nodes = [self.tensor(param, f"{name}.params.{g}.{i}") for i, param in enumerate(group["params"])]
            params.append(nodes)
            for param, node in zip(group["params"], nodes, strict=True):
                self._ids[id(param)] = node.get("tensor", -1)
            options = {key: value for key, value in group.items() if key != "params"}
            groups.append(self.value(options, f"{name}.groups.{g}"))
        state = []
        for key, entry in optimizer.state.items():
            at = places.get(key) if isinstance(key, Tensor) else None
            if at is None and isinstance(key, Tensor):
                continue  # of a parameter that is in no group any more
            text = f"{name}.state.{key if at is None else f'{at[0]}.{at[1]}'}"
            state.append([{"param": list(at)} if at else {"key": self.value(key, text)}, self.value(entry, text)])
        return {"params": params, "groups": groups, "state": state, "attributes": self.attributes(optimizer, name)}

    def attributes(self, owner: object, name: str) -> dict[str, Any]:
        """Returns those attributes of an object that are state: numbers, tensors, and containers of only these."""
        return {key: self.value(getattr(owner, key), f"{name}.{key}") for key in own_attributes(owner)}

    def module(self, module: nn.Module, name: str) -> dict[str, Any]:
        """Returns the tree of a module: parameters, all buffers, and extra state, by the names of its parts."""
        parts: dict[str, Any] = {}
        for path, part in module.named_modules():
            text = f"{name}.{path}" if path else name
            held: dict[str, Any] = {}
            if part._parameters:
                held["parameters"] = {
                    key: None if value is None else self.tensor(value, f"{text}.{key}")
                    for key, value in part._parameters.items()
                }
            if part._buffers:
                held["buffers"] = self.value(part._buffers, text)
            if type(part).get_extra_state is not nn.Module.get_extra_state:
                held["extra"] = self.value(part.get_extra_state(), f"{text}.extra_state")
            if held:
                parts[path] = held
        return parts

    def _number(self, view: Tensor, where: Any, name: str) -> int:
        """Returns the number of a piece of memory, a new one if it was not seen before."""
        number = self._numbers.get(where) if where is not None else None
        if number is None:
            number = self._numbers[where] = len(self.tensors)
            self.tensors.append(view)
            self.specs.append((_name_of(view.dtype), view.shape, strides(view), _name_of(view.device)))
            self.names.append(name)
        return number

    def _keep(self, value: Any) -> int:
        self.kept.append(value)
        return len(self.kept) - 1

    def _items(self, values: Sequence[Any] | deque[Any], name: str) -> list[Any]:
        return [self.value(value, f"{name}.{at}") for at, value in enumerate(values)]

    def _mapping(self, values: Mapping[Any, Any], name: str) -> dict[str, Any]:
        if all(type(key) is str for key in values):
            return {"map": {key: self.value(value, f"{name}.{key}") for key, value in values.items()}}
        named = [(key, value, f"{name}.{key}") for key, value in values.items()]
        return {"dict": [[self._key(key, text), self.value(value, text)] for key, value, text in named]}

    def _key(self, key: Any, name: str) -> Any:
        number = self._ids.get(key) if type(key) is int else None
        return {"id": number} if number is not None and number >= 0 else self.value(key, name)

    def _container(self, value: Any, name: str) -> Any:
        kind = type(value)
        if kind is list:
            return self._items(value, name)
        if kind is dict:
            return self._mapping(value, name)
        if kind in (OrderedDict, Counter):
            return {**self._mapping(value, name), "as": kind.__name__}
        if kind is defaultdict:
            factory = value.default_factory
            known = factory is None or FACTORIES.get(getattr(factory, "__name__", "")) is factory
            made = (None if factory is None else factory.__name__) if known else self.value(factory, name)
            return {**self._mapping(value, name), "as": "defaultdict", "factory": made}
        if kind is deque:
            return {"deque": self._items(value, name), "maxlen": value.maxlen}
        if kind in (tuple, set, frozenset, torch.Size):
            return {kind.__name__: self._items(tuple(value), name)}
        return self._scalar(value, name)

    def _scalar(self, value: Any, name: str) -> Any:
        kind = type(value)
        if kind is complex:
            return {"complex": struct.pack("<dd", value.real, value.imag).hex()}
        if kind in (bytes, bytearray):
            return {kind.__name__: value.hex()}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value)[6:]}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, np.generic) and not value.dtype.hasobject and value.dtype.names is None:
            return {"number": value.tobytes().hex(), "of": value.dtype.str}
        if kind is np.ndarray and not value.dtype.hasobject and value.dtype.names is None:
            flat = torch.from_numpy(np.frombuffer(value.tobytes(), np.uint8).copy())
            return {"array": self.tensor(flat, name), "of": value.dtype.str, "shape": list(value.shape)}
        if isinstance(value, torch.Generator):
            return {"generator": self.tensor(value.get_state(), name), "on": str(value.device)}
        if isinstance(value, Optimizer):
            return {"optimizer": self.optimizer(value, name)}
        if isinstance(value, _CONSTANTS) or callable(value):
            return {"kept": self._keep(value), "name": getattr(value, "__qualname__", kind.__qualname__)}
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            state = self.value(value.state_dict(), name)
            return {"object": state, "kept": self._keep(value), "name": kind.__qualname__}
        self.opaque.append(f"{name} ({kind.__module__}.{kind.__qualname__})")
        try:
            return {"opaque": self._keep(copy.deepcopy(value)), "name": kind.__qualname__}
        except Exception as error:
            raise UsageError(
                f"snapshots: {name} is a {kind.__qualname__}, which cannot be copied ({error}); give it state_dict() "
                "and load_state_dict(), or keep it out of the state"
            ) from error


def own_attributes(owner: object) -> list[str]:
    """Returns the names of the attributes of an object that are its state; of an optimizer, beside torch's own."""
    without = _TRANSIENT | (_of_torch() if isinstance(owner, Optimizer) else frozenset())
    attributes = getattr(owner, "__dict__", {})
    return [key for key, value in attributes.items() if key not in without and is_state(value)]


@cache
def _name_of(kind: torch.dtype | torch.device) -> str:
    return str(kind).removeprefix("torch.")


@cache
def _of_torch() -> frozenset[str]:
    return frozenset(vars(torch.optim.SGD([torch.zeros(1)])))


def is_state(value: Any, depth: int = 4) -> bool:
    """Returns whether a value is a number, a tensor, or a container of only these, which an object changes as it runs.

    >>> is_state([1, {"k": 2.0}]), is_state([print])
    (True, False)
    """
    if isinstance(value, (Tensor, bool, int, float, complex, str, np.generic, np.ndarray, torch.Generator, Optimizer)):
        return not isinstance(value, enum.Enum)
    if value is None:
        return True
    if depth and type(value) in (list, tuple, deque, set):
        return all(is_state(item, depth - 1) for item in value)
    if depth and type(value) in (dict, OrderedDict, defaultdict):
        return all(is_state(item, depth - 1) for pair in value.items() for item in pair)
    return False
