"""Finds the softmax of a loss in its autograd graph: the node, its logits, and which class of each row is right.

Known are `F.cross_entropy` and what it is made of (`log_softmax`, `nll_loss`), losses written by hand with
`log_softmax`, `softmax` and `logsumexp`, and the exact losses of `foreshock.numerics`. Graphs are read, never run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foreshock.numerics import exact, repair
from foreshock.probes.nodes import (
    CHOSEN,
    MOVED,
    RESHAPED,
    Edge,
    Node,
    is_ours,
    name_of,
    passes,
    shape_of,
    signed,
)  # fmt: skip
from foreshock.probes.rows import rows_after

Kind = Literal["log", "exact", "softmax", "logsumexp"]

MOST = 256  # nodes looked at between a loss and its softmax: `F.cross_entropy` has two, with label smoothing nine

# What stands between a softmax and its loss: sums and means, signs and factors, choices of rows and classes. A softmax
# behind anything else, as that of attention, is none of the loss.
BETWEEN = frozenset({
    "Add", "Alias", "Cat", "Clamp", "ClampMax", "ClampMin", "Clone", "Div", "Dot", "Expand", "Gather", "Index",
    "IndexSelect", "MaskedFill", "MaskedSelect", "Mean", "Mul", "NanToNum", "Neg", "NllLoss", "NllLoss2D", "Permute",
    "ReshapeAlias", "Select", "Slice", "Squeeze", "Stack", "Sub", "Sum", "ToCopy", "Transpose", "Unsqueeze",
    "UnsafeView", "View", "Where", "Log",
})  # fmt: skip
KEPT = RESHAPED | frozenset({"Clone", "ToCopy", "Alias"})  # rows keep their order
TRACED = RESHAPED | MOVED | CHOSEN | frozenset({"Clone", "Alias"})  # every number is kept as it is
CHOICES = frozenset({"Gather", "Index"})  # of one class in each row
PLAIN: dict[str, Kind] = {"LogSoftmax": "log", "Softmax": "softmax", "Logsumexp": "logsumexp"}


@dataclass(frozen=True, slots=True)
class SoftmaxNode:
    """One softmax of a loss.

    Attributes:
        node: it, in the graph.
        kind: "log" (log_softmax), "exact" (this library's loss), "softmax" or "logsumexp".
        dim: of the classes, counted from 0.
        shape: of the logits.
        gate: the last node on the way to the head that gets its gradient by the logits and no other (a z-loss's,
            distillation's), perhaps in another shape, and which of its outputs that is; None where there is none.
        nll: the one `nll_loss` that takes its rows as they are, if nothing else takes any.
        chooser: the node that picks the right classes of "softmax" and "logsumexp", if one is known.
        clean: whether the gradient that is seen is that of a cross-entropy.
        at: the dimension of the classes in what arrives at the gate.
        rows: (N,) which of its rows are the softmax's; None where all are, in their order.
    """

    node: Node
    kind: Kind
    dim: int
    shape: tuple[int, ...]
    gate: Edge | None
    nll: Node | None
    chooser: Node | None
    clean: bool
    at: int
    rows: Tensor | None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.shape[self.dim]

    @property
    def count(self) -> int:
        """Number of rows, each with one right class."""
        return torch.Size(self.shape).numel() // max(1, self.classes)


def softmaxes(loss: Tensor) -> list[SoftmaxNode]:
    """Returns the softmaxes that a loss is made of, those with indices of right classes first, then by their rows."""
    found: dict[Node, Kind] = {}
    logged: set[Node] = set()  # nodes that a logarithm was taken of, which a loss of a softmax needs
    seen: set[Node] = set()
    queue: deque[Node] = deque([loss.grad_fn] if loss.grad_fn is not None else [])
    while queue and len(seen) < MOST:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        name = name_of(node)
        kind = PLAIN.get(name) or ("exact" if is_ours(node, exact) else None)
        if kind is not None:
            if kind != "softmax" or node in logged:
                found[node] = kind
            continue
        if name not in BETWEEN and not passes(node):
            continue
        for after, _ in node.next_functions:
            if after is not None:
                queue.append(after)
                if name == "Log" or node in logged:
                    logged.add(after)
    made = [made for node, kind in found.items() if (made := _describe(loss, node, kind)) is not None]
    return sorted(made, key=lambda each: (each.kind != "exact" and each.nll is None, -each.count))


def _describe(loss: Tensor, node: Node, kind: Kind) -> SoftmaxNode | None:
    """Returns what is known of a softmax, or None where its shape says nothing of classes."""
    feeder, place = node.next_functions[0]
    dims = getattr(node, "dim", None) if kind == "exact" else getattr(node, "_saved_dim", None)
    if isinstance(dims, tuple):
        dims = dims[0] if len(dims) == 1 else None
    if feeder is None or dims is None:
        return None
    shape = shape_of(feeder, place)
    dim = signed(dims) % max(1, len(shape))
    if not shape or shape[dim] < 2:
        return None
    chain = _chain((feeder, place))
    senders = _senders(loss, stop=chain[-1][0])
    users, others = senders.get(node, []), [each for each in senders.get(feeder, []) if each is not node]
    depth, before = 0, feeder
    while not others and depth + 1 < len(chain) and senders.get(chain[depth + 1][0]) == [before]:
        depth, before = depth + 1, chain[depth + 1][0]
    if kind == "logsumexp":  # its own part of the gradient says little: that of the right class comes from elsewhere
        depth = 0
    nll = chooser = None
    clean = True
    if kind == "log":
        nll = _nll(senders, node)
    elif kind != "exact":
        choosers = [each for each in (users if kind == "softmax" else others) if name_of(each) in CHOICES]
        chooser = choosers[0] if len(choosers) == 1 else None
    if kind == "logsumexp":
        clean = len(others) <= 1 and len(users) == 1 and name_of(users[0]) in BETWEEN
    while (found := _aligned(chain[: depth + 1], shape, dim)) is None:
        depth -= 1
    gate = None if others and kind != "logsumexp" else chain[depth]
    return SoftmaxNode(node, kind, dim, shape, gate, nll, chooser, clean, *found)


def _aligned(chain: Sequence[Edge], shape: tuple[int, ...], dim: int) -> tuple[int, Tensor | None] | None:
    """Returns the dimension of the classes at the end of a chain, and which rows there are the softmax's."""
    path = [node for node, _ in chain[-2::-1]]
    if not path:
        return dim, None
    there = shape_of(*chain[-1])
    for at in (at for at, size in enumerate(there) if size == shape[dim]):
        found = rows_after(path, there, at)
        if found is not None and found[1] == dim and len(found[0]) * shape[dim] == math.prod(shape):
            return at, None if all(name_of(node) in KEPT for node in path) else found[0]
    return None


def _chain(edge: Edge) -> list[Edge]:
    """Returns the edges down from a softmax, as long as numbers are only moved; the last leads where they are made."""
    chain = [edge]
    while len(chain) < MOST:
        node, place = chain[-1]
        if not (name_of(node) in TRACED or passes(node) or is_ours(node, repair)):
            break
        following = node.next_functions[place if passes(node) else 0]
        if following[0] is None:
            break
        chain.append(following)
    return chain


def _nll(senders: Mapping[Node, Sequence[Node]], node: Node) -> Node | None:
    """Returns the `nll_loss` that alone takes the rows of a log_softmax, in their order, be it in another shape."""
    users = senders.get(node, ())
    while len(users) == 1:
        if name_of(users[0]) in ("NllLoss", "NllLoss2D"):
            return users[0]
        users = senders.get(users[0], ()) if name_of(users[0]) in KEPT else ()
    return None


def _senders(loss: Tensor, stop: Node) -> dict[Node, list[Node]]:
    """Returns, for nodes near the loss, those that send gradients to them; what is beyond `stop` is not looked at."""
    found: dict[Node, list[Node]] = {}
    queue: deque[Node] = deque([loss.grad_fn])
    seen: set[Node] = set()
    while queue and len(seen) < MOST:
        node = queue.popleft()
        if node in seen or node is stop:
            continue
        seen.add(node)
        for following in {after for after, _ in node.next_functions if after is not None}:
            found.setdefault(following, []).append(node)
            queue.append(following)
    return found
