"""Cross-entropy by autograd in its margin form, float64, one class after the other: slow, and exact at every gap.

-log p_k = log(1 + exp(-d)), d = z_k - log sum_{j != k} exp z_j: no number is subtracted from one close to it, so the
gradient of the right class keeps its digits, and so do second derivatives, with no formula of the library in sight.
(torch's own softplus and logsigmoid would not do: the second derivative of the one is cut off at 20, and that of the
other holds 1 - sigmoid.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def negative_log_probabilities(logits: Tensor) -> Tensor:
    """Returns -log softmax of (N, K) logits."""
    parts = []
    for k in range(logits.shape[1]):
        others = torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1)
        margin = logits[:, k] - torch.logsumexp(others, dim=1)
        ahead, behind = (torch.where(side, margin, 0.0) for side in (margin >= 0, margin < 0))
        losing = torch.log1p(torch.exp(behind)) - behind
        parts.append(torch.where(margin >= 0, torch.log1p(torch.exp(-ahead)), losing))
    return torch.stack(parts, dim=1)


def margin_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Returns `torch.nn.functional.cross_entropy` of (N, K) logits and (N,) indices, in float64."""
    kinds = logits.shape[1]
    logits = logits.double()
    # without the common offset, whose rounding would be the reference's error; no gradient goes through a constant
    each = negative_log_probabilities(logits - logits.detach().amax(1, keepdim=True))
    weight = torch.ones(kinds, dtype=torch.float64) if weight is None else weight.double()
    losses, total = [], torch.zeros((), dtype=torch.float64)
    for row, right in zip(each, target.tolist(), strict=True):
        if right == ignore_index:
            losses.append(row.sum() * 0)
            continue
        smooth = (weight * row).sum() * (label_smoothing / kinds) if label_smoothing else 0.0
        losses.append((1 - label_smoothing) * weight[right] * row[right] + smooth)
        total = total + weight[right]
    stacked = torch.stack(losses) if losses else each.sum(1)
    return {"none": stacked, "sum": stacked.sum(), "mean": stacked.sum() / total}[reduction]
