"""Hooks on layers, on their outputs and before the model, which tell who listens; and what they are given."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreshock.curvature.harmless import under_way
from foreshock.noise.layers import Call

if TYPE_CHECKING:
    from foreshock.noise.examples import PerExampleNorms


class Ear:
    """A hook on a layer, or before the model. A model that is pickled or copied meanwhile takes a deaf one along."""

    def __init__(self, owner: PerExampleNorms | None = None, name: str | None = None) -> None:
        self._owner = (lambda: None) if owner is None else weakref.ref(owner)
        self._name = name

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None
    ) -> None:
        owner = self._owner()
        if owner is None or torch.compiler.is_compiling() or under_way():  # a probe's pass, not the loop's
            return
        try:
            if self._name is None:
                owner.began(args, kwargs)
            else:
                owner.heard(self._name, module, next(tensors_in((args, kwargs)), None), output)
        except Exception as error:  # in a forward pass that belongs to the loop
            owner.failed(error)

    def __reduce__(self) -> tuple[Any, ...]:
        return Ear, ()


class Arrival:
    """A hook on a layer's output, which meets its gradient."""

    def __init__(self, owner: PerExampleNorms, which: tuple[int, str, int], call: Call, n: int | None) -> None:
        self._owner, self._which, self._call, self._n = weakref.ref(owner), which, call, n

    def __call__(self, e: Tensor) -> None:
        owner = self._owner()
        if owner is not None:
            try:
                owner.meet(self._which, self._call, e, self._n)
            except Exception as error:  # in a backward pass that belongs to the loop
                owner.failed(error)


def tensors_in(values: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yields the tensors among arguments."""
    if isinstance(values, Tensor):
        yield values
    elif depth >= 0 and isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value, depth - 1)
    elif depth >= 0 and isinstance(values, Sequence) and not isinstance(values, str):
        for value in values:
            yield from tensors_in(value, depth - 1)


def plain(tensor: Tensor) -> bool:
    """Returns whether a tensor is just that: strided, and not sharded."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided


def layer_size(call: Call, dim: int) -> int:
    """Returns how many examples a layer was given by itself, where the model was not called as a whole."""
    shape = call.a.shape
    return int(shape[dim]) if len(shape) > dim else math.prod(shape)
