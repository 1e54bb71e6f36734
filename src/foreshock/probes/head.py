"""From the logits back to the linear layer that made them: its weight, its input, and which row is which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from foreshock.numerics import repair
from foreshock.probes.logits import Node, is_ours, name_of, passes, plain, saved, signed

MOST = 32  # nodes between a linear layer and its softmax: 6 where a language model shifts, casts and flattens

# Nodes between the two, by what they do to values and rows.
SAME = frozenset({"Clone", "ToCopy", "Alias", "MaskedFill"})
RESHAPED = frozenset({"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"})
MOVED = frozenset({"Transpose", "Permute", "T"})
CHOSEN = frozenset({"Slice", "Select", "Index", "IndexSelect"})
ADDED = frozenset({"Add", "Sub"})  # a bias, or a constant that carries no gradient
SCALED = frozenset({"Mul", "Div", "Neg"})  # a temperature
BENT = frozenset({"Tanh"})  # a soft cap
FOLLOWED = SAME | RESHAPED | MOVED | CHOSEN | ADDED | SCALED | BENT
FACTORS = {"Addmm": (1, "mat1", "mat2"), "Mm": (0, "self", "mat2")}  # place of the left factor, names of both

Edge = tuple[Any, int]
"""A node and which of its outputs: what `next_functions` holds."""


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer z = h W' + b in a graph.

    Attributes:
        node: its product.
        param: its weight, the parameter itself.
        across: whether the parameter is (d, K), not (K, d).
        left: whether the features are the left factor of the product, as usual.
        bias: its bias, where it has one that is a parameter.
        factor: what the softmax's logits are times its output; None where they are no multiple of it.
        path: the nodes from it to the softmax, in the order in which they were computed.
        classes: K; classes of the layer beyond these were cut off.
    """

    node: Node
    param: Tensor
    across: bool
    left: bool
    bias: Tensor | None
    factor: float | None
    path: tuple[Node, ...]
    classes: int

    def weight(self) -> Tensor:
        """Returns the (K, d) weight as it is now."""
        weight = self.param.detach()
        return (weight.T if self.across else weight)[: self.classes]

    def features(self) -> Tensor | None:
        """Returns the (M, d) input, where the graph still holds it."""
        _, left, right = FACTORS[name_of(self.node)]
        kept: Tensor | None = saved(self.node, left if self.left else right)
        return kept if kept is None or self.left else kept.T

    def rows(self, dim: int) -> Tensor | None:
        """Returns (N,) of which row of the features each row of the logits was made; None where that is not known.

        What the path does to the layer's output is done to the numbers of its rows, with one class in place of K.

        Args:
            dim: of the classes, in the softmax.
        """
        shape, at = _shape(self.node), 1 if self.left else 0
        numbers = torch.arange(shape[1 - at], device=self.param.device).unsqueeze(at)
        for node in self.path:
            before, shape = shape, _shape(node)
            moved = _moved(node, numbers, at, before, shape)
            if moved is None:
                return None
            numbers, at = moved
            if (*numbers.shape[:at], *numbers.shape[at + 1 :]) != (*shape[:at], *shape[at + 1 :]):
                return None
        return numbers.movedim(at, -1).reshape(-1) if at == dim else None


def find_head(feeder: Node, classes: int) -> Head | None:
    """Returns the linear layer whose output a softmax was taken of, or None where there is none with a parameter.

    Args:
        feeder: the node that the gradient of the logits goes to.
        classes: K, of the softmax.
    """
    edge: Edge | None = (feeder, 0)
    path: list[Node] = []
    factor: float | None = 1.0
    bias: Tensor | None = None
    while edge is not None and edge[0] is not None and len(path) < MOST:
        node, place = edge
        name = name_of(node)
        if name in FACTORS:
            return _made(node, name, classes, bias, factor, tuple(path[::-1]))
        path.append(node)
        if passes(node):
            edge = node.next_functions[place]
        elif name in ADDED:
            edge, added = _apart(node)
            bias = added if bias is None else bias
        elif name in SCALED:
            edge, times = _scaled(node, name)
            factor = None if factor is None or times is None else factor * times
        elif name in FOLLOWED or is_ours(node, repair):
            edge = node.next_functions[0]
            factor = None if name in BENT else factor
        else:
            return None
    return None


def _made(
    node: Node, name: str, classes: int, bias: Tensor | None, factor: float | None, path: tuple[Node, ...]
) -> Head | None:
    first = FACTORS[name][0]
    if bias is None and first:
        bias = _parameter(node.next_functions[0][0])[0]
    for left in (True, False):
        param, turned = _parameter(node.next_functions[first + left][0])
        if param is None or param.dim() != 2:
            continue
        across = left != turned  # the right factor is (d, K), the left one (K, d)
        outputs = param.shape[1 if across else 0]
        cut = any(name_of(each) == "Slice" and _shape(each)[signed(each._saved_dim)] == classes for each in path)
        if outputs == classes or (outputs > classes and cut):
            fits = bias is not None and bias.dim() == 1 and len(bias) == outputs
            return Head(node, param, across, left, bias if fits else None, factor, path, classes)
    return None


def _parameter(node: Node | None) -> tuple[Tensor | None, bool]:
    """Returns the parameter that a factor is, perhaps cast, and whether it was transposed on the way."""
    turned = False
    for _ in range(MOST):
        if node is None:
            break
        name = name_of(node)
        if hasattr(node, "variable"):
            return (node.variable if plain(node.variable) is not None else None), turned
        if name in MOVED and len(_shape(node)) == 2:
            turned ^= name == "T" or list(_order(node, 2)) == [1, 0]
        elif name not in SAME and name != "Expand":
            break
        node = node.next_functions[0][0]
    return None, turned


def _apart(node: Node) -> tuple[Edge | None, Tensor | None]:
    """Returns the summand to follow, and the parameter that is the other one; None where both lead elsewhere."""
    edges: list[Edge] = [edge for edge in node.next_functions if edge[0] is not None]
    if len(edges) == 1:
        return edges[0], None
    found = [_parameter(edge[0])[0] for edge in edges]
    for edge, other in zip(edges, found[::-1], strict=True):
        if other is not None and other.dim() <= 1:
            return edge, other
    return None, None


def _scaled(node: Node, name: str) -> tuple[Edge | None, float | None]:
    """Returns the factor to follow, and the number that is the other one; None for a tensor or an unknown number."""
    if name == "Neg":
        return node.next_functions[0], -1.0
    edges: Sequence[Edge] = node.next_functions
    whole = prod(_shape(node))
    large = [i for i, (after, place) in enumerate(edges) if after is not None and prod(_shape(after, place)) == whole]
    if len(large) != 1 or (name == "Div" and large[0] != 0):
        return None, None
    other = saved(node, "other" if large[0] == 0 else "self")
    if other is None or (isinstance(other, Tensor) and other.numel() != 1):
        return edges[large[0]], None
    return edges[large[0]], 1 / float(other) if name == "Div" else float(other)


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
        order = _order(node, len(before))
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


def _order(node: Node, count: int) -> list[int]:
    order = list(range(count))
    if name_of(node) == "Permute":
        return [signed(dim) % count for dim in node._saved_dims]
    first, second = (0, 1) if name_of(node) == "T" else (signed(node._saved_dim0), signed(node._saved_dim1))
    order[first], order[second] = order[second], order[first]
    return order


def _shape(node: Node, place: int = 0) -> tuple[int, ...]:
    """Returns the shape of what a node has computed."""
    return tuple(node._input_metadata[place].shape)
