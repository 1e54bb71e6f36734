"""Finds the softmax of a loss in its autograd graph: the node, its logits, and which class of each row is right.

Known are `F.cross_entropy` and what it is made of (`log_softmax`, `nll_loss`), losses written by hand with
`log_softmax`, `softmax` and `logsumexp`, and the exact losses of `foreshock.numerics`. Graphs are read, never run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from foreshock.numerics import exact, repair

Node = Any
"""A `torch.autograd.graph.Node`; what it has saved differs from kind to kind."""

Kind = Literal["log", "exact", "softmax", "logsumexp"]

MOST = 256  # nodes looked at between a loss and its softmax: `F.cross_entropy` has two, with label smoothing nine
SINGLE, HIGH = 1 << 63, 1 << 64  # torch shows negative dimensions and ends as unsigned numbers

# What stands between a softmax and its loss: sums and means, signs and factors, choices of rows and classes. A softmax
# behind anything else, as that of attention, is none of the loss.
BETWEEN = frozenset({
    "Add", "Alias", "Cat", "Clamp", "ClampMax", "ClampMin", "Clone", "Div", "Dot", "Expand", "Gather", "Index",
    "IndexSelect", "MaskedFill", "MaskedSelect", "Mean", "Mul", "NanToNum", "Neg", "NllLoss", "NllLoss2D", "Permute",
    "ReshapeAlias", "Select", "Slice", "Squeeze", "Stack", "Sub", "Sum", "ToCopy", "Transpose", "Unsqueeze",
    "UnsafeView", "View", "Where", "Log",
})  # fmt: skip
SHAPES = frozenset({"View", "UnsafeView", "ReshapeAlias", "Clone", "ToCopy", "Alias", "Squeeze", "Unsqueeze"})
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
        source: the node that sends the gradient by the logits on: the softmax, or what repairs its gradient.
        feeder, place: the node that it is sent to, and for which of that node's outputs.
        alone: whether nothing else sends gradients there, as a z-loss or distillation would.
        nll: the one `nll_loss` that takes its rows as they are, if nothing else takes any.
        chooser: the node that picks the right classes of "softmax" and "logsumexp", if one is known.
        clean: whether the gradient that reaches `feeder` is that of a cross-entropy.
    """

    node: Node
    kind: Kind
    dim: int
    shape: tuple[int, ...]
    source: Node
    feeder: Node
    place: int
    alone: bool
    nll: Node | None = None
    chooser: Node | None = None
    clean: bool = True

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.shape[self.dim]

    @property
    def rows(self) -> int:
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
    return sorted(made, key=lambda each: (each.kind != "exact" and each.nll is None, -each.rows))


def name_of(node: Node) -> str:
    """Returns the name of the operation whose derivative a node is, such as "LogSoftmax" for LogSoftmaxBackward0."""
    return str(node.name()).partition("Backward")[0]


def is_ours(node: Node, module: Any) -> bool:
    """Returns whether a node is of an autograd function of one of our modules."""
    return (
        isinstance(node, torch.autograd.function.BackwardCFunction)
        and type(node)._forward_cls.__module__ == module.__name__  # type: ignore[attr-defined]
    )


def passes(node: Node) -> bool:
    """Returns whether a node hands its gradient on as it is: modules' backward hooks and DDP put such into graphs."""
    return node.name() in ("BackwardHookFunctionBackward", "_DDPSinkBackward")


def saved(node: Node, name: str) -> Any:
    """Returns what a node has saved, or None where it cannot be had without harm.

    A tensor saved under hooks is left alone: reading it may run a checkpointed block again. So are those that were
    freed, whose storage was given back (sharded parameters), and those that are more than tensors (DTensor).
    """
    raw = getattr(node, f"_raw_saved_{name}", None)
    if any(map(_hooked, raw if isinstance(raw, tuple) else (raw,))):
        return None
    try:
        value = getattr(node, f"_saved_{name}", None)
    except RuntimeError:
        return None
    return tuple(map(plain, value)) if isinstance(value, tuple) else plain(value)


def saved_tensors(node: Node) -> tuple[Tensor | None, ...]:
    """Returns the tensors that a node of a custom function has saved, under the same conditions; else nothing."""
    if any(_hooked(raw) for raw in getattr(node, "_raw_saved_tensors", ())):
        return ()
    try:
        return tuple(map(plain, node.saved_tensors))
    except RuntimeError:
        return ()


def plain(value: Any) -> Any:
    """Returns a tensor detached where it is just that and has its memory, None where not; others as they are."""
    if not isinstance(value, Tensor):
        return value
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        return None
    if value.numel() and value.untyped_storage().nbytes() == 0:
        return None
    return value.detach()


def signed(number: int) -> int:
    """Returns a number that torch shows as unsigned.

    >>> signed(18446744073709551615), signed(3)
    (-1, 3)
    """
    return number - HIGH if number >= SINGLE else number


def _hooked(raw: Any) -> bool:
    return getattr(raw, "unpack_hook", None) is not None


def _describe(loss: Tensor, node: Node, kind: Kind) -> SoftmaxNode | None:
    """Returns what is known of a softmax, or None where its shape says nothing of classes."""
    source, (feeder, place) = node, node.next_functions[0]
    while feeder is not None and is_ours(feeder, repair):
        source, (feeder, place) = feeder, feeder.next_functions[0]
    dims = getattr(node, "dim", None) if kind == "exact" else getattr(node, "_saved_dim", None)
    if isinstance(dims, tuple):
        dims = dims[0] if len(dims) == 1 else None
    if feeder is None or dims is None:
        return None
    shape = tuple(feeder._input_metadata[place].shape)
    dim = signed(dims) % max(1, len(shape))
    if not shape or shape[dim] < 2:
        return None
    users, senders = _users(loss, node, stop=feeder), _users(loss, feeder, stop=feeder)
    nll = chooser = None
    alone = clean = senders == [source]
    if kind == "log":
        nll = _nll(loss, node, users)
    if kind in ("log", "exact"):
        clean = True
    else:
        takers = users if kind == "softmax" else [each for each in senders if each is not node]
        choosers = [each for each in takers if name_of(each) in CHOICES]
        chooser = choosers[0] if len(choosers) == 1 else None
    if kind == "logsumexp":
        clean = len(senders) <= 2 and len(users) == 1 and name_of(users[0]) in BETWEEN
    return SoftmaxNode(node, kind, dim, shape, source, feeder, place, alone, nll, chooser, clean)


def _nll(loss: Tensor, node: Node, users: Collection[Node]) -> Node | None:
    """Returns the `nll_loss` that alone takes the rows of a log_softmax, in their order, be it in another shape."""
    while len(users) == 1:
        (user,) = users
        if name_of(user) in ("NllLoss", "NllLoss2D"):
            return user
        if name_of(user) not in SHAPES:
            return None
        users = _users(loss, user, stop=node)
    return None


def _users(loss: Tensor, wanted: Node, stop: Node) -> list[Node]:
    """Returns the nodes near the loss that send gradients to a node; what is beyond `stop` is not looked at."""
    seen: set[Node] = set()
    found: list[Node] = []
    queue: deque[Node] = deque([loss.grad_fn])
    while queue and len(seen) < MOST:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        after = [following for following, _ in node.next_functions if following is not None]
        if any(following is wanted for following in after):
            found.append(node)
        queue.extend(following for following in after if following is not stop and following is not wanted)
    return found
