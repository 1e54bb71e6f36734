"""A copy of a batch, kept so that curvature is always measured on the same data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from torch import Tensor


def copied(batch: Any) -> Any:
    """Returns a batch with its tensors copied and detached; what is neither a container nor a tensor is shared.

    >>> copied({"x": (1, [2, None])})
    {'x': (1, [2, None])}
    """
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, Mapping):
        pairs = {key: copied(value) for key, value in batch.items()}
        return pairs if type(batch) is dict else type(batch)(pairs)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(copied, batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(copied, batch))
    return batch


def takes_a_batch(closure: Callable[..., Any]) -> bool:
    """Returns whether a closure wants the batch as its one argument, rather than none.

    >>> takes_a_batch(lambda batch: 0.0), takes_a_batch(lambda: 0.0), takes_a_batch(lambda x=1: 0.0)
    (True, False, False)
    """
    if isinstance(closure, FunctionType) and not closure.__code__.co_kwonlyargcount:  # as loops make at every step
        return closure.__code__.co_argcount - len(closure.__defaults__ or ()) == 1
    try:
        parameters = inspect.signature(closure).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [
        each for each in parameters
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) == 1
