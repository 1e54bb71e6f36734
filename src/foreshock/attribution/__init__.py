"""Who did it: the change of a loss over a step, or a window of them, split over examples and tensors."""

from __future__ import annotations

from foreshock.attribution.captured import Step, capture
from foreshock.attribution.counterfactual import Counterfactual, counterfactual_rows
from foreshock.attribution.directions import Projection
from foreshock.attribution.event import attribute_event
from foreshock.attribution.mask import Budget, apply_mask
from foreshock.attribution.result import Attribution
from foreshock.attribution.rows import RowProducts, row_products
from foreshock.attribution.select import Selection, select
from foreshock.attribution.split import StepSplit
from foreshock.attribution.step import attribute
from foreshock.attribution.steps import attribute_steps
from foreshock.attribution.targets import adam_curvature, combined, prior_direction, validation_direction

__all__ = [
    "Attribution", "Budget", "Counterfactual", "Projection", "RowProducts", "Selection", "Step", "StepSplit",
    "adam_curvature", "apply_mask", "attribute", "attribute_event", "attribute_steps", "capture", "combined",
    "counterfactual_rows", "prior_direction", "row_products", "select", "validation_direction",
]  # fmt: skip
