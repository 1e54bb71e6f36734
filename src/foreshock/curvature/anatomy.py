"""What the graph of a loss is made of: nodes without a second derivative, kinks, low precision, hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.curvature.harmless import Hooks

# Nodes whose backward pass cannot be differentiated: fused attention (pytorch#116350, #117629, #128971), compiled
# modules (pytorch#91469), reentrant checkpointing, bags of embeddings, recurrent networks of cuDNN.
_ONCE = (
    "ScaledDotProductFlash", "ScaledDotProductEfficient", "ScaledDotProductCudnn", "ScaledDotProductFused",
    "FlexAttention", "CompiledFunctionBackward", "CheckpointFunctionBackward", "EmbeddingBag", "CudnnRnn", "CtcLoss",
)  # fmt: skip

# Nodes whose first derivative jumps: a difference of gradients across a jump is not a second derivative.
_KINKED = (
    "Relu", "LeakyRelu", "Threshold", "Prelu", "PreluKernel", "Rrelu", "Hardtanh", "Hardswish", "Hardsigmoid",
    "Hardshrink", "Softshrink", "Abs", "Clamp", "ClampMax", "Maximum", "Minimum", "Max", "Min", "Amax", "Amin",
    "Aminmax", "Fmax", "Fmin", "Cummax", "Cummin", "Topk", "Sort", "Median", "Nanmedian", "Kthvalue",
    "MaxPool2D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "MkldnnMaxPool2D", "AdaptiveMaxPool2D",
    "AdaptiveMaxPool3D", "FractionalMaxPool2D", "FractionalMaxPool3D", "L1Loss", "MultilabelMarginLoss",
    "MultiMarginLoss",
)  # fmt: skip
_KINKED_NODES = frozenset(f"{name}Backward{i}" for name in _KINKED for i in range(4))

LOW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Facts about one graph, found by walking over its nodes.

    Attributes:
        once: names of the nodes that can be differentiated once only.
        kinks: names of the nodes whose derivative jumps.
        custom: names of nodes that are `torch.autograd.Function`s of others, whose backward passes may or may not be
            differentiable: torch takes what it cannot differentiate for a constant.
        batch_statistics: whether a normalisation uses the statistics of its batch.
        dropout: whether a fused dropout is there; other kinds leave no mark.
        wrapped: whether it went through a `DistributedDataParallel` that looks for unused parameters or has a static
            graph.
        low_precision: a type of 16 bits that some node computes in.
        hooks: the tables of Python hooks that sit on its nodes and on the loss.
    """

    once: tuple[str, ...]
    kinks: tuple[str, ...]
    custom: tuple[str, ...]
    batch_statistics: bool
    dropout: bool
    wrapped: bool
    low_precision: torch.dtype | None
    hooks: tuple[Hooks, ...]


def anatomy(loss: Tensor, params: Sequence[Tensor] = ()) -> Anatomy:
    """Returns what the graph of `loss` is made of; about 2 us a node.

    Saved tensors are left alone, since reading one recomputes a checkpointed block. Hooks are found on the parameters,
    the loss, its node and the nodes by which modules call their full backward hooks. Those on other tensors, and
    `retain_grad()`, are known to these tensors only; asking each node for its own would slow its backward pass down.
    """
    names: set[str] = set()
    custom: set[str] = set()
    once: set[str] = set()
    hooks: list[Hooks] = [table for table in (loss._backward_hooks, *(p._backward_hooks for p in params)) if table]
    batch_statistics = False
    low: torch.dtype | None = None
    for node in nodes_of(loss):
        name = node.name()
        if name == "torch::autograd::AccumulateGrad":
            continue
        names.add(name)
        batch_statistics = batch_statistics or _from_the_batch(node, name)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            kind = type(node)._forward_cls
            if _once_differentiable(kind.backward):
                once.add(name)
            elif not kind.__module__.startswith(("torch.", "foreshock.")):
                custom.add(name)
        if low is None and name == "ToCopyBackward0":
            low = next((meta.dtype for meta in getattr(node, "_input_metadata", ()) if meta.dtype in LOW), None)
        if name == "BackwardHookFunctionBackward" or node is loss.grad_fn:
            hooks.extend(_hooks_of(node))
    return Anatomy(
        once=tuple(sorted(once | {name for name in names if name.startswith(_ONCE)})),
        kinks=tuple(sorted(names & _KINKED_NODES)),
        custom=tuple(sorted(custom)),
        batch_statistics=batch_statistics,
        dropout=any("Dropout" in name for name in names),
        wrapped="_DDPSinkBackward" in names,
        low_precision=low,
        hooks=tuple(hooks),
    )


def _from_the_batch(node: torch.autograd.graph.Node, name: str) -> bool:
    """Returns whether a node normalises by statistics over its batch.

    Instance normalisation is the same node, on one "sample" whose channels are all channels of all samples.
    """
    if name.startswith("SyncBatchNorm"):
        return True
    if "BatchNorm" not in name or not getattr(node, "_saved_training", False):
        return False
    shape = tuple(node._input_metadata[0].shape)
    return len(shape) == 2 or shape[0] != 1


def nodes_of(loss: Tensor) -> Iterator[torch.autograd.graph.Node]:
    """Yields the nodes of the graph of a loss, each once."""
    seen: set[object] = set()
    stack = [loss.grad_fn] if loss.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack.extend(following for following, _ in node.next_functions if following is not None)
        yield node


def _hooks_of(node: torch.autograd.graph.Node) -> list[Hooks]:
    """Returns a node's tables of Python hooks that are not empty; a handle is the only thing that leads to them."""
    found: list[Hooks] = []
    for register in (node.register_prehook, node.register_hook):
        handle = register(_nothing)
        table = handle.hooks_dict_ref()
        handle.remove()
        if table:
            found.append(table)
    return found


def _once_differentiable(backward: Callable[..., object]) -> bool:
    """Returns whether a backward pass is so marked; inside a graph it cuts the second derivative off in silence."""
    code = getattr(backward, "__code__", None)
    return code is not None and code.co_qualname.startswith("once_differentiable.")


def _nothing(*_: object) -> None:
    return None
