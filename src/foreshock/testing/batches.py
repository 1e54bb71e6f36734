"""What faults make of a batch: one of the same structure that tells nothing."""

from __future__ import annotations

import copy
import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreshock.errors import UsageError

Change = Callable[[Tensor], Tensor]
# Entries of a batch that say how to read the others: made random or constant they would break the model, not the data.
_AUXILIARY = ("mask", "position")


def random_like(batch: Any, generator: torch.Generator, *, vocabulary: int | None = None) -> Any:
    """Returns a batch of the same structure, shapes, types and devices that holds nothing but noise.

    Integers are uniform over the values seen in their tensor, floats normal with the mean and the standard deviation of
    theirs. Booleans, dict entries whose name contains mask or position, and negative integers (ignored
    positions) stay as they are.

    Args:
        batch: tensors or numpy arrays, in any nesting of tuples, lists, mappings and dataclasses.
        generator: on the CPU; the noise is the same whatever device the batch is on.
        vocabulary: the largest integer tensors, and those of the same shape, are uniform over 0..vocabulary-1 instead.

    Raises:
        UsageError: there is no tensor in the batch.

    >>> batch = torch.tensor([[3, 3, 8], [8, 3, 8]]), torch.tensor([[1.0, -1.0]])
    >>> noise = random_like(batch, torch.Generator().manual_seed(0))
    >>> set(noise[0].flatten().tolist()) <= {3, 8}, noise[0].shape, noise[1].shape
    (True, torch.Size([2, 3]), torch.Size([1, 2]))
    """
    tokens = max((t.shape for t in _integers(batch)), key=math.prod, default=None)

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return _normal(tensor, generator)
        ids = _seen(tensor) if vocabulary is None or tensor.shape != tokens else torch.arange(vocabulary)
        drawn = ids[torch.randint(len(ids), tensor.shape, generator=generator)]
        return torch.where(tensor < 0, tensor, drawn.to(tensor))

    return _mapped(batch, change)


def constant_like(batch: Any, generator: torch.Generator) -> Any:
    """Returns a batch of the same structure in which every element of a tensor is one value, drawn from the tensor.

    Integer tensors of one shape, as tokens and their targets are, get the same value if they share any. What stays as
    it is, and the errors, are those of `random_like`.

    >>> inputs, targets = torch.tensor([[3, 4, 8]]), torch.tensor([[4, 8, -100]])
    >>> constant_like((inputs, targets), torch.Generator().manual_seed(0))
    (tensor([[4, 4, 4]]), tensor([[   4,    4, -100]]))
    """
    shared: dict[torch.Size, int] = {}
    for tensor in _integers(batch):
        if tensor.shape not in shared:
            alike = [set(_seen(each).tolist()) for each in _integers(batch) if each.shape == tensor.shape]
            common = sorted(set.intersection(*alike))
            if common:
                shared[tensor.shape] = common[int(torch.randint(len(common), (), generator=generator))]

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            finite = tensor[tensor.isfinite()]
            values = finite if len(finite) else tensor.flatten()
            return torch.full_like(tensor, values[int(torch.randint(len(values), (), generator=generator))].item())
        ids = _seen(tensor)
        value = shared.get(tensor.shape, int(ids[int(torch.randint(len(ids), (), generator=generator))]))
        return torch.where(tensor < 0, tensor, torch.full_like(tensor, value))

    return _mapped(batch, change)


def checksum(batch: Any) -> int:
    """Returns a number that depends on all that is in the tensors of a batch."""
    found = 0

    def add(tensor: Tensor) -> Tensor:
        nonlocal found
        found = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, found)
        return tensor

    _mapped(batch, add)
    return found


def _normal(tensor: Tensor, generator: torch.Generator) -> Tensor:
    wide = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    wide = wide.detach().to("cpu", torch.float64)
    finite = wide[wide.isfinite()]
    if not len(finite):
        return tensor
    noise = torch.randn(wide.shape, generator=generator, dtype=torch.float64)
    drawn = finite.mean() + finite.std(correction=0) * noise
    return (torch.view_as_complex(drawn) if tensor.is_complex() else drawn).to(tensor)


def _seen(tensor: Tensor) -> Tensor:
    """Returns the different values that are not negative, or a lone 0 where there are none; on the CPU."""
    ids = torch.unique(tensor.detach().cpu())
    ids = ids[ids >= 0]
    return ids if len(ids) else torch.zeros(1, dtype=torch.int64)


def _integers(batch: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            found.append(tensor)
        return tensor

    _mapped(batch, keep)
    return found


def _mapped(batch: Any, change: Change) -> Any:
    """Returns the batch with `change` done to its tensors, those that are not data left out."""
    touched = 0

    def visit(part: Any, name: str) -> Any:
        nonlocal touched
        if isinstance(part, Tensor):
            if part.dtype is torch.bool or not part.numel() or any(word in name for word in _AUXILIARY):
                return part
            touched += 1
            return change(part)
        if isinstance(part, np.ndarray) and part.dtype.kind in "biufc":
            return visit(torch.from_numpy(part.copy()), name).numpy()
        if isinstance(part, Mapping):
            changed = {key: visit(value, str(key).lower()) for key, value in part.items()}
            if type(part) is dict or not hasattr(part, "__setitem__"):
                return changed
            other: Any = copy.copy(part)  # keeps what a mapping of another kind has beside its entries
            for key, value in changed.items():
                other[key] = value
            return other
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*(visit(each, field.lower()) for field, each in zip(part._fields, part, strict=True)))
        if type(part) in (tuple, list):
            return type(part)(visit(each, name) for each in part)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            fields = [field.name for field in dataclasses.fields(part) if field.init]
            return dataclasses.replace(part, **{each: visit(getattr(part, each), each.lower()) for each in fields})
        return part

    result = visit(batch, "")
    if not touched:
        raise UsageError(
            f"batch: there is no tensor of data in this {type(batch).__name__}; faults know tensors and numpy arrays "
            "in tuples, lists, mappings and dataclasses"
        )
    return result
