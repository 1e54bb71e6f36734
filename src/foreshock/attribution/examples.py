"""The examples of a batch by their place, and how a user sees them: as text or as a picture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreshock.attribution.evaluate import Losses, per_example
from foreshock.attribution.picture import picture
from foreshock.errors import UsageError

__all__ = ["Decode", "batch_losses", "shown"]

LONGEST = 2000  # characters of an example that are kept

Decode = Callable[..., Any]


def batch_losses(per_example_loss: Callable[[Any], Tensor], batch: Any, parts: int) -> Losses:
    """Returns the losses of a step's batch as a closure, (n,), so that their mean is the step's loss.

    Args:
        per_example_loss: batch -> losses, (n,).
        batch: the batch, or the list of micro-batches.
        parts: how many micro-batches there are; each counts the same, whatever its size.
    """
    if parts <= 1:
        return lambda: per_example_loss(batch)

    def losses() -> Tensor:
        found = [per_example(per_example_loss(each)) for each in batch]
        count = sum(len(each) for each in found)
        return torch.cat([each * (count / (parts * len(each))) for each in found])

    return losses


def shown(decode: Decode | None, batch: Any, parts: int, index: int) -> dict[str, str]:
    """Returns {"text": ...} or {"image": ...} of one example, {} where nobody decodes it.

    Args:
        decode: `decode(batch, index)` or `decode(example)`, to a string, or an array (H, W) or (H, W, 3).
        batch: the batch, or the list of micro-batches.
        parts: how many of these there are.
        index: the example's place, counted through.

    Raises:
        UsageError: it gives something else.
    """
    if decode is None:
        return {}
    if parts > 1:
        for each in batch:
            size = _size(each)
            if index < size:
                batch = each
                break
            index -= size
    found = decode(batch, index) if _wants_both(decode) else decode(example(batch, index))
    if isinstance(found, (Tensor, np.ndarray)):
        return {"image": picture(found)}
    if isinstance(found, str):
        return {"image" if found.startswith("data:image/") else "text": found[: None if ":" in found[:5] else LONGEST]}
    raise UsageError(f"decode: must return a string or an array of pixels, got {type(found).__name__}")


def example(batch: Any, index: int) -> Any:
    """Returns one example of a batch of tensors, arrays or lists, in tuples and dictionaries as they are.

    >>> example({"x": torch.arange(4), "y": [["a", "b", "c", "d"]]}, 2)
    {'x': tensor(2), 'y': ['c']}
    """
    if isinstance(batch, Mapping):
        return {key: example(value, index) for key, value in batch.items()}
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch[index] if batch.ndim else batch
    if isinstance(batch, tuple) or (isinstance(batch, list) and not _plain(batch)):
        parts = [example(value, index) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch[index] if isinstance(batch, Sequence) and not isinstance(batch, str) else batch


def _plain(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], (str, int, float, bytes))


def _size(batch: Any) -> int:
    """Returns how many examples a batch has: the length of its first tensor, array or list."""
    if isinstance(batch, (Tensor, np.ndarray)):
        return len(batch)
    parts = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
    return next((_size(part) for part in parts if isinstance(part, (Tensor, np.ndarray, Mapping, tuple))), len(parts))


def _wants_both(decode: Decode) -> bool:
    try:
        parameters = inspect.signature(decode).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty]
    return len(needed) >= 2
