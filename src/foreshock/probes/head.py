"""From the logits back to the linear layer that made them: its weight, its input, and which row is which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from foreshock.numerics import repair
from foreshock.probes.nodes import (
    CHOSEN,
    MOVED,
    RESHAPED,
    Edge,
    Node,
    is_ours,
    name_of,
    passes,
    plain,
    saved,
    shape_of,
    signed,
)  # fmt: skip
from foreshock.probes.rows import order_of, rows_after

MOST = 32  # nodes between a linear layer and its softmax: 6 where a language model shifts, casts and flattens

# Nodes between the two, by what they do to values and rows.
SAME = frozenset({"Clone", "ToCopy", "Alias", "MaskedFill"})
ADDED = frozenset({"Add", "Sub"})  # a bias, or a constant that carries no gradient
SCALED = frozenset({"Mul", "Div", "Neg"})  # a temperature
BENT = frozenset({"Tanh"})  # a soft cap
FOLLOWED = SAME | RESHAPED | MOVED | CHOSEN | ADDED | SCALED | BENT
FACTORS = {"Addmm": (1, "mat1", "mat2"), "Mm": (0, "self", "mat2")}  # place of the left factor, names of both


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
        """Returns (N,) of which row of the features each row of the logits was made; None where they are in the same
        order, or where that is not known.

        Args:
            dim: of the classes, in the softmax.
        """
        if self.left and dim == 1 and not any(name_of(node) in MOVED | CHOSEN for node in self.path):
            return None  # they are as they were
        found = rows_after(self.path, shape_of(self.node), 1 if self.left else 0)
        return found[0] if found is not None and found[1] == dim else None


def find_head(softmax: Node, classes: int) -> Head | None:
    """Returns the linear layer whose output a softmax was taken of, or None where there is none with a parameter.

    Args:
        softmax: its node.
        classes: K.
    """
    edge: Edge | None = softmax.next_functions[0]
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
        cut = any(name_of(each) == "Slice" and shape_of(each)[signed(each._saved_dim)] == classes for each in path)
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
        if name in MOVED and len(shape_of(node)) == 2:
            turned ^= name == "T" or list(order_of(node, 2)) == [1, 0]
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
    whole = prod(shape_of(node))
    large = [i for i, (after, place) in enumerate(edges) if after is not None and prod(shape_of(after, place)) == whole]
    if len(large) != 1 or (name == "Div" and large[0] != 0):
        return None, None
    other = saved(node, "other" if large[0] == 0 else "self")
    if other is None or (isinstance(other, Tensor) and other.numel() != 1):
        return edges[large[0]], None
    return edges[large[0]], 1 / float(other) if name == "Div" else float(other)
