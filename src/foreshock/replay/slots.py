"""Ways of keeping one thing beside a training as it is, and of putting it back."""

from __future__ import annotations

import random
import types
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.guard.holding import Holding
from foreshock.guard.snapshots import Snapshots

_PLAIN = (bool, int, float, complex, str, bytes, type(None))

class Kept(Protocol):
    """One thing, as it was.

    Attributes:
        name: how the step function calls it.
        kind: of what class it is.
    """

    name: str
    kind: str

    def changed(self) -> bool:
        """Returns whether it is not what it was."""

    def put_back(self) -> None:
        """Makes it what it was."""


def changed(kept: Sequence[Kept]) -> tuple[str, ...]:
    """Returns the names of what is not what it was, each with its kind; logs, lists that only grew, are left out."""
    found = [f"`{each.name}` ({each.kind})" for each in kept if each.changed() and not _log(each)]
    return tuple(dict.fromkeys(found))


def _log(kept: Kept) -> bool:
    return isinstance(kept, Contents) and kept.kind in ("list", "deque")


class Place:
    """The variable of a closure."""

    def __init__(self, name: str, cell: types.CellType) -> None:
        self.name, self._cell, self._was = name, cell, cell.cell_contents
        self.kind = type(self._was).__name__

    def changed(self) -> bool:
        return self._cell.cell_contents is not self._was

    def put_back(self) -> None:
        self._cell.cell_contents = self._was


class Written:
    """A global variable."""

    def __init__(self, name: str, names: dict[str, Any]) -> None:
        self.name, self._names, self._was = name, names, names[name]
        self.kind = type(self._was).__name__

    def changed(self) -> bool:
        return self._names.get(self.name) is not self._was

    def put_back(self) -> None:
        self._names[self.name] = self._was


class Namespace:
    """The attributes of an object."""

    def __init__(self, name: str, owner: Any) -> None:
        self.name, self._owner, self._was = name, owner, dict(vars(owner))
        self.kind = type(owner).__name__

    def changed(self) -> bool:
        return not _same(vars(self._owner), self._was)

    def put_back(self) -> None:
        now = vars(self._owner)
        if not _same(now, self._was):
            now.clear()
            now.update(self._was)


class Structure:
    """What a training is made of: modules, the memory of its tensors, the groups of its optimizer."""

    name, kind = "structure", "training"

    def __init__(self, holding: Holding) -> None:
        optimizer, modules = holding.optimizer, [] if holding.model is None else list(holding.model.modules())
        tables = [vars(each)[name] for each in modules for name in ("_parameters", "_buffers", "_modules")]
        groups = optimizer.param_groups
        self._tables = [(table, dict(table)) for table in (vars(optimizer), *tables, *groups)]
        self._lists = [(each, list(each)) for each in (groups, *(group["params"] for group in groups))]
        held = [*_params(optimizer), *(each for module in modules for each in _tensors(module))]
        self._memory = [(each, each.data, each.requires_grad) for each in {id(each): each for each in held}.values()]
        self._modes = [(each, each.training) for each in modules]

    def changed(self) -> bool:
        return False

    def put_back(self) -> None:
        for table, was in self._tables:
            if not _same(table, was):
                table.clear()
                table.update(was)
        for values, before in self._lists:
            values[:] = before
        for module, mode in self._modes:
            module.training = mode
        for tensor, data, wanted in self._memory:
            if tensor.data_ptr() != data.data_ptr() or tensor.dtype != data.dtype or tensor.shape != data.shape:
                tensor.grad = None
                tensor.data = data
            tensor.requires_grad_(wanted)


class Attributes:
    """The numbers and texts among the attributes of a module, such as counters."""

    def __init__(self, name: str, owner: nn.Module) -> None:
        self.name, self.kind, self._owner = name, type(owner).__name__, owner
        self._was = {key: each for key, each in vars(owner).items() if isinstance(each, _PLAIN) and key != "training"}

    def changed(self) -> bool:
        now = vars(self._owner)
        return any(now.get(key, now) is not each for key, each in self._was.items())

    def put_back(self) -> None:
        vars(self._owner).update(self._was)


