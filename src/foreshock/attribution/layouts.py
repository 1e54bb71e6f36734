"""Which slice of an operation's output belongs to which example, tried out rather than assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """A way in which examples may lie in the first two dimensions of an output.

    Attributes:
        name: in words.
        owners: for each place the example it belongs to, shape (d0, d1) with ones where all of a dimension is alike.
    """

    name: str
    owners: Tensor

    def rows(self, parts: Tensor, count: int) -> Tensor:
        """Returns the sums over each example's places, shape (n,), of parts of shape (d0, d1)."""
        owners = self.owners.to(parts.device).expand_as(parts).reshape(-1)
        return parts.new_zeros(count).index_add_(0, owners, parts.reshape(-1))

    def unweighted(self, parts: Tensor, weights: Tensor) -> Tensor:
        """Returns the parts, each divided by the weight of the example that it belongs to."""
        return parts / weights[self.owners.to(weights.device)]


@lru_cache(maxsize=256)
def layouts(shape: tuple[int, ...], count: int) -> tuple[Layout, ...]:
    """Returns the ways in which n examples may lie in an output, likelier ones first.

    >>> [layout.name for layout in layouts((6, 4), 3)]
    ['dimension 0', 'dimension 0, examples inmost']
    >>> layouts((6, 4), 3)[0].owners.flatten().tolist()
    [0, 0, 1, 1, 2, 2]

    Args:
        shape: of the output, or of its first two dimensions.
        count: n.
    """
    return tuple(_layouts(shape, count))


def _layouts(shape: tuple[int, ...], count: int) -> Iterator[Layout]:
    first, second = (*shape, 1, 1)[:2]
    if not first or not second:
        return
    if first % count == 0:
        yield Layout("dimension 0", torch.arange(first).div(first // count, rounding_mode="floor")[:, None])
    if len(shape) > 1 and second % count == 0:
        yield Layout("dimension 1", torch.arange(second).div(second // count, rounding_mode="floor")[None])
    if first * second == count and first > 1 and second > 1:
        yield Layout("dimensions 0 and 1", torch.arange(count).reshape(first, second))
        yield Layout("dimensions 1 and 0", torch.arange(count).reshape(second, first).T)
    if first % count == 0 and first > count > 1:
        yield Layout("dimension 0, examples inmost", (torch.arange(first) % count)[:, None])
    if len(shape) > 1 and second % count == 0 and second > count > 1:
        yield Layout("dimension 1, examples inmost", (torch.arange(second) % count)[None])


@lru_cache(maxsize=1024)
def dimensions(shape: tuple[int, ...], count: int, *, second: bool = False) -> int:
    """Returns how many of an output's first dimensions n examples may be spread over: 0 for none.

    The first alone where that can be, unless it turned out that it is not: see `second`.

    >>> dimensions((6, 4), 3), dimensions((6, 9), 3), dimensions((6, 9), 3, second=True), dimensions((5, 4), 3)
    (1, 1, 2, 0)
    """
    names = [layout.name for layout in layouts(shape, count)]
    if not names:
        return 0
    return 2 if "1" in names[0] or (second and any("1" in name for name in names)) else 1


def places(gradient: Tensor, tangent: Tensor, dims: int) -> Tensor:
    """Returns gradient * tangent, summed over all but the first one or two dimensions: shape (d0, 1) or (d0, d1)."""
    product = gradient.to(tangent.dtype) * tangent  # then summed: a batched product is six times slower on a CPU
    found = product.flatten(dims).sum(dims) if product.dim() > dims else product
    return found.reshape(found.shape[0], -1)
