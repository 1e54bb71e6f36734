"""`torch.nn.functional.cross_entropy` with an exact gradient: the same arguments, the same meaning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from foreshock import distributed
from foreshock.errors import UsageError
from foreshock.numerics.exact import losses
from foreshock.numerics.layout import Layout, arranged, autocasts, described, working_dtype

__all__ = ["REDUCTIONS", "cross_entropy"]

REDUCTIONS = ("none", "mean", "sum")


def cross_entropy(
    logits: Tensor | None = None,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int | None = None,
    input: Tensor | None = None,
) -> Tensor:
    """Returns the cross-entropy of logits and targets, exact in value and gradient at every logit gap.

    A drop-in for `torch.nn.functional.cross_entropy`, whose gradient of the right class is rounded to zero where the
    others' probabilities sum to less than half an ulp of 1: beyond a gap of 16.6 nats in float32, 5.5 in bfloat16. From
    there on a row's gradient no longer sums to zero, head and features inflate, and Adam spikes again and again (Liu,
    Cao, Li and Zhou 2026, arXiv 2605.06152, sections 3 and 4). Here the right class's gradient is minus the sum of the
    others, and the loss is log1p of the odds against it; see `numerics.exact.losses`. It can be differentiated twice
    and more, keeps no more for the backward pass than torch's does (of many logits nothing but themselves), and works
    under autocast, torch.func and torch.compile.

        loss = foreshock.cross_entropy(model(x), y)                      # (N, K) and (N,)
        loss = foreshock.cross_entropy(logits, tokens, dim=-1)           # (batch, time, K) and (batch, time)

    Args:
        logits: (K,), (N, K) or (N, K, d1, d2, ...), floating, in nats.
        target: class indices, shaped like the logits without the classes, of any integer type; or class
            probabilities, floating, shaped like the logits, which may require a gradient.
        weight: (K,), weight of each class.
        size_average, reduce: deprecated, as in torch.
        ignore_index: class index of rows that do not count.
        reduction: "mean" (for class indices over the weights of the rows that count), "sum", or "none".
        label_smoothing: share of the target that is spread evenly over all classes, 0 to 1.
        dim: where the classes are. None: dimension 1 as in torch (0 for a single row), or the last where class indices
            fit only there. Where both fit, say which.
        input: torch's name for the logits, which calls may use.

    Returns:
        A scalar, or with "none" a tensor shaped like the rows, in the logits' type; float32 under autocast.

    Raises:
        UsageError: shapes, types or values that cannot be; a class index out of range is found on CPU only.

    >>> import torch
    >>> z = torch.tensor([[20.0, 0.0]], requires_grad=True)
    >>> loss = cross_entropy(z, torch.tensor([0]))
    >>> loss.backward()
    >>> f"{loss.item():.4g} {z.grad[0, 0].item():.4g} {z.grad[0, 1].item():.4g}"
    '2.061e-09 -2.061e-09 2.061e-09'
    """
    logits = input if logits is None else logits
    if logits is None or target is None or (input is not None and input is not logits):
        raise UsageError("cross_entropy(logits, target): both are needed, and once; input= is another name for logits=")
    if any(distributed.sharded(each) for each in (logits, target)):
        raise UsageError("cross_entropy takes plain tensors, and one is a DTensor: where its rows are split give each "
                         "rank's to_local(); where its classes are, numerics.parallel_cross_entropy(logits, target)")
    reduction = _reduction(reduction, size_average, reduce)
    layout, classes = arranged(logits, target, dim)
    if not 0.0 <= label_smoothing <= 1.0:
        raise UsageError(f"cross_entropy(label_smoothing=...): must be between 0 and 1, got {label_smoothing}")
    weight = _checked(weight, logits, logits.shape[classes])
    total = None
    if target.is_floating_point():
        if ignore_index >= 0:
            raise UsageError(f"cross_entropy(ignore_index={ignore_index}): only class indices can be ignored, and the "
                             "target holds class probabilities")
        found = _of_probabilities(layout, layout.targets(target, classes), weight, label_smoothing)
    else:
        found, total = _of_indices(layout, target.long(), weight, ignore_index, label_smoothing)
    found = found.reshape(layout.per_row)
    if reduction == "sum":
        found = found.sum()
    elif reduction == "mean":
        found = found.mean() if total is None else found.sum() / total
    return found if autocasts(logits.device) else found.to(logits.dtype)


def _of_indices(
    layout: Layout, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor | None]:
    """Returns the loss of each row and what their mean is over, None for their number."""
    rows, count = layout.logits, layout.logits.shape[layout.dim]
    at = layout.rows(target)
    counted = None
    if _may_ignore(at, ignore_index, count):
        counted = at != ignore_index
        at = torch.where(counted, at, 0)
    share = None if weight is None else weight[at]
    if label_smoothing > 0:
        even = rows.new_full((1, count), 1.0, dtype=working_dtype(rows.dtype)) if weight is None else weight[None]
        spread = (even * (label_smoothing / count)).reshape((1, count, 1) if layout.dim == 1 else (1, count))
        mass = torch.ones_like(at, dtype=spread.dtype) if share is None else share
        found = losses(rows, at, spread=spread, mass=mass * (1 - label_smoothing), dim=layout.dim)
    else:
        found = losses(rows, at, dim=layout.dim)
        found = found if share is None else found * share
    if counted is None:
        return found, None if share is None else share.sum()
    return torch.where(counted, found, 0), (counted if share is None else counted * share).sum()


def _of_probabilities(layout: Layout, target: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    """Returns the loss of each row, to whose targets smoothing and weights are applied first."""
    count = layout.logits.shape[layout.dim]
    spread = target.to(working_dtype(layout.logits.dtype))
    if label_smoothing > 0:
        spread = spread * (1 - label_smoothing) + label_smoothing / count
    if weight is not None:
        spread = spread * (weight[:, None] if layout.dim == 1 else weight)
    largest = spread.detach().argmax(layout.dim, keepdim=True)
    return losses(layout.logits, largest, spread=spread, dim=layout.dim)


def _may_ignore(target: Tensor, ignore_index: int, count: int) -> bool:
    """Returns whether rows may have to be left out; looks, and checks the range, where that makes nobody wait."""
    # a subclass may have no numbers to look at: fake tensors, shards
    traced = torch.compiler.is_compiling() or is_functorch_wrapped_tensor(target) or type(target) is not Tensor
    if traced or target.device.type != "cpu":
        return True
    if not target.numel():
        return False
    low, high = (int(each) for each in target.aminmax())
    if low >= 0 and high < count:
        return low <= ignore_index <= high
    wrong = target[((target < 0) | (target >= count)) & (target != ignore_index)]
    if len(wrong):
        raise UsageError(
            f"cross_entropy(target=...): class index {int(wrong[0])} is out of range: there are {count} classes, 0 to "
            f"{count - 1}, and ignore_index is {ignore_index}"
        )
    return True


def _checked(weight: Tensor | None, logits: Tensor, count: int) -> Tensor | None:
    if weight is None:
        return None
    if weight.shape != (count,) or not weight.is_floating_point():
        raise UsageError(f"cross_entropy(weight=...): need one weight for each of {count} classes, got "
                         f"{described(weight)}")
    if weight.requires_grad:
        raise UsageError("cross_entropy(weight=...): there is no derivative by the class weights; detach them")
    return weight.to(working_dtype(logits.dtype))


def _reduction(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    if size_average is not None or reduce is not None:
        if reduce is False:
            return "none"
        return "sum" if size_average is False else "mean"
    if reduction not in REDUCTIONS:
        raise UsageError(f"cross_entropy(reduction={reduction!r}): must be one of {', '.join(REDUCTIONS)}")
    return reduction
