"""Why an event happened and what would have prevented it. Never imports torch.

`foreshock.diagnose(run, event)` ranks the causes of an event; the module itself is callable, so that its parts stay
reachable:

- `foreshock.diagnose.diagnose(run, event)`: the same, by its name;
- `foreshock.diagnose.approach(run, event)`: how an event of the curvature family came about;
- `foreshock.diagnose.advice(run, event)`: what would have held it;
- `foreshock.diagnose.slide(run, event)`: how a softmax in low precision led up to an event.
"""

from __future__ import annotations

import sys
from types import ModuleType

from foreshock.diagnose.absorption import Slide, slide
from foreshock.diagnose.advice import Advice, Counterfactual, advice
from foreshock.diagnose.approach import Approach, approach
from foreshock.diagnose.base import Cause, Diagnosis, Rule, Unjudged
from foreshock.diagnose.growth import Growth
from foreshock.diagnose.rank import RULES, diagnose

__all__ = [
    "RULES", "Advice", "Approach", "Cause", "Counterfactual", "Diagnosis", "Growth", "Rule", "Slide", "Unjudged",
    "advice", "approach", "diagnose", "slide",
]  # fmt: skip


class _CallableModule(ModuleType):
    """A module that can be called: `foreshock.diagnose(...)` is `foreshock.diagnose.diagnose(...)`."""

    __call__ = staticmethod(diagnose)


sys.modules[__name__].__class__ = _CallableModule
