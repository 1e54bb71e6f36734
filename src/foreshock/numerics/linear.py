"""Cross-entropy of a linear layer's outputs that never holds all of them: value and gradients, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from foreshock import distributed
from foreshock.errors import UsageError
from foreshock.numerics.chunked import Losses, Plan
from foreshock.numerics.cross_entropy import REDUCTIONS, cross_entropy
from foreshock.numerics.layout import autocasts, described

__all__ = ["linear_cross_entropy"]

# A chunk has half as many rows as the features have entries, so that its logits and their gradient together take the
# memory of the head's gradient, but no less than 128 (with 64, at a width of 256, all takes 1.2 times as long) and no
# more than 512; of a small head 2^18 logits, a megabyte.
FEWEST, MOST, SMALL = 128, 512, 1 << 18


def linear_cross_entropy(
    features: Tensor,
    head: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    rows: int | None = None,
) -> Tensor:
    """Returns `cross_entropy(F.linear(features, head, bias), target, dim=-1)` without the (..., K) tensor of logits.

    The logits exist for some rows at a time. With "mean" or "sum" the gradients are computed along with them, in three
    products of matrices, and wait for the backward pass to be scaled; with "none", where that brings a factor for each
    row, and in float16, whose gradients must not be rounded before a loss scale has reached them, the logits are
    computed a second time. Second derivatives compute them again, by chunks as well; third and higher ones hold them
    all. Inputs that need no gradient cost nothing. It is made for large vocabularies: at 1024 x 256 x 32000 in float32
    it takes 0.76 of the time and 0.17 of the memory of torch's dense loss, at 97 classes 1.5 times as long
    (`benchmarks/linear_cross_entropy.py`, one thread of a CPU).

        loss = linear_cross_entropy(hidden, model.head.weight, tokens, model.head.bias)

    Args:
        features: (..., d), what the last layer is given.
        head: (K, d), the last layer's weight; may be the weight of the embedding.
        target: class indices, (...), or class probabilities, (..., K).
        bias: (K,).
        weight: (K,), weight of each class.
        ignore_index: class index of rows that do not count.
        reduction: "mean" (for class indices over the weights of the rows that count), "sum", or "none".
        label_smoothing: share of the target that is spread evenly over all classes, 0 to 1.
        rows: rows of a chunk; more take more memory.

    Returns:
        A scalar, or with "none" a tensor (...), in the type of the features; float32 under autocast, which lowers the
        precision of the products alone. Logits are rounded to the type they are multiplied in, as `F.linear` does; the
        loss and the sums of the head's gradient over chunks are float32 at least.

    Raises:
        UsageError: shapes, types or values that cannot be, or tensors split between ranks.

    Source: Liu, Cao, Li and Zhou 2026, arXiv 2605.06152 (why exact); Hsu et al. 2024, arXiv 2410.10989 (gradients by
    chunks in the forward pass).

    >>> features, head = torch.tensor([[40.0, 0.0]]), torch.eye(2).requires_grad_()
    >>> linear_cross_entropy(features, head, torch.tensor([0])).backward()
    >>> f"{head.grad[0, 0] / 40:.4g} {head.grad[1, 0] / 40:.4g} {math.exp(-40):.4g}"
    '-4.248e-18 4.248e-18 4.248e-18'
    """
    if torch.compiler.is_compiling():  # a loop over chunks with derivatives of its own is nothing to trace
        eager: Callable[..., Tensor] = torch.compiler.disable(linear_cross_entropy)  # type: ignore[no-untyped-call]
        return eager(
            features, head, target, bias, weight=weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing, rows=rows,
        )  # fmt: skip
    kind = _checked(features, head, target, bias, reduction, rows)
    if target.requires_grad:
        logits = F.linear(features, head, bias)
        return cross_entropy(logits, target, weight, None, ignore_index, None, reduction, label_smoothing, dim=-1)
    classes, width = head.shape
    several = rows or max(min(max(width // 2, FEWEST), MOST), SMALL // max(classes, 1))
    plan = Plan(kind, several, ignore_index, label_smoothing, reduction != "none")
    early = plan.total and kind != torch.float16 and torch.is_grad_enabled()
    wanted = tuple(early and x is not None and x.requires_grad for x in (features, head, bias))
    n = math.prod(features.shape[:-1])
    goal = target.reshape(n, classes) if target.is_floating_point() else target.reshape(n)
    inputs = (features.reshape(n, width), head, bias, goal, weight, plan, wanted)
    found: Tensor = Losses.apply(*inputs)[0]  # type: ignore[no-untyped-call]
    if reduction == "none":
        found = found.reshape(features.shape[:-1])
    elif reduction == "mean":
        count, some = _count(goal, weight, ignore_index)
        # Nothing to take the mean of: the value is NaN and the gradient 0, as torch has it.
        found = torch.where(some, found / torch.where(some, count, 1), torch.nan)
    return found if autocasts(features.device) else found.to(features.dtype)


def _count(target: Tensor, weight: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Returns what a mean is divided by, and whether there is any row to take it of."""
    if target.is_floating_point():
        return torch.tensor(len(target), device=target.device), torch.tensor(len(target) > 0, device=target.device)
    kept = target != ignore_index
    weights = kept if weight is None else weight[torch.where(kept, target, 0).long()] * kept
    return weights.sum(), kept.any()


def _checked(
    features: Tensor, head: Tensor, target: Tensor, bias: Tensor | None, reduction: str, rows: int | None
) -> torch.dtype:
    """Returns the type that matrices are multiplied in, if the arguments fit each other."""
    name = "linear_cross_entropy"
    if any(distributed.sharded(each) for each in (features, head, target)):
        raise UsageError(f"{name} takes plain tensors, and one is a DTensor: gather it with full_tensor(), or, where "
                         "the classes are split between ranks, give this rank's logits to parallel_cross_entropy")
    if head.ndim != 2 or not head.is_floating_point():
        raise UsageError(f"{name}(head=...): need a floating (classes, width) tensor, got {described(head)}")
    if features.ndim < 1 or features.shape[-1] != head.shape[1] or not features.is_floating_point():
        raise UsageError(f"{name}(features=...): need a floating (..., {head.shape[1]}) tensor, as wide as the head, "
                         f"got {described(features)}; the head is {described(head)}")
    if bias is not None and bias.shape != head.shape[:1]:
        raise UsageError(f"{name}(bias=...): need a number for each of {len(head)} classes, got {described(bias)}")
    shape = (*features.shape[:-1], len(head)) if target.is_floating_point() else features.shape[:-1]
    if target.shape != torch.Size(shape):
        raise UsageError(f"{name}(target=...): need shape {tuple(shape)}, an entry for each row of the features, got "
                         f"{described(target)}")
    if reduction not in REDUCTIONS:
        raise UsageError(f"{name}(reduction={reduction!r}): must be one of {', '.join(REDUCTIONS)}")
    if rows is not None and rows < 1:
        raise UsageError(f"{name}(rows={rows}): a chunk has at least one row; None finds a good number")
    if autocasts(features.device) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(features.device.type)
    if any(each is not None and each.dtype != features.dtype for each in (head, bias)):
        raise UsageError(f"{name}: features are {described(features)}, the head is {described(head)}, the bias "
                         f"{described(bias)}: they are of one type, unless torch.autocast makes them so")
    return features.dtype
