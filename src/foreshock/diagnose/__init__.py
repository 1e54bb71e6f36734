"""Why an event happened and what would have prevented it. Never imports torch."""

from __future__ import annotations

from foreshock.diagnose.advice import Advice, Counterfactual, advice
from foreshock.diagnose.approach import Approach, approach
from foreshock.diagnose.growth import Growth

__all__ = ["Advice", "Approach", "Counterfactual", "Growth", "advice", "approach"]
