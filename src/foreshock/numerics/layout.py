"""What a loss asks about its arguments: where the classes are, how logits become rows, whether autocast is on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from foreshock.errors import UsageError


class Layout(NamedTuple):
    """How logits of any shape become rows: (n, K) with classes last, or (a, K, b) with classes in the middle."""

    logits: Tensor
    dim: int
    per_row: tuple[int, ...]  # the logits' shape without the classes

    def rows(self, values: Tensor) -> Tensor:
        """Returns one value for each row of logits, shaped like a row's loss."""
        shape = list(self.logits.shape)
        shape[self.dim] = 1
        return values.reshape(shape)

    def targets(self, values: Tensor, classes: int) -> Tensor:
        """Returns values of the logits' shape, arranged as the rows are."""
        return (values if self.dim == 1 else values.movedim(classes, -1)).reshape(self.logits.shape)


def class_dim(logits: Tensor, target: Tensor, dim: int | None = None) -> int:
    """Returns the dimension of the classes, as a number >= 0.

    Torch's layout comes first: (K,) with () or (1,), (N, K) with (N,), (N, K, d1, ...) with (N, d1, ...). Where that
    does not fit, the last dimension may: (B, T, K) with (B, T), as language models have it. A call that both fit,
    (N, K, K) with (N, K), is read as torch reads it; `dim` settles it.

    Args:
        logits: scores, with one dimension of K classes.
        target: class indices, one for each row: the shape of the logits without that dimension; or class
            probabilities, floating, of the logits' shape, which leave torch's dimension unless `dim` says another.
        dim: the dimension, if it is not to be found out; negative ones count from the end.

    Raises:
        UsageError: no dimension, or not the one given, leaves the target's shape; or they are no logits and targets.

    >>> import torch
    >>> logits, indices = torch.zeros(2, 5, 7), torch.zeros(2, 7, dtype=torch.long)
    >>> class_dim(logits, indices), class_dim(logits, indices[:, :5])
    (1, 2)
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.ndim:
        raise UsageError(f"logits must be a floating tensor with a dimension of K classes, got {described(logits)}")
    if not isinstance(target, Tensor) or target.dtype == torch.bool or target.is_complex():
        raise UsageError("target must be class indices (an integer tensor) or class probabilities (a floating one), "
                         f"got {described(target)}")
    shape, wanted = tuple(logits.shape), tuple(target.shape)
    if dim is not None and not -len(shape) <= dim < len(shape):
        raise UsageError(f"dim = {dim} is none of the {len(shape)} dimensions of the logits, {shape}")
    candidates = [min(1, len(shape) - 1), len(shape) - 1] if dim is None else [dim % len(shape)]
    if target.is_floating_point():
        if wanted == shape:
            return candidates[0]
        raise UsageError(f"target has shape {wanted}, logits have {shape}: class probabilities need the same shape")
    if len(shape) == 1 and wanted == (1,):
        return 0
    for candidate in candidates:
        if shape[:candidate] + shape[candidate + 1 :] == wanted:
            return candidate
    fitting = " or ".join(str(shape[:c] + shape[c + 1 :]) for c in dict.fromkeys(candidates))
    raise UsageError(
        f"target has shape {wanted}, logits have {shape}: class indices need one entry for each row, {fitting}"
        + ("; name the dimension of the classes with dim=" if dim is None else f" for dim = {dim}")
    )


def arranged(logits: Tensor, target: Tensor, dim: int | None) -> tuple[Layout, int]:
    """Returns the logits as rows, without a copy where their memory allows it, and where their classes are."""
    classes = class_dim(logits, target, dim)
    shape, count = logits.shape, logits.shape[classes]
    if not count:
        raise UsageError(f"logits of shape {tuple(shape)} have no classes in dimension {classes}")
    per_row = (*shape[:classes], *shape[classes + 1 :])
    last = logits.movedim(classes, -1)
    if logits.ndim <= 2 or classes == logits.ndim - 1 or last.is_contiguous():
        return Layout(last.reshape(math.prod(per_row), count), -1, per_row), classes
    rows = logits.reshape(math.prod(shape[:classes]), count, math.prod(shape[classes + 1 :]))
    return Layout(rows, 1, per_row), classes


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the type that losses of logits of a type are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocasts(device: torch.device) -> bool:
    """Returns whether autocast is on for a device, False for those that have none (meta)."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def described(value: object) -> str:
    """Returns type and shape of what was given, for an error."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
