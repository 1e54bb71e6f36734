"""Reading nodes of an autograd graph without harm: names, shapes, and what they have saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Node = Any
"""A `torch.autograd.graph.Node`; what it has saved differs from kind to kind."""

Edge = tuple[Node, int]
"""A node and which of its outputs: what `next_functions` holds."""

# Nodes that move numbers, by name.
RESHAPED = frozenset({"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"})
MOVED = frozenset({"Transpose", "Permute", "T"})
CHOSEN = frozenset({"Slice", "Select", "Index", "IndexSelect"})

SINGLE, HIGH = 1 << 63, 1 << 64  # torch shows negative dimensions and ends as unsigned numbers


def shape_of(node: Node, place: int = 0) -> tuple[int, ...]:
    """Returns the shape of what a node has computed."""
    return tuple(node._input_metadata[place].shape)


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
