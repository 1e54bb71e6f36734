"""Squared norms of every example's gradient of a parameter, from what each use of it was given and what came back.

A use of a parameter has for each of n examples a gradient of one of three shapes: a sum of outer products (a linear
layer, a convolution), rows that are looked up (an embedding), or numbers as they are (a norm layer, a bias). Where a
parameter has several uses, as tied weights have, its gradient is the sum of theirs, cross terms and all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROOM = 1 << 24  # numbers that may be held at a time beside what is given: 64 MB in float32


@dataclass(slots=True)
class Outer:
    """gradient_i = sum_t e_it a_it', for each group.

    Attributes:
        a: (n, groups, t, in) inputs.
        e: (n, groups, t, out) gradients at the output.
        shape: of the parameter, groups * out * in numbers in this order.
    """

    a: Tensor
    e: Tensor
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.e)

    def part(self, begin: int, end: int) -> Outer:
        """Returns the examples from one place to another."""
        return Outer(self.a[begin:end], self.e[begin:end], self.shape)

    def dense(self) -> Tensor:
        """Returns the gradients of all examples, shape (n, *shape)."""
        return _wide(self.e.transpose(-1, -2) @ self.a).reshape(len(self), *self.shape)

    def total(self) -> Tensor:
        """Returns their sum, in the parameter's shape."""
        a, e = (x.movedim(1, 0).reshape(x.shape[1], -1, x.shape[-1]) for x in (self.a, self.e))
        return _wide(e.transpose(-1, -2) @ a).reshape(self.shape)

    def dot(self, direction: Tensor) -> Tensor:
        """Returns <gradient_i, direction>, shape (n,)."""
        n, groups, _, out = self.e.shape
        moved = self.a @ direction.reshape(groups, out, -1).transpose(-1, -2).to(self.a)
        return _wide(moved * self.e).reshape(n, -1).sum(1)


@dataclass(slots=True)
class Lookup:
    """gradient_i = sum_t e_it at row `index_it`.

    Attributes:
        index: (n, t) rows.
        e: (n, t, d) gradients at what was looked up.
        shape: (rows, d) of the parameter.
    """

    index: Tensor
    e: Tensor
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.e)

    def part(self, begin: int, end: int) -> Lookup:
        """Returns the examples from one place to another."""
        return Lookup(self.index[begin:end], self.e[begin:end], self.shape)

    def dense(self) -> Tensor:
        """Returns the gradients of all examples, shape (n, rows, d)."""
        found = self.e.new_zeros(len(self), *self.shape, dtype=_kind(self.e))
        return found.scatter_add_(1, self.index[..., None].expand_as(self.e), _wide(self.e))

    def total(self) -> Tensor:
        """Returns their sum, in the parameter's shape."""
        found = self.e.new_zeros(self.shape, dtype=_kind(self.e))
        return found.index_add_(0, self.index.reshape(-1), _wide(self.e).reshape(-1, self.shape[1]))

    def dot(self, direction: Tensor) -> Tensor:
        """Returns <gradient_i, direction>, shape (n,)."""
        return (_wide(self.e) * direction[self.index]).flatten(1).sum(1)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns which example each of u touched rows is of, which row it is, and its gradient (u, d)."""
        n, rows = len(self), self.shape[0]
        keys = self.index + rows * torch.arange(n, device=self.index.device)[:, None]
        found, places = torch.unique(keys.reshape(-1), return_inverse=True)
        sums = self.e.new_zeros(len(found), self.shape[1], dtype=_kind(self.e))
        sums.index_add_(0, places, _wide(self.e).reshape(-1, self.shape[1]))
        return found // rows, found % rows, sums


@dataclass(slots=True)
class Direct:
    """The gradients of n examples as they are, shape (n, *shape)."""

    grads: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        return tuple(self.grads.shape[1:])

    def __len__(self) -> int:
        return len(self.grads)

    def part(self, begin: int, end: int) -> Direct:
        """Returns the examples from one place to another."""
        return Direct(self.grads[begin:end])

    def dense(self) -> Tensor:
        """Returns them."""
        return _wide(self.grads)

    def total(self) -> Tensor:
        """Returns their sum, in the parameter's shape."""
        return _wide(self.grads).sum(0)

    def dot(self, direction: Tensor) -> Tensor:
        """Returns <gradient_i, direction>, shape (n,)."""
        return (_wide(self.grads) * direction).flatten(1).sum(1)


Use = Outer | Lookup | Direct


