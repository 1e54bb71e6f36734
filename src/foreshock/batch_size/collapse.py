"""When a softmax has lost so much of its gradient that no noise scale is to be read off it."""

from __future__ import annotations

from foreshock.batch_size.gates import ABSORBED, RESIDUAL

FADED = 0.3  # share of both below which it has not, any more

COLLAPSED = "the softmax absorbs its gradients: what is left of them is rounding"
SPIKE = "the loss spikes"


def collapsed(absorbed: float, residual: float, *, already: bool = False) -> bool:
    """Says whether rounding has taken so much of a softmax's gradient that its norm means nothing.

    >>> collapsed(0.9, 0.5), collapsed(0.9, 1e-4), collapsed(0.3, 0.05), collapsed(0.3, 0.05, already=True)
    (True, False, False, True)

    Args:
        absorbed: `softmax_absorbed`, the share of rows whose right class has lost its gradient.
        residual: `softmax_residual`, the class sum that is left of the gradient.
        already: whether it had at the last reading: then only clear signs of the opposite count.

    Source: Liu et al. 2026, arXiv 2605.06152; see `foreshock.detect.softmax_levels`.
    """
    if already:
        return absorbed > FADED * ABSORBED and residual > FADED * RESIDUAL
    return absorbed > ABSORBED and residual > RESIDUAL
