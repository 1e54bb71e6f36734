"""Equal starts, gradients and bitwise comparisons for contracts of optimizers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.testing.contract import ContractError

Factory = Callable[[list[Tensor]], Optimizer]
Gradients = Sequence[Tensor | None]


class Trial:
    """Makes equal parameters, optimizers and gradients at each call."""

    def __init__(self, make: Factory, shapes: Sequence[tuple[int, ...]], sparse: bool) -> None:
        self.make, self.shapes, self.sparse = make, shapes, sparse

    def start(self) -> tuple[list[Tensor], Optimizer]:
        """Returns parameters and their optimizer, before any step."""
        draw = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=draw).requires_grad_() for shape in self.shapes]
        return params, self.make(params)

    def gradients(self, step: int) -> list[Tensor]:
        """Returns the gradients of a step."""
        draw = torch.Generator().manual_seed(step + 1)
        dense = [torch.randn(shape, generator=draw) for shape in self.shapes]
        return [_rows(each).to_sparse(1) for each in dense] if self.sparse else dense

    def after(self, steps: Iterable[int]) -> tuple[list[Tensor], Optimizer]:
        """Returns them after steps."""
        params, optimizer = self.start()
        self.go(params, optimizer, steps)
        return params, optimizer

    def go(self, params: Sequence[Tensor], optimizer: Optimizer, steps: Iterable[int]) -> None:
        """Takes steps with the gradients that belong to them."""
        for step in steps:
            take(params, optimizer, self.gradients(step))


def maker(factory: Factory | Optimizer) -> Factory:
    """Returns what makes a fresh optimizer of a list of parameters."""
    if isinstance(factory, Optimizer):
        kind, group = type(factory), factory.param_groups[0]
        taken = set(inspect.signature(kind).parameters) - {"params"}
        settings = {name: copy.copy(value) for name, value in group.items() if name in taken}
        settings = {name: value.clone() if isinstance(value, Tensor) else value for name, value in settings.items()}

        def again(params: list[Tensor]) -> Optimizer:
            return kind(params, **settings)

        return maker(again)

    def make(params: list[Tensor]) -> Optimizer:
        try:
            made = factory(params)
        except TypeError as error:
            raise UsageError(
                f"factory: {factory!r} cannot be called with a list of parameters ({error}); give a function such as "
                "lambda params: torch.optim.AdamW(params, lr=1e-3)"
            ) from error
        if not isinstance(made, Optimizer):
            raise ContractError(f"step: the factory returned {type(made).__name__}, which is no torch.optim.Optimizer")
        return made

    return make


def take(params: Sequence[Tensor], optimizer: Optimizer, gradients: Gradients) -> None:
    """Takes one step with these gradients."""
    for each, gradient in zip(params, gradients, strict=True):
        each.grad = gradient
    optimizer.step()


def _rows(dense: Tensor) -> Tensor:
    """Returns a matrix with every second row zero."""
    dense = dense.clone()
    dense[1::2] = 0.0
    return dense


def values(params: Sequence[Tensor]) -> list[Tensor]:
    """Returns copies of parameters."""
    return [each.detach().clone() for each in params]


def put(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Writes values into parameters."""
    with torch.no_grad():
        for each, value in zip(params, values, strict=True):
            each.copy_(value)


def state_of(optimizer: Optimizer) -> Any:
    """Returns a copy of the state, groups included."""
    return copy.deepcopy(optimizer.state_dict())


def first_difference(params: Sequence[Tensor], values: Sequence[Tensor]) -> int | None:
    """Returns the place of the first parameter that has other bits, or None."""
    return next((i for i, (a, b) in enumerate(zip(params, values, strict=True)) if not same(a, b)), None)


def same(a: Any, b: Any) -> bool:
    """Says whether two states are equal bit for bit: tensors, mappings, sequences, plain values."""
    return all(_leaves_equal(x, y) for x, y in _pairs(a, b))


def _pairs(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _pairs(a[key], b[key])
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from _pairs(x, y)
    else:
        yield a, b


def _leaves_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
    return type(a) is type(b) and bool(a == b or (a != a and b != b))


def _bits(tensor: Tensor) -> Tensor:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return dense.reshape(-1).view(torch.uint8)


def name_of(optimizer: Optimizer) -> str:
    """Returns the name of its class."""
    return type(optimizer).__name__
