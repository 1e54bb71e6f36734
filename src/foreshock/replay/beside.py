"""What a step function uses beside the training that a history holds: found by looking into the function.

A scheduler that nobody mentioned, the other half of a GAN, a `torch.Generator`, a counter in a closure: snapshots have
none of it, so a replay cannot go back to what it was, and must not leave it changed.
"""

from __future__ import annotations

import inspect
import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from foreshock.guard.holding import Holding
from foreshock.replay.slots import Attributes, Contents, Copied, Kept, Namespace, Place, Stream, Whole, Written

DEPTH, MOST = 6, 4000  # objects inside objects that are looked into, and of all objects
LONGEST = 1_000_000  # elements of a container that is copied
ROOM = 1 << 26  # bytes of all tensors and arrays that are copied
FOREIGN = ("torch", "numpy", "foreshock", "builtins", "random", "math")  # whose functions and objects are let be
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device)
_CONTAINERS = (list, dict, set, deque)
_STATEFUL = (Optimizer, LRScheduler, torch.amp.GradScaler)
_STREAMS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
MODULE = frozenset(vars(nn.Module()))  # attributes that every module has


def beside(step_fn: Callable[..., Any], holding: Holding) -> list[Kept]:
    """Returns what a step function can reach and a holding does not have, each kept as it is now.

    Args:
        step_fn: a function, method, partial or object that can be called; looked into are its closure, the globals it
            names, its defaults and the attributes of the objects there, some levels deep.
        holding: the live objects that are kept and put back anyway.
    """
    held = [holding.model, holding.optimizer, holding.scheduler, holding.scaler, holding.ema, holding.data]
    return list(_Walk(held).found(step_fn))


class _Walk:
    """A search that sees each object once.

    Args:
        held: objects that are kept anyway, and collections of such.
    """

    def __init__(self, held: list[Any]) -> None:
        self._seen: set[int] = set()
        self._kept: set[int] = set()  # modules and optimizers that are held
        self._room = ROOM
        for each in held:
            self._hold(each)
            for one in each.values() if isinstance(each, dict) else each if isinstance(each, (list, tuple)) else ():
                self._hold(one)

    def _hold(self, value: Any) -> None:
        """Takes note that an object is kept, with all tensors in it."""
        if isinstance(value, nn.Module):
            for module in value.modules():
                self._kept.add(id(module))
                self._seen.update(id(each) for each in (*module._parameters.values(), *module._buffers.values()))
        elif isinstance(value, Optimizer):
            self._seen.update(id(param) for group in value.param_groups for param in group["params"])
        if value is not None:
            self._kept.add(id(value))

    def found(self, step_fn: Any) -> Iterator[Kept]:
        """Yields what is kept."""
        waiting: deque[tuple[str, Any, int]] = deque([("", step_fn, 0)])
        alive: list[Any] = []  # so that no id is given out twice
        while waiting and len(alive) < MOST:
            name, value, depth = waiting.popleft()
            if isinstance(value, _PLAIN) or id(value) in self._seen or depth > DEPTH:
                continue
            self._seen.add(id(value))
            alive.append(value)
            keep, more = self._looked_into(name, value)
            yield from keep
            waiting.extend((each, inner, depth + 1) for each, inner in more)

    def _looked_into(self, name: str, value: Any) -> tuple[list[Kept], list[tuple[str, Any]]]:
        """Returns what is to be kept of a value, and what there is in it."""
        if isinstance(value, partial):
            return [], [(name, each) for each in (value.func, *value.args, *value.keywords.values())]
        if isinstance(value, types.MethodType):
            return [], [(name, value.__func__), ("self", value.__self__)]
        if isinstance(value, types.FunctionType):
            return _of_function(value)
        if isinstance(value, nn.Module):
            keep: list[Kept] = [] if id(value) in self._kept else [Whole(name, value)]
            self._hold(value)
            return [*keep, *(Attributes(name, each) for each in value.modules())], [
                (f"{name}.{key}", each) for module in value.modules() for key, each in vars(module).items()
                if key not in MODULE
            ]  # fmt: skip
        if isinstance(value, _STATEFUL):
            keep = [] if id(value) in self._kept else [Whole(name, value)]
            self._hold(value)
            return keep, []
        if isinstance(value, _STREAMS):
            return [Stream(name, value)], []
        if isinstance(value, (Tensor, np.ndarray)):
            return self._array(name, value), []
        if isinstance(value, _CONTAINERS):
            if len(value) > LONGEST:
                return [], []
            inside = value.values() if isinstance(value, dict) else value
            return [Contents(name, value)], [(name, each) for each in inside if not isinstance(each, _PLAIN)]
        if isinstance(value, tuple):
            return [], [(name, each) for each in value]
        return _of_object(name, value)

    def _array(self, name: str, value: Any) -> list[Kept]:
        dense = isinstance(value, np.ndarray) or (value.layout is torch.strided and not value.is_meta and value.is_leaf)
        if not dense or value.nbytes > self._room:
            return []
        self._room -= value.nbytes
        return [Contents(name, value) if isinstance(value, np.ndarray) else Copied(name, value)]


def _of_function(function: types.FunctionType) -> tuple[list[Kept], list[tuple[str, Any]]]:
    if _foreign(function.__module__):
        return [], []
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    there = {name: cell for name, cell in cells.items() if _filled(cell)}
    named = [name for name in _names(function.__code__) if name in function.__globals__]
    keep: list[Kept] = [Place(name, cell) for name, cell in there.items()]
    keep += [Written(name, function.__globals__) for name in named]
    more = [(name, cell.cell_contents) for name, cell in there.items()]
    more += [(name, function.__globals__[name]) for name in named]
    return keep, [*more, *(("", each) for each in (*(function.__defaults__ or ()),))]


def _names(code: types.CodeType) -> list[str]:
    """Returns the names that a function and those inside it use."""
    inside = [name for each in code.co_consts if isinstance(each, types.CodeType) for name in _names(each)]
    return list(dict.fromkeys([*code.co_names, *inside]))


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _of_object(name: str, value: Any) -> tuple[list[Kept], list[tuple[str, Any]]]:
    """Returns the attributes of an object of the user's, and its way of being called."""
    if isinstance(value, types.ModuleType) or _foreign(type(value).__module__) or not hasattr(value, "__dict__"):
        return [], []
    attributes = vars(value)
    more = [(f"{name}.{key}", each) for key, each in attributes.items()]
    called = inspect.getattr_static(type(value), "__call__", None)
    return [Namespace(name, value)], [*more, *([(name, called)] if isinstance(called, types.FunctionType) else [])]


def _foreign(place: str | None) -> bool:
    return str(place).partition(".")[0] in FOREIGN