def squares(uses: Sequence[Use], weight: Tensor | None = None) -> Tensor:
    """Returns |gradient_i|^2 of every example, shape (n,), from all uses of a parameter.

    Of outer products either the gradients themselves are made, some examples at a time, or the products of inputs with
    inputs and of outputs with outputs (Gram form), whichever is less work: t^2 (in + out) against t in out.

    Args:
        uses: of one parameter, of the same n examples.
        weight: numbers shaped like the parameter by which each squared entry counts; None for ones.

    Source: Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679 (Gram form); Gray et al. 2024,
    arXiv 2411.00999.
    """
    uses = merged(uses)
    if len(uses) == 1:
        (use,) = uses
        if isinstance(use, Lookup):
            owner, row, sums = use.rows()
            found = _square(sums, None if weight is None else weight[row])
            return found.new_zeros(len(use)).index_add_(0, owner, found)
        if isinstance(use, Direct):
            return _square(use.dense(), weight)
        if weight is None and use.a.shape[1:3] == (1, 1):
            return _square(_wide(use.a), None) * _square(_wide(use.e), None)
        if weight is None and _gram_is_less(use.a.shape[2], use.a.shape[3], use.e.shape[3]):
            return torch.cat([inner(part, part) for part in parts(use, 2 * use.a.shape[1] * use.a.shape[2] ** 2)])
    elif weight is None and _products_are_less(uses):
        found = inner(uses[0], uses[0])
        for i, one in enumerate(uses):
            for other in uses[max(1, i) :]:
                found = found + (1 if one is other else 2) * inner(one, other)
        return found
    size = torch.Size(uses[0].shape).numel()
    pieces: list[Tensor] = []
    for together in zip(*(list(parts(use, size)) for use in uses), strict=True):
        dense = together[0].dense()
        for use in together[1:]:
            dense = dense + use.dense()
        pieces.append(_square(dense, weight))
    return torch.cat(pieces)


def dots(uses: Sequence[Use], direction: Tensor) -> Tensor:
    """Returns <gradient_i, direction> of every example, shape (n,), from all uses of a parameter."""
    found = uses[0].dot(direction)
    for use in uses[1:]:
        found = found + use.dot(direction)
    return found


def inner(one: Use, other: Use) -> Tensor:
    """Returns <gradient_i, gradient_i> of two uses of a parameter that are no `Direct`, shape (n,).

    With e_it a_it' and f_is b_is': sum_ts (e_it . f_is) (a_it . b_is); a lookup has a row of the identity for a.
    """
    assert not isinstance(one, Direct)
    assert not isinstance(other, Direct)
    if isinstance(one, Lookup) and isinstance(other, Outer):
        one, other = other, one
    if isinstance(one, Lookup):
        assert isinstance(other, Lookup)
        same = one.index[:, :, None] == other.index[:, None, :]
        return (_wide(one.e @ other.e.transpose(-1, -2)) * same).flatten(1).sum(1)
    if isinstance(other, Lookup):
        e, a = one.e.flatten(0, 1), one.a.flatten(0, 1)  # without groups: a looked up weight has two dimensions
        picked = e.gather(2, other.index[:, None].expand(-1, e.shape[1], -1))
        return (_wide(picked) * _wide(a @ other.e.transpose(-1, -2).to(a))).flatten(1).sum(1)
    first, second = one.a @ other.a.transpose(-1, -2), one.e @ other.e.transpose(-1, -2)
    return (_wide(first) * _wide(second)).flatten(1).sum(1)


def merged(uses: Sequence[Use]) -> list[Use]:
    """Returns the uses with those of one kind made one, over all their places."""
    outers = [use for use in uses if isinstance(use, Outer)]
    lookups = [use for use in uses if isinstance(use, Lookup)]
    direct = [use for use in uses if isinstance(use, Direct)]
    if len(outers) > 1:
        outers = [Outer(_cat([u.a for u in outers], 2), _cat([u.e for u in outers], 2), outers[0].shape)]
    if len(lookups) > 1:
        index = torch.cat([use.index for use in lookups], 1)
        lookups = [Lookup(index, _cat([use.e for use in lookups], 1), lookups[0].shape)]
    if len(direct) > 1:
        direct = [Direct(torch.stack([use.dense() for use in direct]).sum(0))]
    return [*outers, *lookups, *direct]


def parts(use: Use, each: int) -> Iterator[Use]:
    """Yields some examples at a time, of which every one needs room for `each` numbers."""
    step = max(1, ROOM // max(1, each))
    for begin in range(0, len(use), step):
        yield use.part(begin, begin + step)


def _gram_is_less(t: int, inputs: int, outputs: int) -> bool:
    return t * (inputs + outputs) < inputs * outputs


def _products_are_less(uses: Sequence[Use]) -> bool:
    """Returns whether inner products of the uses are less work than their gradients: of an embedding tied to a head."""
    if any(isinstance(use, Direct) for use in uses):
        return False
    t = max(use.e.shape[-2] for use in uses if not isinstance(use, Direct))
    rows, width = torch.Size(uses[0].shape[:1]).numel(), torch.Size(uses[0].shape[1:]).numel()
    fits = len(uses[0]) * t * max(t, rows) <= 16 * ROOM
    return fits and _gram_is_less(t, width, rows)


def _square(grads: Tensor, weight: Tensor | None) -> Tensor:
    """Returns the sums over all but the first dimension of the squares, weighted."""
    squared = grads * grads if weight is None else grads * grads * weight.to(grads)
    return squared.reshape(len(grads), -1).sum(1)


def _cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    kind = tensors[0].dtype
    for tensor in tensors[1:]:
        kind = torch.promote_types(kind, tensor.dtype)
    return torch.cat([tensor.to(kind) for tensor in tensors], dim)


def _kind(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_kind(tensor))
