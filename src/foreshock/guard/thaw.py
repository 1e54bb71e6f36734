"""Puts a frozen tree back into the live objects it was taken of: planned whole first, then written, in place."""

from __future__ import annotations

import copy
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.distributed import sharded
from foreshock.errors import UsageError
from foreshock.guard.freeze import FACTORIES, Spec, is_state, own_attributes
from foreshock.guard.memory import dense, place

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
"""Stands for a live value that is not there."""


class Thawer:
    """Plans a restoration: finds for each frozen value the live one that takes it, and writes nothing yet.

    Args:
        specs: of the frozen tensors.
        kept: the objects that the trees refer to, or None where they come from a file.

    Attributes:
        copies: (live memory, number of the tensor that goes there).
        writes: what else is to be done, in order, once the tensors are copied.
    """

    def __init__(self, specs: Sequence[Spec], kept: Sequence[Any] | None) -> None:
        self.copies: list[tuple[Tensor, int]] = []
        self.writes: list[Callable[[], object]] = []
        self._specs, self._kept = specs, kept
        self._claimed: dict[Any, int] = {}
        self._made: dict[int, Tensor] = {}
        self._left_alone: dict[int, Tensor] = {}

    def value(self, node: Any, live: Any, name: str, *, near: Tensor | None = None, fresh: bool = False) -> Any:
        """Returns the value of a tree: the live one wherever it can take it, a new one where it cannot.

        Args:
            node: the tree.
            live: what is there now, or `MISSING`.
            name: where that is.
            near: the parameter it belongs to, beside which new tensors are made.
            fresh: makes new containers, for objects that keep what they are given; tensors are reused all the same.
        """
        if type(node) is list:
            return self._list(node, live, name, near, fresh)
        if type(node) is not dict:
            return node
        kind = next(iter(node))
        if kind == "tensor":
            return self.tensor(node, live, name, near=near)
        if kind in ("map", "dict"):
            return self._mapping(node, live, name, near, fresh)
        if kind == "deque":
            items = self._list(node["deque"], live, name, near, fresh=True)
            if fresh or type(live) is not deque or live.maxlen != node["maxlen"]:
                return deque(items, node["maxlen"])
            self.writes += [live.clear, partial(live.extend, items)]
            return live
        if kind in ("tuple", "set", "frozenset", "Size"):
            olds = live if type(live) is tuple else ()
            items = self._list(node[kind], list(olds), name, near, fresh=True)
            return {"tuple": tuple, "set": set, "frozenset": frozenset, "Size": torch.Size}[kind](items)
        if kind in ("wrapped", "array", "generator", "optimizer", "object", "opaque", "kept"):
            return self._object(kind, node, live, name, near)
        return id(self._made[node["id"]]) if kind == "id" else _scalar(kind, node)

    def tensor(
        self, node: Mapping[str, Any], live: Any, name: str, *, near: Tensor | None = None, must: bool = False
    ) -> Tensor:
        """Returns the live tensor, or with another shape, type or owner a new one; `must` refuses that."""
        if "wrapped" in node:
            wrapped: Tensor = self._wrapped(node, live, name, near, must=must)
            return wrapped
        number = node["tensor"]
        if number in self._left_alone:
            return self._left_alone[number]
        dtype, shape, stride, device = self._specs[number]
        if isinstance(live, Tensor):
            view = dense(live)
            where = place(view)
            if tuple(view.shape) == shape and str(view.dtype)[6:] == dtype and not view.is_conj():
                if where is None or self._claimed.setdefault(where, number) == number:
                    self.copies.append((view, number))
                    self._made.setdefault(number, live)
                    return live
                reason = "shares its memory with another tensor, which it did not"
            else:
                reason = f"has shape {tuple(view.shape)} and type {view.dtype}, the snapshot {shape} and torch.{dtype}"
        else:
            reason = f"is {live!r} now and was a tensor"
        if must:
            raise UsageError(f"restore: {name} {reason}; restore into the model and optimizer that were snapshotted")
        if number in self._made:
            return self._made[number]
        new = torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=_device(device, near))
        self.copies.append((new, number))
        made = new
        if "whole" in node:
            made = _sharded_like(near, new, node["whole"], name)
        elif "expanded" in node:
            made = new.expand(node["expanded"])
        self._made[number] = made
        return made

    def optimizer(self, node: Mapping[str, Any], live: Optimizer, name: str, *, only_state: bool = False) -> None:
        """Plans the restoration of an optimizer; of its per-parameter state alone with `only_state`."""
        params = [group["params"] for group in live.param_groups]
        if len(params) < len(node["params"]):
            raise UsageError(f"restore: {name} has {len(params)} groups now and had {len(node['params'])}")
        for g, (nodes, group) in enumerate(zip(node["params"], params, strict=False)):
            if len(group) < len(nodes):
                raise UsageError(f"restore: group {g} of {name} has {len(group)} tensors now and had {len(nodes)}")
            if only_state:  # what state refers to parameters goes on referring to them
                pairs = [(each.get("tensor"), param) for each, param in zip(nodes, group, strict=False)]
                self._left_alone.update({number: param for number, param in pairs if number is not None})
                self._made.update(self._left_alone)
                continue
            for i, each in enumerate(nodes):
                self.tensor(each, group[i], f"{name}.params.{g}.{i}", must=True)
        if not only_state:
            for g, options in enumerate(node["groups"]):
                group = live.param_groups[g]
                near = group["params"][0] if group["params"] else None
                for key, value in options["map"].items():
                    new = self.value(value, group.get(key, MISSING), f"{name}.groups.{g}.{key}", near=near)
                    self.writes.append(partial(group.__setitem__, key, new))
            self.attributes(node["attributes"], live, name)
        state: dict[Any, Any] = {}
        for at, entry in node["state"]:
            if "param" in at:
                g, i = at["param"]
                key, near, text = params[g][i], params[g][i], f"{name}.state.{g}.{i}"
            else:
                key, near = self.value(at["key"], MISSING, name), None
                text = f"{name}.state.{key}"
            old = live.state.get(key, MISSING)
            state[key] = self.value(entry, old, text, near=near)
        self.writes.append(partial(refill, live.state, state))

    def attributes(self, nodes: Mapping[str, Any], owner: object, name: str) -> None:
        """Plans the restoration of an object's attributes; those that have become something else are left alone."""
        for key, value in nodes.items():
            old = getattr(owner, key, MISSING)
            if old is MISSING or is_state(old):
                new = self.value(value, old, f"{name}.{key}")
                self.writes.append(partial(setattr, owner, key, new))
        for key in own_attributes(owner):
            if key not in nodes:
                self.writes.append(partial(delattr, owner, key))

    def module(self, nodes: Mapping[str, Any], live: nn.Module, name: str) -> None:
        """Plans the restoration of a module's parameters, buffers and extra state."""
        parts = dict(live.named_modules())
        for path, held in nodes.items():
            text = f"{name}.{path}" if path else name
            if path not in parts:
                raise UsageError(f"restore: {text} is in the snapshot and not in the model: attach the same model")
            part = parts[path]
            parameters = dict(part._parameters.items())  # scripted modules have no dict there
            for key, node in held.get("parameters", {}).items():
                if node is not None:
                    self.tensor(node, parameters.get(key), f"{text}.{key}", must=True)
            if "buffers" in held:
                self.value(held["buffers"], part._buffers, text, near=next(iter(part._parameters.values()), None))
            if "extra" in held:
                extra = self.value(held["extra"], part.get_extra_state(), f"{text}.extra_state", fresh=True)
                self.writes.append(partial(part.set_extra_state, extra))

    def _list(self, nodes: list[Any], live: Any, name: str, near: Tensor | None, fresh: bool) -> list[Any]:
        olds = list(live) if isinstance(live, (list, deque)) else []
        olds += [MISSING] * (len(nodes) - len(olds))
        items = [
            self.value(node, old, f"{name}.{at}", near=near, fresh=fresh)
            for at, (node, old) in enumerate(zip(nodes, olds, strict=False))
        ]
        if fresh or type(live) is not list:
            return items
        self.writes.append(partial(live.__setitem__, slice(None), items))
        return live

    def _mapping(self, node: Mapping[str, Any], live: Any, name: str, near: Tensor | None, fresh: bool) -> Any:
        pairs = node["map"].items() if "map" in node else node["dict"]
        olds = live if isinstance(live, Mapping) else {}
        made: dict[Any, Any] = {}
        for frozen, value in pairs:
            key = frozen if "map" in node else self.value(frozen, MISSING, name)
            old = olds.get(key, MISSING)
            made[key] = self.value(value, old, f"{name}.{key}", near=near, fresh=fresh)
        kind = node.get("as", "dict")
        if not fresh and type(live).__name__ == kind and isinstance(live, dict):
            self.writes.append(partial(refill, live, made))
            return live
        if kind == "defaultdict":
            factory = node["factory"]
            known = FACTORIES.get(factory) if isinstance(factory, str) else self.value(factory, MISSING, name)
            return defaultdict(known, made)
        return {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}[kind](made)

    def _object(self, kind: str, node: Mapping[str, Any], live: Any, name: str, near: Tensor | None) -> Any:
        """Returns the value of a tree that stands for an object with a life of its own."""
        if kind == "array":
            return self._array(node, live)
        if kind == "generator":
            owner = live if isinstance(live, torch.Generator) else torch.Generator(node["on"])
            state = self.tensor(node["generator"], MISSING, name)
            self.writes.append(partial(owner.set_state, state))
            return owner
        if kind == "wrapped":
            return self._wrapped(node, live, name, near)
        if kind == "optimizer" and isinstance(live, Optimizer):
            self.optimizer(node["optimizer"], live, name)
            return live
        if kind == "object":
            owner = live if hasattr(live, "load_state_dict") else self._known(node, name)
            state = self.value(node["object"], owner.state_dict(), name, fresh=True)
            self.writes.append(partial(owner.load_state_dict, state))
            return owner
        if kind == "opaque":
            return copy.deepcopy(self._known(node, name))
        if kind == "kept" and self._kept is None and live is not MISSING:
            return live
        return self._known(node, name)

    def _known(self, node: Mapping[str, Any], name: str) -> Any:
        number = node.get("kept", node.get("opaque"))
        if self._kept is None or number is None:
            raise UsageError(
                f"restore: {name} was a {node.get('name', 'n optimizer')}, which no file can hold, and nothing is "
                "there to take it; restore into objects made as they were made in the run"
            )
        return self._kept[number]

    def _wrapped(self, node: Mapping[str, Any], live: Any, name: str, near: Tensor | None, must: bool = False) -> Any:
        same = type(live).__qualname__ == node["name"] and hasattr(live, "__tensor_flatten__")
        inner = {
            key: self.tensor(each, getattr(live, key) if same else MISSING, f"{name}.{key}", near=near, must=must)
            for key, each in node["wrapped"].items()
        }
        if same and all(getattr(live, key) is each for key, each in inner.items()):
            return live
        kind, context, size, stride = self._known(node, name)
        return kind.__tensor_unflatten__(inner, context, size, stride)

    def _array(self, node: Mapping[str, Any], live: Any) -> Any:
        number = node["array"]["tensor"]
        flat = torch.empty(self._specs[number][1], dtype=torch.uint8, device="cpu")
        self.copies.append((flat, number))
        made = flat.numpy().view(node["of"]).reshape(node["shape"])
        alike = isinstance(live, np.ndarray) and live.dtype == made.dtype and live.shape == made.shape
        if alike and live.flags.writeable:
            self.writes.append(partial(np.copyto, live, made))
            return live
        return made


