"""Every number and tensor that an optimizer keeps, by place: taken down, put back, compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Place", "Slots", "Value", "blank", "differ", "nonzero", "settled"]

# where a value lives: ("state", number of the parameter, key), ("group", number, key) or ("attribute", 0, name)
Place = tuple[str, int, str]
Value = Tensor | float
Owner = dict[Any, Any] | list[Any]

STILL = 1e-10  # relative change of a state per step that counts as none
DEPTH = 2  # how deep states nest: tensors in a list, in a dictionary of lists


class Slots:
    """The state, the settings and the attributes of an optimizer on `params`."""

    def __init__(self, optimizer: Optimizer, params: Sequence[Tensor]) -> None:
        self._optimizer = optimizer
        self._params = params

    def snapshot(self) -> dict[Place, Value]:
        """Returns a copy of all values."""
        return {
            place: holder[key].detach().clone() if isinstance(holder[key], Tensor) else holder[key]
            for place, holder, key in self._slots()
        }

    def load(self, values: Mapping[Place, Value]) -> None:
        """Writes values back where they belong; others stay as they are."""
        for place, holder, key in self._slots():
            wanted, value = values.get(place), holder[key]
            if wanted is None:
                continue
            if isinstance(value, Tensor):
                value.detach().copy_(wanted)  # type: ignore[arg-type]
            else:
                holder[key] = type(value)(wanted)

    def _slots(self) -> Iterator[tuple[Place, Owner, Any]]:
        owners: list[tuple[str, int, Owner]] = [
            *(("state", number, self._optimizer.state.get(param) or {}) for number, param in enumerate(self._params)),
            *(("group", number, group) for number, group in enumerate(self._optimizer.param_groups)),
            ("attribute", 0, vars(self._optimizer)),
        ]
        for kind, number, owner in owners:
            for path, holder, key in _leaves(owner, "", DEPTH):
                yield (kind, number, path), holder, key


def _leaves(owner: Owner, path: str, depth: int) -> Iterator[tuple[str, Owner, Any]]:
    """Yields (path, holder, key) of the numbers and tensors in nested dictionaries and lists."""
    items = list(owner.items() if isinstance(owner, dict) else enumerate(owner))
    for number, (key, value) in enumerate(items):
        own = key if isinstance(key, str) else str(number)  # a tensor as a key would be spelled by its values
        here = f"{path}.{own}" if path else own
        if _is_numeric(value):
            yield here, owner, key
        elif depth and type(value) in (dict, list) and key not in ("params", "param_groups"):
            yield from _leaves(value, here, depth - 1)


def _is_numeric(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dtype != torch.bool and not value.is_sparse and not value.is_complex()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def blank(value: Value) -> Value:
    """Returns a zero like a value."""
    return torch.zeros_like(value) if isinstance(value, Tensor) else 0.0 * value


def nonzero(value: Value) -> bool:
    """Returns whether anything of a value is not zero."""
    return bool(value.any()) if isinstance(value, Tensor) else value != 0


def differ(one: Value, two: Value) -> bool:
    """Returns whether two values are not the same to the last bit."""
    return not torch.equal(one, two) if isinstance(one, Tensor) and isinstance(two, Tensor) else bool(one != two)


def settled(found: Value, aim: Value) -> bool:
    """Returns whether a value is at its aim, entry by entry, up to rounding."""
    gap = torch.as_tensor(found - aim).abs()
    limit = STILL if gap.dtype == torch.float64 else 1e-6
    return bool((gap <= limit * torch.as_tensor(aim).abs()).all())
