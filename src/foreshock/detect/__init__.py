"""Detectors: folds over records that emit events. Never imports torch."""

from __future__ import annotations

from foreshock.detect.absorption import Absorption
from foreshock.detect.base import Detector
from foreshock.detect.divergence import Divergence
from foreshock.detect.drift import Drift
from foreshock.detect.forecast import Forecast
from foreshock.detect.nonfinite import NonFinite
from foreshock.detect.precursor import Precursor
from foreshock.detect.scan import default_detectors, scan
from foreshock.detect.spike import Spike

__all__ = [
    "Absorption", "Detector", "Divergence", "Drift", "Forecast", "NonFinite", "Precursor", "Spike", "default_detectors",
    "scan",
]  # fmt: skip
