"""Probes: functions from one optimizer step to signals. They read, never write."""

from foreshock.probes.base import Every, Live, Moment, Probe, Signals, Step, UnavailableError, every, name_of
from foreshock.probes.cosine import GradientCosine
from foreshock.probes.moments import Moments
from foreshock.probes.norms import GradientNorm, Update
from foreshock.probes.sweep import Part

DEFAULT = (GradientNorm, Update, Moments, GradientCosine)
"""What a monitor measures at every step unless told otherwise: no extra pass, no wait for the device."""

__all__ = [
    "DEFAULT",
    "Every",
    "GradientCosine",
    "GradientNorm",
    "Live",
    "Moment",
    "Moments",
    "Part",
    "Probe",
    "Signals",
    "Step",
    "UnavailableError",
    "Update",
    "every",
    "name_of",
]
