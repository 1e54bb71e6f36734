"""Examples for calibration: those that the statistics kept, or normal ones with their means and covariance."""

from __future__ import annotations

import torch
from torch import Tensor

from foreshock.heads.statistics import HeadStatistics

_EACH = 64  # drawn of a class


def examples(statistics: HeadStatistics) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Returns features (n, d) float64, classes (n,), how often each counts (n,), and whether they are real ones."""
    kept = statistics.sample
    if len(kept):
        return kept.features.double(), kept.labels, kept.weights, True
    n = statistics.weight
    means = statistics.sums / n[:, None]
    within = (statistics.second - means.mT @ statistics.sums) / n.sum()
    values, vectors = torch.linalg.eigh(within)
    root = vectors * values.clamp(min=0).sqrt()
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(len(n), _EACH, statistics.dim, generator=generator, dtype=torch.float64).to(n.device)
    features = (means[:, None] + normal @ root.mT).flatten(0, 1)
    labels = statistics.classes.to(n.device).repeat_interleave(_EACH)
    return features, labels, (n / _EACH).repeat_interleave(_EACH), False