def refill(live: Any, wanted: Mapping[Any, Any]) -> None:
    """Makes a dict, whatever its class, hold exactly what is wanted, in that order, staying the object it is."""
    if len(live) != len(wanted) or not all(map(_same, live, wanted)):
        live.clear()
    for key, value in wanted.items():
        live[key] = value


def _same(one: Any, other: Any) -> bool:
    """Returns whether two keys are the same; tensors are so by identity."""
    return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other))


def _scalar(kind: str, node: Mapping[str, Any]) -> Any:
    """Returns the value of a tree without parts."""
    if kind == "int":
        return int(node["int"], 16)
    if kind == "float":
        return struct.unpack("<d", bytes.fromhex(node["float"]))[0]
    if kind == "complex":
        return complex(*struct.unpack("<dd", bytes.fromhex(node["complex"])))
    if kind in ("bytes", "bytearray"):
        return bytes.fromhex(node[kind]) if kind == "bytes" else bytearray.fromhex(node[kind])
    if kind == "number":
        return np.frombuffer(bytes.fromhex(node["number"]), node["of"])[0]
    if kind == "dtype":
        return getattr(torch, node["dtype"])
    if kind == "device":
        return torch.device(node["device"])
    raise UsageError(f"restore: the snapshot holds a {kind!r}, which this version of foreshock does not know")


def _device(device: str, near: Tensor | None) -> torch.device:
    """Returns where a new tensor goes: where it was, or where its parameter is now, if that has moved."""
    wanted = torch.device(device)
    if near is not None and wanted.type != "cpu":
        return near.device
    return wanted


def _sharded_like(near: Tensor | None, part: Tensor, whole: Sequence[Sequence[int]], name: str) -> Tensor:
    """Returns the `DTensor` of which this rank's part is given, placed as the parameter it belongs to."""
    if near is None or not sharded(near):
        raise UsageError(f"restore: {name} was a DTensor, and there is no sharded parameter that says how to place it")
    from torch.distributed.tensor import DTensor

    size, stride = whole
    mesh: Any = near
    return DTensor.from_local(
        part, mesh.device_mesh, mesh.placements, run_check=False, shape=torch.Size(size), stride=tuple(stride)
    )
