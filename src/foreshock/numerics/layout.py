"""What a loss asks about its arguments: which dimension is the classes', and whether autocast is on."""

from __future__ import annotations

import torch
from torch import Tensor

from foreshock.errors import UsageError


def class_dim(logits: Tensor, target: Tensor, dim: int | None = None) -> int:
    """Returns the dimension of the classes, as a number >= 0, for class indices.

    Torch's layout comes first: (K,) with (), (N, K) with (N,), (N, K, d1, ...) with (N, d1, ...). Where that does not
    fit, the last dimension may: (B, T, K) with (B, T), as language models have it. A call that both fit, (N, K, K) with
    (N, K), is read as torch reads it; `dim` settles it.

    Args:
        logits: scores, with one dimension of K classes.
        target: class indices, one for each row: the shape of the logits without that dimension.
        dim: the dimension, if it is not to be found out; negative ones count from the end.

    Raises:
        UsageError: no dimension, or not the one given, leaves the target's shape.

    >>> import torch
    >>> class_dim(torch.zeros(2, 5, 7), torch.zeros(2, 7)), class_dim(torch.zeros(2, 5, 7), torch.zeros(2, 5))
    (1, 2)
    """
    shape, wanted = tuple(logits.shape), tuple(target.shape)
    if not shape:
        raise UsageError("logits are a scalar; they need a dimension of K classes")
    if dim is not None and not -len(shape) <= dim < len(shape):
        raise UsageError(f"dim = {dim} is none of the {len(shape)} dimensions of the logits, {shape}")
    candidates = [min(1, len(shape) - 1), len(shape) - 1] if dim is None else [dim % len(shape)]
    for candidate in candidates:
        if shape[:candidate] + shape[candidate + 1 :] == wanted:
            return candidate
    fitting = " or ".join(str(shape[:c] + shape[c + 1 :]) for c in dict.fromkeys(candidates))
    raise UsageError(
        f"target has shape {wanted}, logits have {shape}: class indices need one entry for each row, {fitting}"
        + ("; name the dimension of the classes with dim=" if dim is None else f" for dim = {dim}")
    )


def autocasts(device: torch.device) -> bool:
    """Returns whether autocast is on for a device, False for those that have none (meta)."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
