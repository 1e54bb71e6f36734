"""Which row is which after the views, shifts and choices between two nodes of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from foreshock.probes.nodes import MOVED, RESHAPED, Node, name_of, saved, shape_of, signed


def rows_after(path: Sequence[Node], shape: tuple[int, ...], at: int) -> tuple[Tensor, int] | None:
    """Returns (N,) of which row of some scores each row was made that comes out of a path, and the classes' dimension.

    What the nodes do to scores is done to the numbers of their rows, with one class in place of K. None where one of
    them does what is not known here.

    Args:
        path: nodes, in the order in which they were computed.
        shape: of the scores before them.
        at: the dimension of the classes before them.
    """
    sizes = (*shape[:at], 1, *shape[at + 1 :])
    device = path[0]._input_metadata[0].device if path else None
    numbers = torch.arange(prod(sizes), device=device).reshape(sizes)
    for node in path:
        before, shape = shape, shape_of(node)
        moved = _moved(node, numbers, at, before, shape)
        if moved is None:
            return None
        numbers, at = moved
        if (*numbers.shape[:at], *numbers.shape[at + 1 :]) != (*shape[:at], *shape[at + 1 :]):
            return None
    return numbers.movedim(at, -1).reshape(-1), at


def _moved(
    node: Node, numbers: Tensor, at: int, before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[Tensor, int] | None:
    """Returns the numbers of the rows after a node, and the dimension of the classes among theirs.

    Args:
        node: what is done to the logits.
        numbers: shaped like them, with size 1 in dimension `at`.
        at: the dimension of the classes.
        before, after: shapes of the logits.
    """
    name = name_of(node)
    if name in RESHAPED:
        for place, size in enumerate(after):
            if size == before[at] and prod(after[:place]) == prod(before[:at]):
                return numbers.reshape(*after[:place], 1, *after[place + 1 :]), place
        return None
    if name in MOVED:
        order = order_of(node, len(before))
        return numbers.permute(order), order.index(at)
    if name in ("Slice", "Select", "IndexSelect"):
        dim = signed(node._saved_dim) % len(before)
        if name == "Slice":
            part = slice(signed(node._saved_start), signed(node._saved_end), node._saved_step)
            if dim == at:  # classes cut off at the end
                return (numbers, at) if part.start == 0 and part.step == 1 else None
            return numbers[(slice(None),) * dim + (part,)], at
        if dim == at:
            return None
        if name == "Select":
            return numbers.select(dim, signed(node._saved_index)), at - (dim < at)
        index = saved(node, "index")
        return None if index is None else (numbers.index_select(dim, index), at)
    if name == "Index":
        indices = saved(node, "indices")
        if indices is None or any(index is None for index in indices):
            return None
        chosen = numbers[tuple(indices)]
        place = at - (numbers.dim() - chosen.dim())
        return (chosen, place) if place >= 0 and chosen.shape[place] == 1 else None
    return (numbers, at) if before == after else None


def order_of(node: Node, count: int) -> list[int]:
    order = list(range(count))
    if name_of(node) == "Permute":
        return [signed(dim) % count for dim in node._saved_dims]
    first, second = (0, 1) if name_of(node) == "T" else (signed(node._saved_dim0), signed(node._saved_dim1))
    order[first], order[second] = order[second], order[first]
    return order
