"""Cross-entropy that is exact where float32's softmax rounds, and what it looks like where it is not.

`cross_entropy` takes the place of torch's; `linear_cross_entropy` computes it from the last layer without all of the
logits, `parallel_cross_entropy` of classes that are split between ranks. Where the loss cannot be replaced,
`exact_gradient` goes in front of it, and `recentre_` takes out of a head what rounding has put there. `absorption`
measures what rounding takes from a gradient, `absorption_bounds` says at which logit gap it begins.
"""

from __future__ import annotations

from foreshock.numerics.absorption import Absorption, absorption
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.linear import linear_cross_entropy
from foreshock.numerics.margin import margin_cross_entropy
from foreshock.numerics.parallel import parallel_cross_entropy
from foreshock.numerics.recentre import recentre_
from foreshock.numerics.repair import exact_gradient
from foreshock.numerics.thresholds import absorption_bounds, measured_threshold

__all__ = [
    "Absorption",
    "absorption",
    "absorption_bounds",
    "cross_entropy",
    "exact_gradient",
    "linear_cross_entropy",
    "margin_cross_entropy",
    "measured_threshold",
    "parallel_cross_entropy",
    "recentre_",
]
