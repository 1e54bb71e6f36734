"""Who did it: the change of a loss over a step, or a window of them, split over examples and tensors."""

from __future__ import annotations

from foreshock.attribution.captured import Step, capture
from foreshock.attribution.counterfactual import Counterfactual, counterfactual_rows
from foreshock.attribution.directions import Projection
from foreshock.attribution.event import attribute_event
from foreshock.attribution.result import Attribution
from foreshock.attribution.rows import RowProducts, row_products
from foreshock.attribution.split import StepSplit
from foreshock.attribution.step import attribute
from foreshock.attribution.steps import attribute_steps

__all__ = [
    "Attribution", "Counterfactual", "Projection", "RowProducts", "Step", "StepSplit", "attribute", "attribute_event",
    "attribute_steps", "capture", "counterfactual_rows", "row_products",
]  # fmt: skip