class Contents:
    """What is in a list, a dict, a set, a deque or an array."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.kind, self._value, self._was = name, type(value).__name__, value, value.copy()

    def changed(self) -> bool:
        return not _same(self._value, self._was)

    def put_back(self) -> None:
        value, was = self._value, self._was
        if _same(value, was):
            return
        if isinstance(value, list):
            value[:] = was
        elif isinstance(value, np.ndarray):
            value[...] = was
        else:
            value.clear()
            value.extend(was) if isinstance(value, deque) else value.update(was)


class Copied:
    """A tensor."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.kind, self._tensor, self._was = name, "Tensor", tensor, tensor.detach().clone()
        self._grad = tensor.grad if tensor.is_leaf else None

    def changed(self) -> bool:
        now = self._tensor.detach()
        return now.shape != self._was.shape or not _same_bits(now, self._was)

    def put_back(self) -> None:
        if self.changed():
            self._tensor.detach().copy_(self._was)
        if self._tensor.is_leaf:
            self._tensor.grad = self._grad


class Stream:
    """A generator of random numbers: torch's, numpy's or Python's."""

    def __init__(self, name: str, source: Any) -> None:
        self.name, self.kind, self._source = name, type(source).__name__, source
        self._was = _state(source)

    def changed(self) -> bool:
        return repr(_plain(_state(self._source))) != repr(_plain(self._was))

    def put_back(self) -> None:
        source: Any = self._source
        if isinstance(source, np.random.Generator):
            source.bit_generator.state = self._was
        elif isinstance(source, np.random.RandomState):
            source.set_state(self._was)
        elif isinstance(source, random.Random):
            source.setstate(self._was)
        else:
            source.set_state(self._was)


class Whole:
    """A module, an optimizer, a scheduler, or whatever else has a state to be loaded."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.kind, self._value = name, type(value).__name__, value
        self._params = _params(value)
        self._grads = [(param, param.grad, param.requires_grad) for param in self._params]
        self._sums = _sums(self._params)
        self._modes = [(each, each.training) for each in value.modules()] if isinstance(value, nn.Module) else []
        self._snapshots = Snapshots(keep=1)
        if isinstance(value, Optimizer):
            self._snapshots.attach(None, value)
        else:  # an optimizer is needed; this one has nothing to be kept
            self._snapshots.attach(value if isinstance(value, nn.Module) else None, _none(), **(
                {} if isinstance(value, nn.Module) else {"ema": value}))  # fmt: skip
        self._taken = self._snapshots.take(0)
        self._state = None if self._params or not hasattr(value, "state_dict") else repr(value.state_dict())

    def changed(self) -> bool:
        if self._state is not None:
            return repr(self._value.state_dict()) != self._state
        return self._sums != _sums(self._params)

    def put_back(self) -> None:
        for module, mode in self._modes:
            module.training = mode
        for param, _, wanted in self._grads:
            param.requires_grad_(wanted)
        if self._taken:
            self._snapshots.restore(0)
        for param, grad, _ in self._grads:
            param.grad = grad


def _tensors(module: nn.Module) -> list[Tensor]:
    own = [*module._parameters.values(), *module._buffers.values()]
    return [each for each in own if each is not None and each.layout is torch.strided]


def _none() -> Optimizer:
    return torch.optim.SGD([torch.zeros(1)], 0.0)


def _params(value: Any) -> list[Tensor]:
    if isinstance(value, nn.Module):
        return list(value.parameters())
    if isinstance(value, Optimizer):
        return [param for group in value.param_groups for param in group["params"]]
    return []


def _sums(params: Sequence[Tensor]) -> list[int]:
    """Returns a checksum of each tensor's memory."""
    plain: list[Any] = [param.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for param in params]
    return [zlib.crc32(each) for each in plain]


def _state(source: Any) -> Any:
    if isinstance(source, np.random.Generator):
        return source.bit_generator.state
    if isinstance(source, np.random.RandomState):
        return source.get_state(legacy=False)
    return source.getstate() if isinstance(source, random.Random) else source.get_state()


def _plain(value: Any) -> Any:
    """Returns arrays and tensors in a value as bytes, so that `repr` leaves nothing out."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Tensor):
        return value.numpy().tobytes()
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _same(now: Any, was: Any) -> bool:
    """Returns whether two containers hold the very same objects; of arrays the same bits."""
    if isinstance(was, np.ndarray):
        return bool(now.shape == was.shape and now.tobytes() == was.tobytes()) if not was.dtype.hasobject else True
    if isinstance(was, set):
        return bool(now == was)
    if len(now) != len(was):
        return False
    if isinstance(was, dict):
        return all(key in now and now[key] is each for key, each in was.items()) and list(now) == list(was)
    return all(a is b for a, b in zip(now, was, strict=True))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or one.contiguous().view(-1).view(torch.uint8).equal(
        other.contiguous().view(-1).view(torch.uint8)
    )
