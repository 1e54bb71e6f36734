"""Who did it: the change of a loss over a step, or a window of them, split over examples and tensors."""

from __future__ import annotations

from foreshock.attribution.capture import Step, capture
from foreshock.attribution.directions import Projection
from foreshock.attribution.result import Attribution
from foreshock.attribution.rows import RowProducts, row_products
from foreshock.attribution.split import StepSplit
from foreshock.attribution.step import attribute

__all__ = [
    "Attribution", "Projection", "RowProducts", "Step", "StepSplit", "attribute", "capture", "row_products",
]  # fmt: skip
