"""Cross-entropy in the margin form: exact by ordinary differentiation, with no backward pass of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.numerics.layout import autocasts, class_dim

REDUCTIONS = ("none", "mean", "sum")
# log1p(exp(x)) is x to the last bit of float64 from here on, where softplus stops computing: exp(-40) < 2^-53
LINEAR = 40.0


def margin_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, dim: int | None = None,
) -> Tensor:
    """Returns the cross-entropy with class indices, as a function of how far the right class is ahead.

        loss_i = softplus(x_i),   x_i = log sum_{k != r} exp(z_k) - z_r

    Neither 1 - p_r nor log(1 + tiny) is formed on the way, so plain autograd yields g_r = -sigmoid(x) and the wrong
    classes' g_k = sigmoid(x) exp(z_k) / sum_{j != r} exp(z_j) to rounding, at every gap until exp(x) underflows (104
    nats in float32). It is the form to read and to check the others against, or to write in a framework of one's own;
    `foreshock.cross_entropy` is the same loss with fewer passes over the logits and fewer copies of them.

    Args:
        logits: (N, K), (N, K, d1, ...), (B, T, K), ... of any floating type. Half precision is computed in float32 and
            rounded once; under autocast the result is float32, as torch's is.
        target: the right classes, integers, in the shape of the logits without the classes' dimension.
        weight: (K,), a factor for each class; "mean" divides by the sum of the factors.
        ignore_index: rows with this target count for nothing.
        reduction: "mean", "sum", or "none" for a loss in the shape of the target.
        label_smoothing: in [0, 1]: that share of the target spread over all classes.
        dim: the classes' dimension, where `layout.class_dim` would find another.

    Raises:
        UsageError: an argument that is none of these, or shapes that do not fit.

    Source: Liu, Cao, Li, Zhou 2026, arXiv 2605.06152, for what it cures.

    >>> import math
    >>> z = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    >>> loss = margin_cross_entropy(z, torch.tensor([0]))
    >>> round(loss.item() / (2 * math.exp(-40)), 5), F.cross_entropy(z.detach(), torch.tensor([0])).item()
    (1.0, 0.0)
    >>> g = torch.autograd.grad(loss, z)[0][0] / (2 * math.exp(-40))
    >>> [round(x, 5) for x in g.tolist()]
    [-1.0, 0.5, 0.5]
    """
    _check(logits, target, reduction, label_smoothing)
    dim = class_dim(logits, target, dim)
    if weight is not None and weight.shape != (logits.shape[dim],):
        raise UsageError(f"weight has shape {tuple(weight.shape)}; it needs a factor for each of the K classes")
    target = target.long().reshape(logits.shape[:dim] + logits.shape[dim + 1 :])
    kept = target != ignore_index
    index = torch.where(kept, target, 0).unsqueeze(dim)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shifted = wide - wide.detach().amax(dim, keepdim=True)  # differences only from here on: an offset costs no digits
    right = shifted.gather(dim, index).squeeze(dim)
    wrong = shifted.scatter(dim, index, -torch.inf)
    # One class, or wrong classes that are all masked by -inf: nothing to lose to, and logsumexp would divide 0 by 0.
    alone = (wrong == -torch.inf).all(dim)
    rivals = torch.where(alone.unsqueeze(dim), 0.0, wrong).logsumexp(dim)
    rows = F.softplus(torch.where(alone, -torch.inf, rivals) - right, threshold=LINEAR)
    factor = torch.ones_like(rows) if weight is None else weight.to(rows.dtype)[index.squeeze(dim)]
    factor = torch.where(kept, factor, 0.0)
    loss = rows * factor
    if label_smoothing:
        # -log p_k = loss + z_r - z_k
        each = rows.unsqueeze(dim) + right.unsqueeze(dim) - shifted
        if weight is not None:
            each = each * weight.to(rows.dtype).view(-1, *[1] * (each.ndim - dim - 1))
        loss = (1 - label_smoothing) * loss + label_smoothing / logits.shape[dim] * each.sum(dim)
    loss = torch.where(kept, loss, 0.0)
    if reduction != "none":
        loss = loss.sum() / (factor.sum() if reduction == "mean" else 1)
    return loss if autocasts(logits.device) else loss.to(logits.dtype)


def _check(logits: Tensor, target: Tensor, reduction: str, label_smoothing: float) -> None:
    """Raises UsageError for arguments of the wrong kind."""
    if not logits.dtype.is_floating_point:
        raise UsageError(f"logits have dtype {logits.dtype}; they need a floating one")
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise UsageError(
            f"target has dtype {target.dtype}: margin_cross_entropy needs the index of the right class; "
            "foreshock.cross_entropy takes probabilities as well"
        )
    if reduction not in REDUCTIONS:
        raise UsageError(f"reduction = {reduction!r}; it is one of {', '.join(REDUCTIONS)}")
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label_smoothing = {label_smoothing}; it is a share of the target, between 0 and 1")
