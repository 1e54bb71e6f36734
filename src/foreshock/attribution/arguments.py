"""What is among the arguments of a torch function."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch.autograd.forward_ad as forward_ad
from torch import Tensor


def tensors_of(values: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yields the tensors among arguments, those in lists, tuples and dictionaries as well."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif depth and isinstance(value, (list, tuple)):
            yield from tensors_of(value, depth - 1)
        elif depth and isinstance(value, dict):
            yield from tensors_of(value.values(), depth - 1)


def replaced(value: Any, change: Callable[[Tensor], Any], depth: int = 4) -> Any:
    """Returns arguments with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if depth and isinstance(value, (list, tuple)):
        inner = [replaced(each, change, depth - 1) for each in value]
        if isinstance(value, tuple):
            return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
        return inner
    if depth and isinstance(value, dict):
        return {key: replaced(each, change, depth - 1) for key, each in value.items()}
    return value


def arguments_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all arguments of a call of a Python function by name, defaults as well."""
    bound = _signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """Returns a tensor that carries a tangent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own torch.jit.script, at its first dual tensor
        return forward_ad.make_dual(primal, tangent)  # type: ignore[no-any-return, no-untyped-call]


def by_frequency() -> str:
    """Returns the message for embeddings of which no rows exist."""
    return (
        "an embedding with scale_grad_by_freq divides each example's gradient by what the others look up, so that rows "
        "are not defined; set scale_grad_by_freq=False on it"
    )
