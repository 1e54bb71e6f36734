"""Cross-entropy over classes that are split between ranks: exact at every gap, two collectives forward, none back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foreshock import distributed
from foreshock.distributed import Group
from foreshock.errors import UsageError
from foreshock.numerics.cross_entropy import REDUCTIONS, cross_entropy
from foreshock.numerics.layout import autocasts, working_dtype
from foreshock.numerics.split import Losses

__all__ = ["parallel_cross_entropy"]

NAME = "parallel_cross_entropy"
# What must be the same on every rank, each made an integer.
ALIKE = tuple(
    f"{NAME}({each}"
    for each in (
        "logits=...): the number of rows", "logits=...): the bits computed with",
        "target=...): the sum of the targets, each times its place", "weight=...): whether there is one",
        "ignore_index=...)", f"reduction=...): its place in {REDUCTIONS}", "label_smoothing=...), times 2^60",
    )
)


def parallel_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    group: Group | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    dim: int = -1,
) -> Tensor:
    """Returns `cross_entropy` of logits whose classes are split between ranks, the same number on every rank.

    Each rank has a contiguous slice of the classes, in the order of the ranks; slices may differ in size and be empty.
    The whole logits are never gathered. With m the largest logit of a row, over all ranks, and S the sum of
    exp(z_k - m) over the wrong classes alone,

        loss = (m - z_r) + log1p(S + expm1(z_r - m)),   w = S / (S + exp(z_r - m)),   dloss/dz_r = -w,

    so a probability of almost 1 is formed nowhere. (The usual way, log sum exp minus z_r, loses w from a gap of 10 nats
    on when the logits are near -1000.) Forward takes two collectives: the maximum, and one sum of S and m - z_r.
    Backward takes none: it yields this rank's slice of the gradient. So do products with the Hessian, in two more.

        logits = hidden @ my_rows_of_the_head.T                          # (batch, time, K / ranks)
        loss = parallel_cross_entropy(logits, tokens, group=tensor_parallel_group)

    Args:
        logits: (..., k), floating, this rank's k of the K classes; or a `DTensor` split along its classes.
        target: class indices 0 to K - 1, shaped like the logits without the classes, the same on every rank.
        group: the ranks that have the classes; None: all ranks. A `DTensor` brings its own.
        weight: (k,), weights of this rank's classes.
        ignore_index: class index of rows that do not count.
        reduction: "mean" (over the weights of the rows that count), "sum", or "none".
        label_smoothing: share of the target that is spread evenly over all K classes, 0 to 1.
        dim: where the classes are; a `DTensor` says itself.

    Returns:
        A scalar, or with "none" a tensor shaped like the target, in the logits' type; float32 under autocast. It can be
        differentiated twice, on every rank alike: gradients come back as if the ranks were one program.

    Raises:
        UsageError: shapes, types or values that cannot be, or that differ between the ranks; on every rank. What it
            takes a wait for the device to find out is found out on CPU only; there, a collective more says so.

    Source: Shoeybi et al. 2019, arXiv 1909.08053, section 3 (classes split between ranks); Liu, Cao, Li and Zhou 2026,
    arXiv 2605.06152 (what their difference loses).

    >>> z = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)     # one process: all classes
    >>> parallel_cross_entropy(z, torch.tensor([0])).backward()
    >>> [f"{g:.4g}" for g in z.grad[0].tolist()]
    ['-8.497e-18', '4.248e-18', '4.248e-18']
    """
    if torch.compiler.is_compiling():  # collectives in the order that Python calls them
        eager: Callable[..., Tensor] = torch.compiler.disable(parallel_cross_entropy)  # type: ignore[no-untyped-call]
        return eager(
            logits, target, group=group, weight=weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing, dim=dim,
        )  # fmt: skip
    if distributed.sharded(logits):
        logits, group, dim = distributed.slice_of(logits)
    elif group is None and not distributed.running():
        return cross_entropy(
            logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
            dim=dim,
        )  # fmt: skip
    target, weight = distributed.local(target), None if weight is None else distributed.local(weight)
    distributed.place(group)
    wrong = _wrong(logits, target, weight, reduction, label_smoothing, dim)
    if logits.device.type == "cpu":
        settings = (int(weight is not None), ignore_index, reduction, label_smoothing)
        distributed.alike(ALIKE, None if wrong else _facts(logits, target, *settings), wrong, group, logits.device)
    elif wrong is not None:
        raise wrong
    rows = logits.movedim(dim, -1).reshape(target.numel(), logits.shape[dim])
    inputs = (rows, target.reshape(-1).long(), weight, ignore_index, label_smoothing, group)
    found, factor, *_ = Losses.apply(*inputs)  # type: ignore[no-untyped-call]
    found = found.reshape(target.shape)
    if reduction != "none":
        found = found.sum()
    if reduction == "mean":
        some = (target != ignore_index).any()
        found = torch.where(some, found / torch.where(some, factor.sum(), 1), torch.nan)
    loss: Tensor = found if autocasts(logits.device) else found.to(logits.dtype)
    return loss


def _wrong(
    logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float, dim: int
) -> UsageError | None:
    """Returns what is wrong with this rank's arguments."""
    if not logits.is_floating_point() or not -logits.ndim <= dim < logits.ndim:
        return UsageError(f"{NAME}(logits=..., dim={dim}): need a floating tensor with this rank's classes in that "
                          f"dimension, got {logits.dtype} of shape {tuple(logits.shape)}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        return UsageError(f"{NAME}(target=...): need class indices, got {target.dtype}; for class probabilities gather "
                          "the logits and use cross_entropy")
    shape = list(logits.shape)
    classes = shape.pop(dim)
    if list(target.shape) != shape:
        return UsageError(f"{NAME}(target=...): need shape {tuple(shape)}, that of the logits {tuple(logits.shape)} "
                          f"without dimension {dim}, got {tuple(target.shape)}; dim= says where the classes are")
    if weight is not None and (weight.shape != (classes,) or not weight.is_floating_point() or weight.requires_grad):
        return UsageError(f"{NAME}(weight=...): need a weight for each of this rank's {classes} classes, floating and "
                          f"without a gradient, got {weight.dtype} of shape {tuple(weight.shape)}")
    if reduction not in REDUCTIONS:
        return UsageError(f"{NAME}(reduction={reduction!r}): must be one of {', '.join(REDUCTIONS)}")
    if not 0 <= label_smoothing <= 1:
        return UsageError(f"{NAME}(label_smoothing={label_smoothing}): must be between 0 and 1")
    return None


def _facts(
    logits: Tensor, target: Tensor, weighted: int, ignore_index: int, reduction: str, label_smoothing: float
) -> list[int]:
    """Returns the numbers that `ALIKE` names."""
    places = torch.arange(1, target.numel() + 1)
    order = int((target.reshape(-1).long() * places).sum())
    bits, sixty = 8 * working_dtype(logits.dtype).itemsize, round(label_smoothing * 2**60)
    return [target.numel(), bits, order, weighted, ignore_index, REDUCTIONS.index(reduction), sixty]
