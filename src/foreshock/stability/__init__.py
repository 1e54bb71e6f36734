"""When an optimizer goes unstable: thresholds, filters, and the edge weights of a live optimizer.

The closed forms and the root locus (`stability_threshold`, `gain`, `filters`, `crossing_step` and what belongs to it)
work without torch; what reads a live optimizer (`edge_weights`, `register`, `nyquist_probe`, `planned_step`, `twin`)
imports it at first use.

>>> from foreshock.stability import stability_threshold
>>> round(stability_threshold("adam", lr=3e-4, beta1=0.9).value)
126667
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreshock.stability import filters
    from foreshock.stability.decay import critical_denominator, crossing_step, eps_crit, waiting_time
    from foreshock.stability.foresight import Outlook, Refill, outlook
    from foreshock.stability.nyquist import NyquistReading, nyquist_probe
    from foreshock.stability.registry import Reading, register
    from foreshock.stability.threshold import Threshold, gain, optimizers, stability_threshold
    from foreshock.stability.twins import planned_step, twin
    from foreshock.stability.weights import EdgeWeights, edge_weights

# name -> module of this package; an empty string stands for the module of that name itself.
_LAZY = {
    "EdgeWeights": "weights",
    "NyquistReading": "nyquist",
    "Outlook": "foresight",
    "Reading": "registry",
    "Refill": "foresight",
    "Threshold": "threshold",
    "critical_denominator": "decay",
    "crossing_step": "decay",
    "edge_weights": "weights",
    "eps_crit": "decay",
    "filters": "",
    "gain": "threshold",
    "nyquist_probe": "nyquist",
    "optimizers": "threshold",
    "outlook": "foresight",
    "planned_step": "twins",
    "register": "registry",
    "stability_threshold": "threshold",
    "twin": "twins",
    "waiting_time": "decay",
}

__all__ = [
    "EdgeWeights",
    "NyquistReading",
    "Outlook",
    "Reading",
    "Refill",
    "Threshold",
    "critical_denominator",
    "crossing_step",
    "edge_weights",
    "eps_crit",
    "filters",
    "gain",
    "nyquist_probe",
    "optimizers",
    "outlook",
    "planned_step",
    "register",
    "stability_threshold",
    "twin",
    "waiting_time",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foreshock.stability' has no attribute {name!r}")
    module = importlib.import_module(f"foreshock.stability.{_LAZY[name] or name}")
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
