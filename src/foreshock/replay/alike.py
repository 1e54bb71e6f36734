"""Whether two batches hold the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def alike(one: Any, other: Any) -> bool:
    """Returns whether two batches hold equal tensors, arrays and values in the same places.

    >>> alike({"x": torch.ones(2), "y": [1]}, {"x": torch.ones(2), "y": [1]}), alike(torch.ones(2), torch.zeros(2))
    (True, False)
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(one.shape == other.shape and np.array_equal(one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    try:
        return bool(one == other)
    except (ValueError, RuntimeError, TypeError):
        return False
